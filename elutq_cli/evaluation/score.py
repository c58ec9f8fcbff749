"""Perplexity of a model on a text, and how far its predictions are from those of a reference.

Source: perplexity exp(mean negative log-likelihood); Kullback-Leibler divergence KL(reference || model). Which tokens
count: `elutq_cli.evaluation.windows`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from elutq_cli.evaluation.windows import Windows
from elutq_formats.errors import ElutqError

Advance = Callable[[float], None]
"""Called with the number of windows' worth of work just done by one model."""

CHUNK_ELEMENTS = 1 << 18
"""Logits that are turned to float64 at once: 2 MB an array, so that the few arrays of a comparison stay in a cache."""

MAX_NLL = 700.0
"""Nats: beyond this, perplexity is not a float64; a uniform guess over 128k tokens costs 12."""


DAMAGED = "the logits are not finite or absurdly large: the weights are damaged; make the model again"


class LogitsModel(Protocol):
    """Anything that gives the logits of one sequence."""

    def logits(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the logits (n, vocab_size) after each of tokens: (n,), a sequence of its own."""


@runtime_checkable
class WindowLogitsModel(Protocol):
    """A model that gains from being handed all sequences at once, as one that reads its weights from disk does."""

    def window_logits(
        self, windows: NDArray[np.int64], advance: Advance, n_logits: Sequence[int]
    ) -> Iterator[NDArray[np.float32]]:
        """Yield the logits of some sequences.

        Args:
            windows: (n_windows, n) token ids.
            advance: progress; its calls add up to n_windows.
            n_logits: of each window, after how many of its last tokens logits are wanted: (n_logits, vocab_size).
        """


AnyLogitsModel = LogitsModel | WindowLogitsModel


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        ppl: perplexity, exp(nll).
        ppl_stderr: standard error of ppl when the scored tokens are taken as independent.
        nll: mean negative log-likelihood of a scored token, in nats.
        n_tokens: tokens scored.
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


class Distributions:
    """What rows of logits say of the next tokens, in float64; NaN where a logit is not finite.

    With `shifted` s and `total` z, a token's log-probability is s - log(z), and

        KL(p || q) = sum(exp(s_p) (s_p - s_q)) / z_p + log(z_q) - log(z_p),

    one exponential of the vocabulary for each of the two.

    Attributes:
        shifted: (n, vocab_size), logits less their row's largest.
        weights: (n, vocab_size), exp(shifted).
        total: (n,), the sum of a row's weights.
        likeliest: (n,), the token of the largest logit.
    """

    def __init__(self, logits: NDArray[np.float32]) -> None:
        """Take logits (n, vocab_size)."""
        self.likeliest: NDArray[np.int64] = logits.argmax(axis=-1)
        self.shifted: NDArray[np.float64] = logits.astype(np.float64)
        with np.errstate(invalid="ignore"):  # what is not finite is reported at the end
            self.shifted -= self.shifted.max(axis=-1, keepdims=True)
        self.weights: NDArray[np.float64] = np.exp(self.shifted)
        self.total: NDArray[np.float64] = self.weights.sum(axis=-1)

    def log_probabilities(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the log-probability (n,) of each row's token."""
        return self.shifted[np.arange(len(tokens)), tokens] - np.log(self.total)

    def divergence_from(self, reference: Distributions) -> NDArray[np.float64]:
        """Return KL(reference || self) of each row: (n,), in nats."""
        with np.errstate(invalid="ignore"):
            difference = reference.shifted - self.shifted
            mean: NDArray[np.float64] = np.einsum("nv,nv->n", reference.weights, difference) / reference.total
        return mean + np.log(self.total) - np.log(reference.total)


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return log(softmax) of logits (..., vocab_size) in float64; NaN where a logit is not finite."""
    found = Distributions(logits)
    return found.shifted - np.log(found.total)[..., None]


def evaluate(
    model: AnyLogitsModel,
    windows: Windows,
    reference: AnyLogitsModel | None = None,
    advance: Advance = lambda _: None,
) -> Evaluation:
    """Score the tokens of the windows.

    Args:
        model: what is measured.
        windows: from `split_windows`.
        reference: what it is compared with, over the same vocabulary.
        advance: progress; its calls add up to the number of windows for the model and again for the reference.

    Raises:
        ElutqError: the vocabularies differ in size, or the logits are not finite.
    """
    return evaluate_all([model], windows, reference, advance)[0]


def evaluate_all(
    models: Sequence[AnyLogitsModel],
    windows: Windows,
    reference: AnyLogitsModel | None = None,
    advance: Advance = lambda _: None,
) -> list[Evaluation]:
    """Score several models side by side: window by window, so that the reference is computed once.

    Args:
        models: what is measured.
        windows: from `split_windows`.
        reference: what they are compared with, over the same vocabulary.
        advance: progress; its calls add up to the number of windows for each model and for the reference.

    Returns:
        One evaluation for each model, and a last one for the reference when there is one.

    Raises:
        ElutqError: the vocabularies differ in size, or the logits are not finite.
    """
    tallies = [_Tally(reference is not None) for _ in models]
    reference_tally = _Tally(compared=False)
    with ExitStack() as stack:  # what a stream holds is given back before the model it is of
        streams = [stack.enter_context(closing(_stream(model, windows, advance))) for model in models]
        reference_stream = None
        if reference is not None:
            reference_stream = stack.enter_context(closing(_stream(reference, windows, advance)))
        for window, first in zip(windows.tokens, windows.first_scored, strict=True):
            # The logits before a token predict it; those after the last predict something outside the window.
            targets = window[first:]
            expected = None if reference_stream is None else next(reference_stream)[:-1]
            found = [next(stream)[:-1] for stream in streams]
            _check_vocabularies(found, expected)
            for rows in row_chunks(len(targets), found[0].shape[-1]):
                reference_rows = None
                if expected is not None:
                    reference_rows = Distributions(expected[rows])
                    reference_tally.add(reference_rows, targets[rows])
                for tally, logits in zip(tallies, found, strict=True):
                    tally.add(Distributions(logits[rows]), targets[rows], reference_rows)
            del found, expected, logits  # before the next window's are made
    if reference is not None:
        tallies.append(reference_tally)
    return [tally.result(windows) for tally in tallies]


def _check_vocabularies(found: list[NDArray[np.float32]], expected: NDArray[np.float32] | None) -> None:
    """Raise when the models have not as many tokens as the reference."""
    for logits in found:
        if expected is not None and expected.shape != logits.shape:
            raise ElutqError(
                f"the model has {logits.shape[-1]} tokens in its vocabulary and the reference {expected.shape[-1]}: "
                "compare a model with the checkpoint it was made from"
            )


class _Tally:
    """What one model has scored so far."""

    def __init__(self, compared: bool) -> None:
        self.compared = compared
        self.losses: list[NDArray[np.float64]] = []
        self.divergences: list[NDArray[np.float64]] = []
        self.agreements: list[NDArray[np.bool_]] = []

    def add(self, found: Distributions, targets: NDArray[np.int64], reference: Distributions | None = None) -> None:
        """Score targets (n,) by what the model says of them, and compare with the reference."""
        self.losses.append(-found.log_probabilities(targets))
        if reference is not None:
            self.divergences.append(found.divergence_from(reference))
            self.agreements.append(found.likeliest == reference.likeliest)

    def result(self, windows: Windows) -> Evaluation:
        """Return the means."""
        losses = np.concatenate(self.losses)
        divergences = np.concatenate(self.divergences) if self.compared else None
        nll = float(losses.mean())
        finite = np.isfinite(losses).all() and (divergences is None or np.isfinite(divergences).all())
        if not finite or nll > MAX_NLL:
            raise ElutqError(DAMAGED)
        ppl = math.exp(nll)
        return Evaluation(
            ppl=ppl,
            ppl_stderr=ppl * float(losses.std()) / math.sqrt(losses.size),
            nll=nll,
            n_tokens=losses.size,
            ctx=windows.ctx,
            windows=len(windows),
            kl=None if divergences is None else float(divergences.mean()),
            top1=float(np.concatenate(self.agreements).mean()) if self.compared else None,
        )


def _stream(model: AnyLogitsModel, windows: Windows, advance: Advance) -> Generator[NDArray[np.float32], None, None]:
    """Yield the logits of each window from those on that predict its first scored token."""
    n_logits = [int(windows.ctx - first + 1) for first in windows.first_scored]
    if isinstance(model, WindowLogitsModel):
        yield from model.window_logits(windows.tokens, advance, n_logits)
        return
    for window, n_wanted in zip(windows.tokens, n_logits, strict=True):
        logits = model.logits(window)
        advance(1.0)
        yield logits[-n_wanted:]
        del logits


def row_chunks(n_rows: int, vocab_size: int) -> Iterator[slice]:
    """Cut n_rows rows of logits into slices of at most CHUNK_ELEMENTS elements."""
    step = max(1, CHUNK_ELEMENTS // vocab_size)
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))
