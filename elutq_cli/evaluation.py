"""Perplexity of a model on a text, and how far its predictions are from those of a reference.

Source: perplexity exp(mean negative log-likelihood); Kullback-Leibler divergence KL(reference || model). The window
rule is the one under which transformers gives the same number: see `split_windows`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from elutq_formats.errors import ElutqError

Advance = Callable[[float], None]
"""Called with the number of windows' worth of work just done by one model."""

WINDOW_RULE = "no overlap, no BOS, the first token of each window not scored"

CHUNK_ELEMENTS = 1 << 20
"""Logits that are turned to float64 at once: a vocabulary of 128k takes 8 rows and 8 MB an array."""

MAX_NLL = 700.0
"""Nats: beyond this, perplexity is not a float64; a uniform guess over 128k tokens costs 12."""


class LogitsModel(Protocol):
    """Anything that gives the logits of one sequence."""

    def logits(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the logits (n, vocab_size) after each of tokens: (n,), a sequence of its own."""


@runtime_checkable
class WindowLogitsModel(LogitsModel, Protocol):
    """A model that gains from being handed all sequences at once, as one that reads its weights from disk does."""

    def window_logits(self, windows: NDArray[np.int64], advance: Advance) -> Iterator[NDArray[np.float32]]:
        """Yield the logits (n, vocab_size) of each of windows: (n_windows, n); calls of advance add up to n_windows."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        ppl: perplexity, exp(nll).
        ppl_stderr: standard error of ppl when the scored tokens are taken as independent.
        nll: mean negative log-likelihood of a scored token, in nats.
        n_tokens: tokens scored: windows * (ctx - 1).
        ctx: tokens in a window.
        windows: number of windows.
        kl: mean KL(reference || model) over the scored positions, in nats; None without a reference.
        top1: share of scored positions where model and reference hold the same token for the most likely;
            None without a reference.
    """

    ppl: float
    ppl_stderr: float
    nll: float
    n_tokens: int
    ctx: int
    windows: int
    kl: float | None = None
    top1: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that were measured."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def check_sizes(ctx: int, chunks: int | None) -> None:
    """Refuse sizes that no text can satisfy.

    Raises:
        ElutqError: ctx is less than 2, or chunks less than 1.
    """
    if ctx < 2:
        raise ElutqError(f"context size {ctx} is too small: a window needs at least 2 tokens to score one")
    if chunks is not None and chunks < 1:
        raise ElutqError(f"number of chunks is {chunks}: it must be at least 1")


def split_windows(tokens: Sequence[int] | NDArray[np.int64], ctx: int, chunks: int | None = None) -> NDArray[np.int64]:
    """Cut a tokenized text into windows that do not overlap; what is left at the end is not used.

    Args:
        tokens: the text, tokenized once without special tokens.
        ctx: tokens in a window, at least 2.
        chunks: use only the first so many windows; None: all.

    Returns:
        (n_windows, ctx) int64

    Raises:
        ElutqError: ctx or chunks is too small, or the text is empty or shorter than one window.
    """
    check_sizes(ctx, chunks)
    if len(tokens) == 0:
        raise ElutqError("the text is empty: nothing to evaluate")
    n_windows = len(tokens) // ctx
    if n_windows == 0:
        raise ElutqError(
            f"the text has {len(tokens)} tokens, less than one window of {ctx}: "
            "use a longer text or a smaller context size"
        )
    if chunks is not None:
        n_windows = min(n_windows, chunks)
    return np.asarray(tokens[: n_windows * ctx], dtype=np.int64).reshape(n_windows, ctx)


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return log(softmax) of the last axis in float64; NaN where a logit is not finite."""
    shifted = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):
        shifted -= shifted.max(axis=-1, keepdims=True)
        shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def evaluate(
    model: LogitsModel,
    windows: NDArray[np.int64],
    reference: LogitsModel | None = None,
    advance: Advance = lambda _: None,
) -> Evaluation:
    """Score every token of every window but its first.

    Args:
        model: what is measured.
        windows: (n_windows, ctx) from `split_windows`.
        reference: what it is compared with, over the same vocabulary.
        advance: progress; its calls add up to n_windows for the model and again for the reference.

    Raises:
        ElutqError: the vocabularies differ in size, or the logits are not finite.
    """
    n_windows, ctx = windows.shape
    losses = np.empty((n_windows, ctx - 1))
    divergences = np.empty((n_windows, ctx - 1))
    agreements = np.empty((n_windows, ctx - 1), dtype=bool)
    stream = _stream(model, windows, advance)
    reference_stream = None if reference is None else _stream(reference, windows, advance)
    for index, logits in enumerate(stream):
        expected = None if reference_stream is None else next(reference_stream)
        if expected is not None and expected.shape != logits.shape:
            raise ElutqError(
                f"the model has {logits.shape[-1]} tokens in its vocabulary and the reference {expected.shape[-1]}: "
                "compare a model with the checkpoint it was made from"
            )
        # The logits after the last token predict something outside the window.
        for rows in _row_chunks(ctx - 1, logits.shape[-1]):
            log_p = log_softmax(logits[rows])
            targets = windows[index, 1:][rows]
            losses[index, rows] = -log_p[np.arange(len(targets)), targets]
            if expected is not None:
                log_q = log_softmax(expected[rows])
                with np.errstate(invalid="ignore"):  # what is not finite is reported below
                    divergences[index, rows] = np.sum(np.exp(log_q) * (log_q - log_p), axis=-1)
                agreements[index, rows] = log_p.argmax(axis=-1) == log_q.argmax(axis=-1)
    finite = np.isfinite(losses).all() and (reference is None or np.isfinite(divergences).all())
    nll = float(losses.mean())
    if not finite or nll > MAX_NLL:
        raise ElutqError("the logits are not finite or absurdly large: the weights are damaged; make the model again")
    ppl = math.exp(nll)
    return Evaluation(
        ppl=ppl,
        ppl_stderr=ppl * float(losses.std()) / math.sqrt(losses.size),
        nll=nll,
        n_tokens=losses.size,
        ctx=ctx,
        windows=n_windows,
        kl=None if reference is None else float(divergences.mean()),
        top1=None if reference is None else float(agreements.mean()),
    )


def _stream(model: LogitsModel, windows: NDArray[np.int64], advance: Advance) -> Iterator[NDArray[np.float32]]:
    """Yield the logits of each window."""
    if isinstance(model, WindowLogitsModel):
        yield from model.window_logits(windows, advance)
        return
    for window in windows:
        logits = model.logits(window)
        advance(1.0)
        yield logits


def _row_chunks(n_rows: int, vocab_size: int) -> Iterator[slice]:
    """Cut n_rows rows of logits into slices of at most CHUNK_ELEMENTS elements."""
    step = max(1, CHUNK_ELEMENTS // vocab_size)
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))
