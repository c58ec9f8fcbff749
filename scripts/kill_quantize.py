"""Kills `elutq quantize` again and again with SIGKILL, lets it finish, and compares its file with an undisturbed run's.

    python scripts/kill_quantize.py tests/data/novels-6m --kills 20 -- --calibration tests/data/sampled.txt

Kills come at a random moment, during the allocate stage, as soon as a scratch file appears, which is then half
written, and while the output is assembled. What follows -- goes to `elutq quantize`.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

POLL_SECONDS = 0.0005


def start(arguments: list[str], output: Path) -> "subprocess.Popen[str]":
    """Start `elutq quantize`; what it says goes to this process's stderr."""
    command = [sys.executable, "-m", "elutq_cli", "quantize", *arguments, "-o", str(output)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, text=True)


def moments(work: Path, seconds: float, rng: random.Random) -> dict[str, Callable[[], bool]]:
    """Return, by name, functions that say when the moment to kill has come; called again and again from the start."""
    begin = time.monotonic()
    delay, early, n_more = rng.uniform(0.1, 1.0) * seconds, rng.uniform(0.1, 0.5) * seconds, rng.randrange(1, 15)
    before = len(list(work.glob("*.npy"))) if work.is_dir() else 0

    def since(seconds: float) -> bool:
        return time.monotonic() - begin > seconds

    return {
        "at random": lambda: since(delay),
        "in allocate": lambda: since(early) and not (work / "found.json").exists(),
        "in a scratch file": lambda: len(list(work.glob("*.npy"))) >= before + n_more,
        "in the output": lambda: any(work.parent.glob(f".{work.stem}.*.tmp")),
    }


def kill_once(arguments: list[str], output: Path, seconds: float, rng: random.Random) -> str:
    """Run until a random moment of a random kind; return when it was killed, or that it was not."""
    work = output.with_name(output.name + ".work")
    kinds = moments(work, seconds, rng)
    kind = rng.choice([name for name in kinds if name != "in allocate" or not (work / "found.json").exists()])
    with start(arguments, output) as job:
        while job.poll() is None:
            if kinds[kind]():
                job.kill()
                break
            time.sleep(POLL_SECONDS)
    if job.returncode not in (0, -9):
        sys.exit(f"elutq quantize ended with {job.returncode}")
    n_units = len(list(work.glob("*.unit")))
    return f"killed {kind}, {n_units} units finished" if job.returncode else f"ended before it was killed {kind}"


def main() -> None:
    """Parse the command line, run, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkpoint")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, help="default: a new one, which is printed")
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    given = parser.parse_args(sys.argv[1:end])
    seed = random.randrange(2**32) if given.seed is None else given.seed
    print(f"seed {seed}")
    rng, arguments = random.Random(seed), [given.checkpoint, *sys.argv[end + 1 :]]
    with tempfile.TemporaryDirectory() as folder:
        whole, output = Path(folder) / "whole.gguf", Path(folder) / "killed.gguf"
        begin = time.monotonic()
        if start(arguments, whole).wait() != 0:
            sys.exit("the undisturbed run failed")
        seconds, n_kills = time.monotonic() - begin, 0
        while n_kills < given.kills:
            what = kill_once(arguments, output, seconds, rng)
            print(what)
            if output.exists():  # it ended first, or had just been renamed
                if output.read_bytes() != whole.read_bytes():
                    sys.exit("the file differs")
                output.unlink()
            n_kills += what.startswith("killed")
        if start(arguments, output).wait() != 0:
            sys.exit("the last run failed")
        if output.read_bytes() != whole.read_bytes():
            sys.exit("the file differs")
        left = sorted(path.name for path in Path(folder).iterdir())
        if left != ["killed.gguf", "whole.gguf"]:
            sys.exit(f"left behind: {left}")
    print(f"{n_kills} kills, then the same bytes as undisturbed, and nothing left behind")


if __name__ == "__main__":
    main()
