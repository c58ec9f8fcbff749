"""Will a model run here: the memory it needs against what there is, and the speed that memory bandwidth allows."""

import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from elutq_cli.generation.context_size import check_context, checked_cache_type, fit_context
from elutq_cli.generation.thread_counts import choose_threads
from elutq_cli.machine.memory import available_memory
from elutq_native import Model

PROCESS_BYTES = 64 << 20
"""What the interpreter, its libraries and the scratch of a small model take."""

READS = 5
TOKEN_BYTES = 750
"""What the tokenizer takes for each of its tokens: 0.51 kB of Qwen2.5's 151,936, 0.61 of SmolLM2's 49,152, 0.71 of
Gemma 3's 262,144."""

SHORTEST, LONGEST = 0.1, 1.0
"""So many reads of the weights are timed, more until this many seconds have gone by, fewer when it is longer."""


@dataclass(frozen=True)
class Fitness:
    """How a model and this machine go together. Sizes in bytes.

    Attributes:
        ctx_size: tokens in the context.
        weights_bytes: the file, mapped.
        kv_bytes: room for keys and values of the whole context.
        needed_bytes: all in all.
        available_bytes: what can be had without swapping; None where the system does not tell.
        fits: whether it does; None where that is not known.
        isa: kernels that this processor gets.
        n_threads: threads used by default.
        bytes_per_token: weights read to decode one token.
        read_gbps: how fast the weights were read just now, in 1e9 bytes per second; None: not measured.
        roof_ts: tokens per second if reading were all there is to do, with an empty context.
        roof_full_ts: the same with a full one.
        full_kv_bytes: keys and values that a token reads behind a full context; fewer than there are in layers with a
            window.
    """

    ctx_size: int
    weights_bytes: int
    kv_bytes: int
    needed_bytes: int
    available_bytes: int | None
    fits: bool | None
    isa: str
    n_threads: int
    bytes_per_token: int
    read_gbps: float | None = None
    roof_ts: float | None = None
    roof_full_ts: float | None = None
    full_kv_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return every field."""
        return asdict(self)


def assess(model: Model, ctx_size: int | None, threads: int | None, cache_type: str = "f16") -> Fitness:
    """Compare a model with this machine.

    Args:
        model: the file, mapped.
        ctx_size: tokens in the context; None: as many as ``elutq run`` would take.
        threads: threads; None: as many as ``elutq run`` would take.
        cache_type: keys and values as f16 or q8.

    Raises:
        ElutqError: the context is out of range, or there is no such type of cache.
    """
    info, available = model.info, available_memory()
    cache_bytes = partial(model.cache_bytes, cache_type=checked_cache_type(cache_type))
    if ctx_size is None:
        ctx_size = fit_context(info.context_length, cache_bytes, info.file_bytes, available)
    check_context(ctx_size, info.context_length, cache_bytes, None)
    kv_bytes = cache_bytes(ctx_size)
    needed = info.file_bytes + kv_bytes + PROCESS_BYTES + TOKEN_BYTES * model.vocab_size
    fits = None if available is None else needed <= available
    n_threads = threads or choose_threads(model)
    return Fitness(
        ctx_size,
        info.file_bytes,
        kv_bytes,
        needed,
        available,
        fits,
        info.isa,
        n_threads,
        info.bytes_per_token,
        full_kv_bytes=model.attended_bytes(ctx_size, cache_type),
    )


def measure_roof(model: Model, fitness: Fitness) -> Fitness:
    """Return the assessment with the speed that reading the weights allows, unless they do not fit into memory.

    Raises:
        NativeError: the threads cannot be started.
    """
    if fitness.fits is False:
        return fitness
    gbps = read_bandwidth(model, fitness.n_threads)
    empty, full = fitness.bytes_per_token, fitness.bytes_per_token + fitness.full_kv_bytes
    return replace(fitness, read_gbps=gbps, roof_ts=1e9 * gbps / empty, roof_full_ts=1e9 * gbps / full)


def read_bandwidth(model: Model, threads: int) -> float:
    """Return how fast the weights of a token are read, in 1e9 bytes per second: the fastest of a few reads.

    A first read, which is not timed, brings the file into memory. What other programs take is no part of a roof.
    """
    with model.session(1, threads) as session:
        n_bytes = session.read_weights()
        seconds: list[float] = []
        while sum(seconds) < SHORTEST or (len(seconds) < READS and sum(seconds) < LONGEST):
            begin = time.perf_counter()
            session.read_weights()
            seconds.append(time.perf_counter() - begin)
    return n_bytes / 1e9 / min(seconds)


def describe_fitness(fitness: Fitness) -> str:
    """Return the answer for a reader."""
    needed = (
        f"memory      {fitness.needed_bytes / 1e6:.0f} MB at a context of {fitness.ctx_size} tokens "
        f"(weights {fitness.weights_bytes / 1e6:.1f} MB, KV cache {fitness.kv_bytes / 1e6:.1f} MB)"
    )
    if fitness.available_bytes is not None:
        needed += f"; {fitness.available_bytes / 1e6:.0f} MB available: {'it fits' if fitness.fits else 'TOO LITTLE'}"
    threads = f"{fitness.n_threads} thread{'s' * (fitness.n_threads > 1)}"
    lines = ["will it run here", needed, f"kernels     {fitness.isa}, {threads}"]
    if fitness.read_gbps is not None and fitness.roof_ts is not None and fitness.roof_full_ts is not None:
        lines.append(
            f"roof        {fitness.roof_ts:.1f} tokens/s ({fitness.roof_full_ts:.1f} with a full context): "
            f"{fitness.bytes_per_token / 1e6:.1f} MB a token, read at {fitness.read_gbps:.1f} GB/s just now"
        )
    return "\n".join(lines)
