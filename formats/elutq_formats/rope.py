"""Rotary positions as data: the base, how many features turn, and how frequencies are stretched beyond a context."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from elutq_formats.errors import CheckpointError, UnsupportedModelError
from elutq_formats.fields import Fields

BETA_FAST, BETA_SLOW = 32.0, 1.0
"""Turns over the original context from which yarn keeps a frequency, and up to which it divides it; transformers'."""

KINDS = "linear, llama3, yarn and longrope are"


@dataclass(frozen=True)
class RopeScaling:
    """How the RoPE frequencies are stretched beyond the trained context.

    Attributes:
        rope_type: ``linear`` divides every frequency by ``factor``; ``llama3`` and ``yarn`` only the slow ones;
            ``longrope`` divides each by a number of its own.
        factor: the stretch.
        low_freq_factor: llama3: wavelengths above ``original_max_position_embeddings / low_freq_factor`` are stretched.
        high_freq_factor: llama3: wavelengths below ``original_max_position_embeddings / high_freq_factor`` are kept.
        original_max_position_embeddings: the context before stretching, in tokens; not of ``linear``.
        attention_factor: yarn, longrope: what cosines and sines are multiplied by.
        beta_fast: yarn: frequencies that turn more often over the original context are kept.
        beta_slow: yarn: frequencies that turn less often are divided by the factor.
        truncate: yarn: the features between which frequencies are blended are whole numbers.
        short_factor: longrope: what each frequency is divided by in sequences of the original context.
        long_factor: longrope: the same in longer ones.
    """

    rope_type: Literal["llama3", "linear", "yarn", "longrope"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    attention_factor: float = 1.0
    beta_fast: float = BETA_FAST
    beta_slow: float = BETA_SLOW
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    @staticmethod
    def from_huggingface(settings: Mapping[str, Any], context: int | None = None) -> "RopeScaling | None":
        """Read ``rope_scaling`` or ``rope_parameters`` of a ``config.json``; None when they leave RoPE as it is.

        Args:
            settings: to read.
            context: that the model is for, from which a stretch follows that is not given.

        Raises:
            UnsupportedModelError: a kind of scaling that is not implemented.
            CheckpointError: a field is missing or impossible.
        """
        fields = Fields(settings, "config.json: RoPE scaling")
        rope_type = fields["rope_type"] or fields["type"] or "default"
        if rope_type in (
            "default",
            "dynamic",
        ):  # which stretches beyond max_position_embeddings, and contexts end there
            return None
        if rope_type == "linear":
            return RopeScaling("linear", fields.number("factor"))
        if rope_type == "llama3":
            return _read_llama3(fields)
        if rope_type in ("yarn", "longrope", "su"):
            original = fields.integer("original_max_position_embeddings")
            factor = fields.number("factor", None if context is None else context / original)
            return _read_yarn(fields, factor, original) if rope_type == "yarn" else _read_long(fields, factor, original)
        raise UnsupportedModelError(f"RoPE scaling {rope_type!r:.60} is not supported: {KINDS}")

    def to_huggingface(self) -> dict[str, Any]:
        """Return the settings that ``from_huggingface`` reads."""
        names = _OLDEST if self.rope_type in ("linear", "llama3") else asdict(self)
        found = {name: getattr(self, name) for name in names}
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in found.items() if value != ()
        }

    def check(self, dimensions: int, rope_theta: float) -> None:
        """Check that it fits heads of which so many features turn, on this base.

        Raises:
            CheckpointError: it does not.
        """
        if self.rope_type == "yarn" and rope_theta <= 1:
            raise CheckpointError(f"RoPE scaling: yarn needs a rope_theta above 1, not {rope_theta}")
        for name in ("short_factor", "long_factor") if self.rope_type == "longrope" else ():
            if len(getattr(self, name)) != dimensions // 2:
                raise CheckpointError(
                    f"RoPE scaling: {name} has {len(getattr(self, name))} numbers, not {dimensions // 2}"
                )

    def divisors(self, dimensions: int, rope_theta: float, n_tokens: int = 1) -> npt.NDArray[np.float32]:
        """Return what each RoPE frequency is divided by in a sequence of so many tokens: (dimensions / 2,) float32."""
        if self.rope_type == "linear":
            return np.full(dimensions // 2, self.factor, dtype=np.float32)
        if self.rope_type == "longrope":
            return np.array(self.long_factor if self.is_long(n_tokens) else self.short_factor, dtype=np.float32)
        kept = self._kept(dimensions, rope_theta)
        return (1 / (kept + (1 - kept) / self.factor)).astype(np.float32)

    def is_long(self, n_tokens: int) -> bool:
        """Whether a sequence of so many tokens turns in another way than shorter ones."""
        return self.rope_type == "longrope" and n_tokens > self.original_max_position_embeddings

    def _kept(self, dimensions: int, rope_theta: float) -> npt.NDArray[np.float64]:
        """Return how much of each frequency stays as it is, beside what is divided by the factor: (dimensions / 2,).

        Source: ``rope_type: llama3`` of Llama 3.1, linear in the number of turns over the original context; Peng et al.
        2023 (YaRN), linear in the number of the feature, as transformers has it.
        """
        context = self.original_max_position_embeddings
        if self.rope_type == "llama3":
            frequencies = rope_theta ** (-np.arange(0, dimensions, 2, dtype=np.float64) / dimensions)
            turns = context * frequencies / (2 * math.pi)
            return np.clip((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor), 0, 1)

        def feature(turns: float) -> float:
            return dimensions * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(rope_theta))

        first, last = feature(self.beta_fast), feature(self.beta_slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, dimensions - 1)
        width = last - first or 0.001
        return np.asarray(1 - np.clip((np.arange(dimensions // 2) - first) / width, 0, 1))


_OLDEST = "rope_type", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"


def _read_llama3(fields: Fields) -> RopeScaling:
    low, high = fields.number("low_freq_factor"), fields.number("high_freq_factor")
    if high <= low:
        raise CheckpointError(f"config.json: RoPE scaling: high_freq_factor {high} is not above low_freq_factor {low}")
    context = fields.integer("original_max_position_embeddings")
    return RopeScaling("llama3", fields.number("factor"), low, high, context)


def _read_yarn(fields: Fields, factor: float, original: int) -> RopeScaling:
    """Read yarn; ``mscale`` and ``mscale_all_dim`` are DeepSeek's way to say the attention factor."""

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    found = scale(1.0)
    if fields["mscale"] and fields["mscale_all_dim"]:
        found = scale(fields.number("mscale")) / scale(fields.number("mscale_all_dim"))
    return RopeScaling(
        "yarn",
        factor,
        original_max_position_embeddings=original,
        attention_factor=fields.number("attention_factor", found),
        beta_fast=fields.number("beta_fast", BETA_FAST),
        beta_slow=fields.number("beta_slow", BETA_SLOW),
        truncate=fields.boolean("truncate", True),
    )


def _read_long(fields: Fields, factor: float, original: int) -> RopeScaling:
    found = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0
    return RopeScaling(
        "longrope",
        factor,
        original_max_position_embeddings=original,
        attention_factor=fields.number("attention_factor", found),
        short_factor=fields.numbers("short_factor"),
        long_factor=fields.numbers("long_factor"),
    )


@dataclass(frozen=True)
class Rope:
    """How the heads of a layer turn with the position.

    Attributes:
        theta: base of the frequencies.
        dimensions: the first so many features of a head turn; element i with element i + dimensions / 2.
        scaling: stretch of the frequencies, if any.
    """

    theta: float
    dimensions: int
    scaling: RopeScaling | None = None

    @property
    def attention_factor(self) -> float:
        """What cosines and sines are multiplied by."""
        return 1.0 if self.scaling is None else self.scaling.attention_factor

    def divisors(self, n_tokens: int = 1) -> npt.NDArray[np.float32] | None:
        """Return what each frequency is divided by, (dimensions / 2,) float32, or None when unscaled.

        Args:
            n_tokens: of the whole sequence.
        """
        return self.scaling.divisors(self.dimensions, self.theta, n_tokens) if self.scaling else None

    def frequencies(self, n_tokens: int = 1) -> npt.NDArray[np.float64]:
        """Return the angles that a position adds: (dimensions / 2,) theta^(-2i / dimensions) / divisor_i."""
        frequencies = self.theta ** (-np.arange(0, self.dimensions, 2, dtype=np.float64) / self.dimensions)
        divisors = self.divisors(n_tokens)
        return frequencies if divisors is None else frequencies / divisors
