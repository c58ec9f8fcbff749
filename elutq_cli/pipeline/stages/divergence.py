"""How far the quantized model's predictions are from the exact one's: on text that calibration saw, and on other text.

Both heads are applied to what the last blocks made of a few sequences, some rows of the vocabulary at a time: neither a
whole head nor the logits of a whole vocabulary are in memory.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from elutq_cli.pipeline.compute.backend import Backend
from elutq_cli.pipeline.compute.levels import FloatArray
from elutq_cli.pipeline.compute.products import AT_ONCE, multiply, pieces, quiet
from elutq_cli.pipeline.stages.streams import Pair, Streams
from elutq_cli.reference import Array, Namespace
from elutq_cli.reference.attention import soften

log = logging.getLogger(__name__)

TOKENS_AT_ONCE = 128
"""Tokens whose logits for some rows of the vocabulary are in memory together."""

DIGITS = 6
"""Decimals of a divergence that are kept."""

DoubleArray = npt.NDArray[np.float64]

HeadRows = tuple[FloatArray, FloatArray]
"""Rows of a head, (rows, hidden_size) float32: as the checkpoint has them, and dequantized."""


@dataclass(frozen=True)
class Divergence:
    """KL(exact || quantized) of the predictions, in nats a token.

    Attributes:
        seen: on sequences that calibration saw.
        unseen: on others of the same text; None where it has none to spare.
    """

    seen: float
    unseen: float | None


def measure_divergence(
    streams: Streams,
    head_input: Callable[[Array], Array],
    head: Iterable[HeadRows],
    backend: Backend,
    softcap: float | None = None,
) -> Divergence | None:
    """Compare predictions on the calibration sequences that are compared and on those that are held out.

    Args:
        streams: the last blocks' outputs.
        head_input: applies the last norm.
        head: all rows of it, in runs.
        backend: runs a unit of work for some tokens and rows.
        softcap: of the logits; None: none.

    Returns:
        None where the predictions are not finite, with a warning.
    """
    seen = streams.compared()
    held_out = [] if streams.held_out_pair is None else list(zip(*streams.held_out_pair, strict=True))
    found = divergences([*seen, *held_out], head_input, head, backend, softcap)
    if not np.isfinite(found).all():
        log.warning("the model's predictions on the calibration text are not finite: it cannot be used on such text")
        return None
    of_seen, of_others = found[: len(seen)], found[len(seen) :]
    return Divergence(_mean(of_seen), _mean(of_others) if len(of_others) else None)


def divergences(
    sequences: Sequence[Pair],
    head_input: Callable[[Array], Array],
    head: Iterable[HeadRows],
    backend: Backend,
    softcap: float | None = None,
) -> DoubleArray:
    """Return KL(exact || quantized) of each sequence's predictions, in nats a token: (sequences,).

    Args:
        sequences: (n, hidden_size) float32 twice, the last block's output on the quantized and in the exact model; all
            of the same n.
        head_input: applies the last norm.
        head: all rows of it, in runs.
        backend: runs a unit of work for some tokens and rows.
        softcap: of the logits; None: none.
    """
    tallies = [
        _Tally(hidden[tokens], exact[tokens])
        for hidden, exact in sequences
        for tokens in pieces(len(hidden), TOKENS_AT_ONCE)
    ]
    for rows in head:
        exact_rows, quantized_rows = map(backend.arrays.place, rows)
        add = partial(_add_rows, head_input, exact_rows, quantized_rows, backend, softcap)
        pairs = [(tally.exact, tally.hidden) for tally in tallies]
        for tally, said in zip(tallies, backend.light.map(quiet(add), pairs, AT_ONCE), strict=True):
            quiet(tally.merge)(said)
    of_tokens = np.concatenate([tally.divergence() for tally in tallies])
    return np.asarray(of_tokens.reshape(len(sequences), -1).mean(axis=1))


class _Tally:
    """What the rows of the head so far say of some tokens' predictions.

    Of logits a (exact) and b (quantized), with log Z the logarithm of their summed exponentials and E_a the mean under
    the exact predictions, KL = E_a[a - b] - log Z_a + log Z_b.
    """

    def __init__(self, hidden: FloatArray, exact: FloatArray) -> None:
        self.hidden, self.exact = hidden, exact
        self._log_a = self._log_b = np.full(len(hidden), -np.inf)
        self._gap = np.zeros(len(hidden))

    def merge(self, said: tuple[DoubleArray, DoubleArray, DoubleArray]) -> None:
        """Take what further rows say: log Z_a, log Z_b and E_a[a - b] over them alone, (tokens,) each."""
        log_a, log_b, gap = said
        both = np.logaddexp(self._log_a, log_a)
        self._gap = self._gap * np.exp(self._log_a - both) + gap * np.exp(log_a - both)
        self._log_a, self._log_b = both, np.logaddexp(self._log_b, log_b)

    def divergence(self) -> DoubleArray:
        """Return that of each token."""
        return np.asarray(self._gap - self._log_a + self._log_b)


def _add_rows(
    head_input: Callable[[Array], Array],
    exact_rows: Array,
    quantized_rows: Array,
    backend: Backend,
    softcap: float | None,
    streams: tuple[FloatArray, FloatArray],
) -> tuple[DoubleArray, DoubleArray, DoubleArray]:
    """A unit of work: what rows of both heads say of some tokens, from their streams (exact, quantized)."""
    xp = backend.arrays.xp
    exact, hidden = map(backend.arrays.place, streams)
    a = soften(multiply(head_input(exact), exact_rows.T, backend), softcap, xp)
    b = soften(multiply(head_input(hidden), quantized_rows.T, backend), softcap, xp)
    weights_a, log_a = _exponentials(a, xp)
    _, log_b = _exponentials(b, xp)
    gap = xp.sum(weights_a * (a - b), axis=-1) / xp.sum(weights_a, axis=-1)
    log_a, log_b, gap = (backend.arrays.fetch(found).astype(np.float64) for found in (log_a, log_b, gap))
    return log_a, log_b, gap


def _exponentials(logits: Array, xp: Namespace) -> tuple[Array, Array]:
    """Return exponentials of logits (tokens, rows), relative to each token's largest, and the log of their true sum."""
    top = xp.amax(logits, axis=-1, keepdims=True)
    found = xp.exp(logits - top)
    return found, top[:, 0] + xp.log(xp.sum(found, axis=-1))


def _mean(values: DoubleArray) -> float:
    return round(max(0.0, float(values.mean())), DIGITS)
