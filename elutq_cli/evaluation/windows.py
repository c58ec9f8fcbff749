"""How a text is cut into windows, and which of their tokens are scored: perplexities compare under one rule only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from elutq_formats.errors import ElutqError

Rule = Literal["papers", "llama.cpp"]

RULES: tuple[Rule, ...] = ("papers", "llama.cpp")


@dataclass(frozen=True)
class Windows:
    """A text cut up.

    Attributes:
        tokens: (n_windows, ctx) int64
        first_scored: (n_windows,) int64; in each window the tokens from this one on are scored, given those before.
        description: the rule, for a reader.
    """

    tokens: NDArray[np.int64]
    first_scored: NDArray[np.int64]
    description: str

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.tokens)

    @property
    def ctx(self) -> int:
        """Tokens in a window."""
        return int(self.tokens.shape[1])


def checked_rule(rule: str) -> Rule:
    """Return the rule of that name.

    Raises:
        ElutqError: there is none.
    """
    for known in RULES:
        if rule == known:
            return known
    raise ElutqError(f"--rule is {rule}: choose {' or '.join(RULES)}")


def check_sizes(ctx: int, chunks: int | None, stride: int | None = None, rule: Rule = "papers") -> None:
    """Refuse sizes that no text can satisfy.

    Raises:
        ElutqError: ctx is less than 2, chunks less than 1, stride not between 1 and ctx or given under a rule that has
            none, or the rule unknown.
    """
    if ctx < 2:
        raise ElutqError(f"context size {ctx} is too small: a window needs at least 2 tokens to score one")
    if chunks is not None and chunks < 1:
        raise ElutqError(f"number of chunks is {chunks}: it must be at least 1")
    if rule not in RULES:
        raise ElutqError(f"window rule {rule} is not known: choose {' or '.join(RULES)}")
    if stride is not None and rule != "papers":
        raise ElutqError(f"windows overlap (--stride) under the papers' rule only: leave out --rule {rule}")
    if stride is not None and not 1 <= stride <= ctx:
        raise ElutqError(f"stride is {stride}: it must be between 1 and the context size {ctx}")
    if rule == "llama.cpp" and ctx < 4:
        raise ElutqError(f"context size {ctx} is too small: the second half of a window must have 2 tokens")


def split_windows(
    tokens: Sequence[int] | NDArray[np.int64],
    ctx: int,
    chunks: int | None = None,
    stride: int | None = None,
    rule: Rule = "papers",
    bos: int | None = None,
) -> Windows:
    """Cut a tokenized text into windows; what is left at the end is not used.

    Args:
        tokens: the text, tokenized once without special tokens; under llama.cpp's rule with the BOS that the tokenizer
            adds.
        ctx: tokens in a window, at least 2.
        chunks: use only the first so many windows; None: all.
        stride: a window begins so many tokens after the one before it; None: where that one ends.
        rule: ``papers``: every token of a window but its first is scored; with a stride, only those that no window
            before scored. ``llama.cpp``: the first token of each window is replaced by BOS, and the tokens behind the
            middle are scored.
        bos: llama.cpp's rule: BOS, for a tokenizer that adds one.

    Raises:
        ElutqError: a size is out of range, or the text is empty or shorter than one window.

    Source: ``papers``: GPTQ's evaluation, and transformers on the same windows; with a stride, the sliding window of
    transformers' page on perplexity, without its last, shorter window. ``llama.cpp``: ``perplexity`` of
    tools/perplexity, first token scored ``n_ctx / 2 + 1``.
    """
    check_sizes(ctx, chunks, stride, rule)
    if len(tokens) == 0:
        raise ElutqError("the text is empty: nothing to evaluate")
    if len(tokens) < ctx:
        raise ElutqError(
            f"the text has {len(tokens)} tokens, less than one window of {ctx}: "
            "use a longer text or a smaller context size"
        )
    step = stride or ctx
    starts = np.arange(0, len(tokens) - ctx + 1, step)[:chunks]
    cut = np.asarray(tokens, dtype=np.int64)[starts[:, None] + np.arange(ctx)]
    if rule == "llama.cpp":
        if bos is not None:
            cut[:, 0] = bos
        first = np.full(len(cut), ctx // 2 + 1)
        start = "BOS first in each window" if bos is not None else "no BOS"
        return Windows(cut, first, f"llama.cpp's rule: no overlap, {start}, the second half of each window scored")
    first = np.full(len(cut), max(1, ctx - step))
    first[0] = 1
    if step < ctx:
        description = f"windows {step} tokens apart, no BOS, every token but the first scored once"
    else:
        description = "papers' rule: no overlap, no BOS, the first token of each window not scored"
    return Windows(cut, first, description)
