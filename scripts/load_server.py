"""Many clients at once against `elutq serve`: does every request get its answer, and does memory stay where it is?

    elutq serve model.gguf --port 8080 &
    python scripts/load_server.py http://127.0.0.1:8080/v1 --pid $! --clients 50 --seconds 60

Two thirds of the requests are streamed, one in ten is left in the middle of its answer. Prints one JSON object; exits 1
when a request was lost. Memory is the resident set of the process (Linux), at the end of each tenth of the time.

With --texts N the clients make a fixed set of N texts of --tokens tokens each, and nobody leaves.
"""

import argparse
import asyncio
import json
import math
import random
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from openai import AsyncOpenAI

PROMPTS = ("It was a dark night, and", "The captain said", "My dear", "On the third day", "She looked at the letter")


@dataclass
class Tally:
    """What happened so far."""

    outcomes: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    first_tokens: list[float] = field(default_factory=list)
    n_tokens: int = 0


async def talk(client: AsyncOpenAI, number: int, until: float, tally: Tally) -> None:
    """One client: request after request until the time is over, at least one."""
    chance, now = random.Random(number), -math.inf
    while now < until:
        begin = time.monotonic()
        try:
            outcome = await ask(client, chance, tally)
        except Exception as error:  # every failure of a request is what is looked for
            outcome = "lost"
            tally.errors.append(f"{type(error).__name__}: {error}"[:200])
        now = time.monotonic()
        tally.outcomes[outcome] += 1
        tally.latencies.append(now - begin)


async def ask(client: AsyncOpenAI, chance: random.Random, tally: Tally) -> str:
    """One request; returns how it ended."""
    n_tokens = chance.randint(4, 24)
    options = {
        "model": "any",
        "prompt": chance.choice(PROMPTS),
        "max_tokens": n_tokens,
        "extra_body": {"top_k": chance.choice((0, 40))},
    }
    if chance.random() < 1 / 3:
        whole = await client.completions.create(**options)
        tally.n_tokens += whole.usage.completion_tokens
        return "answered" if whole.choices[0].finish_reason in ("stop", "length") else "lost"
    leaves_after = chance.randint(1, 3) if chance.random() < 0.15 else None
    begin = time.monotonic()
    stream = await client.completions.create(**options, stream=True, stream_options={"include_usage": True})
    finish_reason, usage, n_pieces = None, None, 0
    async for piece in stream:
        n_pieces += 1
        if n_pieces == 1:
            tally.first_tokens.append(time.monotonic() - begin)
        if n_pieces == leaves_after:
            await stream.close()
            return "left"
        usage = piece.usage or usage
        for choice in piece.choices:
            finish_reason = choice.finish_reason or finish_reason
    if finish_reason is None or usage is None:
        return "lost"
    tally.n_tokens += usage.completion_tokens
    return "streamed"


async def make_texts(client: AsyncOpenAI, numbers: list[int], n_tokens: int, tally: Tally) -> None:
    """One client: text after text until there are no numbers left."""
    while numbers:
        number, begin = numbers.pop(), time.monotonic()
        await client.completions.create(
            model="any",
            prompt=f"{number}. {PROMPTS[number % len(PROMPTS)]}",
            max_tokens=n_tokens,
            seed=number,
            extra_body={"ignore_eos": True},
        )
        tally.outcomes["answered"] += 1
        tally.n_tokens += n_tokens
        tally.latencies.append(time.monotonic() - begin)


def resident_bytes(pid: int) -> int | None:
    """Return a process's resident set, where the system tells."""
    try:
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return None
    return 1024 * int(found[1]) if found else None


async def watch(pid: int | None, seconds: float) -> list[int]:
    """Return the resident set at the end of each tenth of the time."""
    sizes = []
    for _ in range(10):
        await asyncio.sleep(seconds / 10)
        if pid is not None and (size := resident_bytes(pid)) is not None:
            sizes.append(size)
    return sizes


async def load(options: argparse.Namespace) -> dict[str, object]:
    """Run all clients and return the report."""
    n_clients, sizes = options.clients, []
    async with AsyncOpenAI(base_url=options.address, api_key="none", timeout=600, max_retries=0) as client:
        tally, begin = Tally(), time.monotonic()
        if options.texts:
            numbers = list(range(options.texts))
            await asyncio.gather(*(make_texts(client, numbers, options.tokens, tally) for _ in range(n_clients)))
        else:
            watcher = asyncio.create_task(watch(options.pid, options.seconds))
            end = begin + options.seconds
            await asyncio.gather(*(talk(client, number, end, tally) for number in range(n_clients)))
            sizes = await watcher
        elapsed = time.monotonic() - begin
    return {
        "clients": n_clients,
        "seconds": elapsed,
        "requests": sum(tally.outcomes.values()),
        **{name: tally.outcomes[name] for name in ("answered", "streamed", "left", "lost")},
        "requests_per_second": len(tally.latencies) / elapsed,
        "tokens_per_second": tally.n_tokens / elapsed,
        **median_and_most("latency", tally.latencies),
        **median_and_most("first_token", tally.first_tokens),
        "resident_bytes": sizes,
        "errors": tally.errors[:5],
    }


def median_and_most(name: str, seconds: list[float]) -> dict[str, float]:
    """Return the median and the largest of some times, where there are any."""
    if not seconds:
        return {}
    return {f"{name}_median_s": sorted(seconds)[len(seconds) // 2], f"{name}_most_s": max(seconds)}


def main() -> None:
    """Read the command line, run, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="as http://127.0.0.1:8080/v1")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--texts", type=int, default=0, help="of a fixed set; 0: for --seconds")
    parser.add_argument("--tokens", type=int, default=32, help="of each text of the fixed set")
    parser.add_argument("--pid", type=int, help="of the server, to watch its memory")
    report = asyncio.run(load(parser.parse_args()))
    print(json.dumps(report))
    sys.exit(report["lost"] != 0)


if __name__ == "__main__":
    main()
