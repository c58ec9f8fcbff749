"""Rotary positions as data: the base, how many features turn, and how frequencies are stretched beyond a context."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from elutq_formats.errors import CheckpointError, UnsupportedModelError
from elutq_formats.fields import Fields


@dataclass(frozen=True)
class RopeScaling:
    """How the RoPE frequencies are stretched beyond the trained context.

    Attributes:
        rope_type: ``linear`` divides every frequency by ``factor``; ``llama3`` only the slow ones.
        factor: the stretch.
        low_freq_factor: llama3: wavelengths above ``original_max_position_embeddings / low_freq_factor`` are stretched.
        high_freq_factor: llama3: wavelengths below ``original_max_position_embeddings / high_freq_factor`` are kept.
        original_max_position_embeddings: llama3: the context before stretching, in tokens.
    """

    rope_type: Literal["llama3", "linear"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    @staticmethod
    def from_huggingface(settings: Mapping[str, Any]) -> "RopeScaling | None":
        """Read ``rope_scaling`` or ``rope_parameters`` of a ``config.json``; None when they leave RoPE as it is.

        Raises:
            UnsupportedModelError: a kind of scaling that is not implemented.
            CheckpointError: a field is missing or impossible.
        """
        fields = Fields(settings, "config.json: RoPE scaling")
        rope_type = fields["rope_type"] or fields["type"] or "default"
        if rope_type == "default":
            return None
        if rope_type == "linear":
            return RopeScaling("linear", fields.number("factor"))
        if rope_type != "llama3":
            raise UnsupportedModelError(f"RoPE scaling {rope_type!r:.60} is not supported: linear and llama3 are")
        low, high = fields.number("low_freq_factor"), fields.number("high_freq_factor")
        if high <= low:
            raise CheckpointError(
                f"config.json: RoPE scaling: high_freq_factor {high} is not above low_freq_factor {low}"
            )
        context = fields.integer("original_max_position_embeddings")
        return RopeScaling("llama3", fields.number("factor"), low, high, context)

    def to_huggingface(self) -> dict[str, Any]:
        """Return the settings that ``from_huggingface`` reads."""
        return asdict(self)

    def divisors(self, dimensions: int, rope_theta: float) -> npt.NDArray[np.float32]:
        """Return what each RoPE frequency is divided by: (dimensions / 2,) float32.

        Source: ``rope_type: llama3`` of Llama 3.1. Between the two wavelengths the frequency is a blend of itself and
        the stretched one, linear in the number of turns over the original context.
        """
        if self.rope_type == "linear":
            return np.full(dimensions // 2, self.factor, dtype=np.float32)
        frequencies = rope_theta ** (-np.arange(0, dimensions, 2, dtype=np.float64) / dimensions)
        turns = self.original_max_position_embeddings * frequencies / (2 * math.pi)
        kept = np.clip((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor), 0, 1)
        return (1 / (kept + (1 - kept) / self.factor)).astype(np.float32)


@dataclass(frozen=True)
class Rope:
    """How the heads of a layer turn with the position.

    Attributes:
        theta: base of the frequencies.
        dimensions: the first so many features of a head turn.
        scaling: stretch of the frequencies, if any.
    """

    theta: float
    dimensions: int
    scaling: RopeScaling | None = None

    def divisors(self) -> npt.NDArray[np.float32] | None:
        """Return what each frequency is divided by, (dimensions / 2,) float32, or None when unscaled."""
        return self.scaling.divisors(self.dimensions, self.theta) if self.scaling else None

    def frequencies(self) -> npt.NDArray[np.float64]:
        """Return the angles that a position adds: (dimensions / 2,) theta^(-2i / dimensions) / divisor_i."""
        frequencies = self.theta ** (-np.arange(0, self.dimensions, 2, dtype=np.float64) / self.dimensions)
        divisors = self.divisors()
        return frequencies if divisors is None else frequencies / divisors
