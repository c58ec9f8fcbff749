"""How many threads generate best: where arithmetic bounds a pass, and where memory does.

Passes of many tokens grow with every core; decode only until memory is busy.
"""

import itertools
from collections.abc import Callable

from elutq_native import Engine, Model, default_threads

BYTES_PER_THREAD = 4 << 20
"""Weights that a token reads, for another thread to gain more than the threads lose by waiting for each other."""

SMALL_MACHINE = 8
"""Threads up to which decode takes all: memory keeps them busy, and there is little to choose."""

COUNTS = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Numbers of threads that are tried, beside all of them."""

SLACK = 1.03
"""Of two numbers of threads the smaller one is taken when it takes at most so many times as long."""

SECONDS = 0.15
"""Measuring ends with the round of all numbers in which this much has gone by."""

VISITS = 5
"""Or when each number of threads has taken each part so many times."""

PARTS = 4
PART_BYTES = 128 << 20
"""A large model is measured by so many parts of it, each of about so many bytes: a few milliseconds."""


def choose_threads(model: Model) -> int:
    """Return how many threads generate best: one for each physical core, fewer for a very small model."""
    return max(1, min(default_threads(), model.info.bytes_per_token // BYTES_PER_THREAD))


def choose_decode_threads(engine: Engine) -> int:
    """Return how many of an engine's threads decode one text best, on a large machine by trying.

    Raises:
        NativeError: the model's file cannot be read, or memory is short.
    """
    info = engine.model.info
    parts = parts_of_a_pass(info.n_layers, info.bytes_per_token)

    def seconds(threads: int, part: int) -> float:
        engine.use_for_decode(threads)
        return engine.rehearse(*parts[part])

    return fewest_threads(engine.threads, len(parts), seconds)


def parts_of_a_pass(n_layers: int, n_bytes: int) -> list[tuple[int, int]]:
    """Return what of a pass is measured: the first layer and the number of layers of each part.

    A small model is measured whole, since a token finds it in a cache where the last one left it. Of a larger one there
    are several parts, so that one is not found in a cache when its turn comes again.

    Args:
        n_layers: of the model.
        n_bytes: weights that a token reads.
    """
    if n_bytes <= 2 * PART_BYTES:
        return [(0, n_layers)]
    n_parts = min(PARTS, n_layers)
    most = max(1, PART_BYTES * n_layers // n_bytes)
    bounds = [n_layers * part // n_parts for part in range(n_parts + 1)]
    return [(first, min(most, end - first)) for first, end in itertools.pairwise(bounds)]


def fewest_threads(n_threads: int, n_parts: int, seconds: Callable[[int, int], float]) -> int:
    """Return the smallest number of threads that is about as fast as any.

    The numbers take turns, each time with another part, and of a part the fastest time counts: what others do on the
    machine meanwhile only makes it longer.

    Args:
        n_threads: there are so many.
        n_parts: there are so many parts of a pass.
        seconds: measures how long a number of threads takes for a part.
    """
    if n_threads <= SMALL_MACHINE:
        return n_threads
    counts = [*(count for count in COUNTS if count < n_threads), n_threads]
    for part in range(n_parts):
        seconds(n_threads, part)  # brings it into memory
    best: dict[int, dict[int, float]] = {count: {} for count in counts}
    spent = 0.0
    for turn in range(VISITS * n_parts):
        for place, count in enumerate(counts):
            part = (turn + place) % n_parts
            took = seconds(count, part)
            best[count][part] = min(took, best[count].get(part, took))
            spent += took
        if spent >= SECONDS:
            break
    means = {count: sum(times.values()) / len(times) for count, times in best.items()}
    return min(count for count in counts if means[count] <= SLACK * min(means.values()))
