"""How long contexts may be, and how many: a machine's memory against the bytes of keys and values, and their type."""

from bisect import bisect_right
from collections.abc import Callable
from typing import Any

from elutq_formats.errors import ElutqError
from elutq_native import CACHE_TYPES

STEP = 256
"""Contexts that are fitted to memory are multiples of this many tokens, where there is room for one."""

FLOOR = 512
"""The shortest context that is tried when memory is short: less is of no use in a conversation."""

SHARE = 2
"""A fitted KV cache takes at most one part in so many of the memory that the weights leave."""

CacheBytes = Callable[[int], int]
"""Bytes of the keys and values of a context of so many tokens; never fewer for more tokens."""

SLOT_TOKENS = 4096
"""Where nobody says how many slots there are to be, each has room for so many tokens, or for the model's context."""

FEWEST_SLOTS, MOST_SLOTS = 4, 16
"""As many as cores, but between these: texts that are made together read the weights once, on one core too."""


class ContextOverflowError(ElutqError):
    """A prompt is longer than the context.

    Attributes:
        n_tokens: of the prompt, or fewer where it was not read to its end.
        amount: the same in words: ``700``, or ``more than 700``.
        ctx_size: tokens that the context holds.
    """

    def __init__(self, n_tokens: int, ctx_size: int, maximum: int, at_least: bool = False) -> None:
        """Describe it.

        Args:
            n_tokens: of the prompt.
            ctx_size: tokens that the context holds.
            maximum: the largest context that the model allows.
            at_least: whether the prompt has more tokens still.
        """
        self.n_tokens, self.ctx_size = n_tokens, ctx_size
        self._rest = maximum, at_least
        self.amount = f"more than {n_tokens}" if at_least else f"{n_tokens}"
        advice = f" or use a larger context (-c; the model allows {maximum})" if ctx_size < maximum else ""
        super().__init__(
            f"the prompt has {self.amount} tokens, the context holds {ctx_size}: shorten the prompt{advice}"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Come through to another process as it is."""
        return type(self), (self.n_tokens, self.ctx_size, *self._rest)


def longest_context(maximum: int, cache_bytes: CacheBytes, memory: int) -> int:
    """Return how many tokens, 0 to ``maximum``, a context can have whose KV cache takes at most so much memory."""
    return bisect_right(range(1, maximum + 1), memory, key=cache_bytes)


def fit_context(maximum: int, cache_bytes: CacheBytes, file_bytes: int, memory: int | None, n_contexts: int = 1) -> int:
    """Return the longest context whose KV cache leaves room for the weights and for other programs.

    Args:
        maximum: tokens that the model was trained for.
        cache_bytes: of one context.
        file_bytes: the weights, which are mapped and want to stay in memory.
        memory: bytes available; None: unknown, and the model's own maximum is used.
        n_contexts: how many there are to be.
    """
    if memory is None:
        return maximum
    tokens = longest_context(maximum, cache_bytes, max(0, memory - file_bytes) // SHARE // n_contexts)
    return maximum if tokens == maximum else min(max(tokens // STEP * STEP, FLOOR), maximum)


def choose_parallel(
    ctx_size: int | None, maximum: int, cache_bytes: CacheBytes, file_bytes: int, memory: int | None, n_cores: int
) -> int:
    """Return how many texts can be made at a time: as memory and cores allow, one at least.

    Args:
        ctx_size: tokens of each context; None: not chosen yet.
        maximum: tokens that the model was trained for.
        cache_bytes: of one context.
        file_bytes: the weights, which are mapped and want to stay in memory.
        memory: bytes available; None: unknown.
        n_cores: of this machine.
    """
    most = max(FEWEST_SLOTS, min(n_cores, MOST_SLOTS))
    if memory is None:
        return most
    n_contexts = max(0, memory - file_bytes) // SHARE // cache_bytes(min(maximum, ctx_size or SLOT_TOKENS))
    return max(1, min(most, n_contexts))


def check_context(
    ctx_size: int, maximum: int, cache_bytes: CacheBytes, memory: int | None, n_contexts: int = 1
) -> None:
    """Refuse contexts that the model or the machine cannot hold, before anything is allocated.

    Raises:
        ElutqError: they are out of range, or their KV cache is larger than the memory available.
    """
    if not 1 <= ctx_size <= maximum:
        raise ElutqError(
            f"a context of {ctx_size} tokens is not between 1 and the model's {maximum}: choose another (-c)"
        )
    needed = n_contexts * cache_bytes(ctx_size)
    if memory is not None and needed > memory:
        contexts = f"a context of {ctx_size} tokens needs"
        if n_contexts > 1:
            contexts = f"{n_contexts} contexts of {ctx_size} tokens need"
        raise ElutqError(
            f"{contexts} {needed / 1e9:.2f} GB for keys and values, and only "
            f"{memory / 1e9:.2f} GB are available: "
            f"use at most {max(1, longest_context(maximum, cache_bytes, memory // 2 // n_contexts))} tokens (-c)"
            + (", or fewer texts at a time (--parallel)" if n_contexts > 1 else "")
        )


def checked_cache_type(cache_type: str) -> str:
    """Return a type of cache.

    Raises:
        ElutqError: there is none of that name.
    """
    if cache_type not in CACHE_TYPES:
        raise ElutqError(f"cache type {cache_type} is not known: choose {' or '.join(CACHE_TYPES)}")
    return cache_type


def choose_context(ctx_size: int | None, n_prompt: int, n_predict: int, maximum: int) -> int | None:
    """Return the context for one text: as asked for, else what the prompt and the text to come need.

    Args:
        ctx_size: tokens asked for, or None.
        n_prompt: tokens of the prompt.
        n_predict: tokens to come; -1: as many as there is room for.
        maximum: tokens that the model was trained for.

    Returns:
        A number of tokens, or None: what fits into memory.

    Raises:
        ElutqError: the prompt has no tokens.
    """
    if n_prompt == 0:
        raise ElutqError("the prompt has no tokens: give some text to continue")
    if ctx_size is not None:
        return ctx_size
    if n_predict < 0:
        return None
    return min(maximum, n_prompt + max(n_predict, 1))
