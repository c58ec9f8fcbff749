"""Choosing the next token: greedy, temperature, top-k, top-p, min-p and three penalties."""

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elutq_cli.options import OptionError, settle_types
from elutq_formats.errors import ElutqError
from elutq_formats.sampling_defaults import ALL_TOKENS, SamplingDefaults

LARGEST = 1e30
"""Of penalties and biases: what float32 adds up, over any context, without an overflow."""

NEW_SEED = -1
"""Stands for a seed that nobody knows yet, here and where users name one."""


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen, in the order in which the options apply.

    Attributes:
        repeat_penalty: Divides positive and multiplies negative logits of the last ``repeat_last_n`` tokens; 1 is off.
        presence_penalty: Taken off the logit of every such token; 0 is off.
        frequency_penalty: Taken off once for each time it occurs; 0 is off.
        repeat_last_n: How far back the penalties look, in tokens; -1 is the whole context.
        top_k: Keep the k likeliest tokens; 0 or -1 keeps all.
        top_p: Keep the smallest set of likeliest tokens whose probabilities reach p; 1 keeps all, 0 the likeliest.
        min_p: Drop tokens less likely than min_p times the likeliest; 0 drops none.
        temp: Temperature of what is left; 0 takes the likeliest token.
        seed: Seeds the draw; the same seed, logits and options give the same tokens.
        logit_bias: Token ids, and what is added to their logits before anything else; -100 bans a token in practice.
    """

    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_last_n: int = 64
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    temp: float = 0.8
    seed: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()

    @classmethod
    def of(cls, defaults: SamplingDefaults, **given: Any) -> "SamplingOptions":  # noqa: ANN401 (each its own type)
        """Returns a user's options; below them are the model's own, and below these the ones above.

        Args:
            defaults: The model's own, as its file has them.
            given: The user's, by name; None is not given. A seed of NEW_SEED stands for one that nobody knows yet.

        Raises:
            OptionError: One is of a wrong type or out of range.
        """
        options = {**defaults, **{name: value for name, value in given.items() if value is not None}}
        if options.get("seed") == NEW_SEED:
            options["seed"] = random.getrandbits(32)
        return cls(**options)

    def __post_init__(self) -> None:
        """Check every option; ``logit_bias`` may be a mapping, and name a token by its digits as JSON does.

        Raises:
            OptionError: One is of a wrong type or out of range.
        """
        settle_types(self)
        within = f"between -{LARGEST:g} and {LARGEST:g}"
        repeat_range = f"between {1 / LARGEST:g} and {LARGEST:g}"
        checks = (
            ("repeat_penalty", "repeat penalty", 1 / LARGEST <= self.repeat_penalty <= LARGEST, repeat_range),
            ("repeat_last_n", "repeat-last-n", self.repeat_last_n >= -1, "-1 or more"),
            ("presence_penalty", "presence penalty", abs(self.presence_penalty) <= LARGEST, within),
            ("frequency_penalty", "frequency penalty", abs(self.frequency_penalty) <= LARGEST, within),
            ("top_k", "top-k", self.top_k >= ALL_TOKENS, "1 or more, or 0 or -1 for all"),
            ("top_p", "top-p", 0 <= self.top_p <= 1, "between 0 and 1"),
            ("min_p", "min-p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("temp", "temperature", self.temp >= 0, "0 or more"),
            ("seed", "seed", self.seed >= 0, "0 or more, or -1 for a new one"),
        )
        for option, name, valid, range_ in checks:
            value = getattr(self, option)
            if not (valid and math.isfinite(value)):
                raise OptionError(option, f"is {value}: it must be {range_}", name)
        for token, bias in self.logit_bias:
            if not abs(bias) <= LARGEST:
                raise OptionError("logit_bias", f"is {bias}: it must be {within}", f"the bias of token {token}")


class Sampler:
    """Draws tokens from logits."""

    def __init__(self, options: SamplingOptions) -> None:
        self.options = options
        self._random = np.random.Generator(np.random.PCG64(options.seed))

    def sample(
        self, logits: NDArray[np.float32], history: Sequence[int], allowed: NDArray[np.int64] | None = None
    ) -> int:
        """Returns the next token.

        Args:
            logits: (vocab_size,) float32; not changed. A token at -inf cannot be drawn.
            history: Tokens of the context so far, oldest first; the penalties look at its end.
            allowed: (n,) int64, ascending: the tokens to choose from; None: all.

        Raises:
            ElutqError: The largest logit is not finite, as damaged weights make it.
        """
        logits = self._penalised(self._biased(logits), history)
        if allowed is not None:
            logits = logits.take(allowed, mode="clip")  # twice as fast as an index
        if not np.isfinite(logits.max()):
            raise ElutqError("the logits are not finite: the weights are damaged; make the model again")
        chosen = self._choose(logits)
        return chosen if allowed is None else int(allowed[chosen])

    def _choose(self, logits: NDArray[np.float32]) -> int:
        """Returns the place of a token among (n,) logits."""
        options = self.options
        if options.temp == 0:
            return int(np.argmax(logits))
        kept = largest(logits, options.top_k if options.top_k > 0 else len(logits))
        probabilities = _softmax(logits[kept].astype(np.float64))
        if options.top_p < 1:
            n_needed = int(np.searchsorted(np.cumsum(probabilities), options.top_p)) + 1
            kept, probabilities = kept[:n_needed], probabilities[:n_needed]
        if options.min_p > 0:
            n_likely = int(np.count_nonzero(probabilities >= options.min_p * probabilities[0]))
            kept = kept[:n_likely]
        below = logits[kept].astype(np.float64) - float(logits[kept[0]])  # the likeliest comes first
        with np.errstate(over="ignore"):  # by the smallest temperatures: no chance at all
            probabilities = _softmax(below / options.temp)
        drawn = np.searchsorted(np.cumsum(probabilities), self._random.random() * probabilities.sum(), side="right")
        # The likeliest come first: what cannot be drawn (-inf) is at the end, and rounding must not reach it.
        return int(kept[min(int(drawn), int(np.count_nonzero(probabilities)) - 1)])

    def _biased(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        if not self.options.logit_bias:
            return logits
        biased: NDArray[np.float32] = logits.copy()
        for token, bias in self.options.logit_bias:
            biased[token] += np.float32(bias)
        return biased

    def _penalised(self, logits: NDArray[np.float32], history: Sequence[int]) -> NDArray[np.float32]:
        options = self.options
        if options.repeat_penalty == 1 and options.presence_penalty == 0 and options.frequency_penalty == 0:
            return logits
        recent = history if options.repeat_last_n < 0 else history[max(0, len(history) - options.repeat_last_n) :]
        counts = Counter(recent)
        if not counts:
            return logits
        tokens = np.fromiter(counts.keys(), np.int64)
        times = np.fromiter(counts.values(), np.float32)
        values = logits[tokens]
        values = np.where(values > 0, values / options.repeat_penalty, values * options.repeat_penalty)
        penalised: NDArray[np.float32] = logits.copy()
        penalised[tokens] = values - options.presence_penalty - options.frequency_penalty * times
        return penalised


COLUMN = 64
"""Values of which one maximum is taken: partitioning the maxima takes a fifth of the time of partitioning them all."""


def largest(values: NDArray[np.floating], n: int) -> NDArray[np.int64]:
    """Returns the tokens with the n largest of (vocab_size,) values, the largest first, the lower id among equals."""
    n_columns = len(values) // COLUMN
    if 0 < n < n_columns:
        # The n largest of the columns' maxima are n values: no smaller one is among the n largest of all.
        maxima = values[: COLUMN * n_columns].reshape(COLUMN, n_columns).max(axis=0)
        candidates = np.flatnonzero(values >= np.partition(maxima, n_columns - n)[n_columns - n])
    else:
        candidates = np.arange(len(values))
    order = np.argsort(-values[candidates], kind="stable")
    return candidates[order][:n]


def log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns the natural logarithm of the softmax of (vocab_size,) logits."""
    shifted = logits.astype(np.float64) - float(logits.max())
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    exponentials = np.exp(logits - logits.max())
    probabilities: NDArray[np.float64] = exponentials / exponentials.sum()
    return probabilities
