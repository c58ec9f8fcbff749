"""How a quantized matrix lies in the file: what its size follows from, and what is chosen for each."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from elutq_cli.reference import Array
from elutq_formats.block_kind import FREE16, BlockKind
from elutq_formats.constants import HLQ_MAX_BITS, MAX_EXPONENT, TILE_ROWS
from elutq_formats.hlq import block_bytes

FREE8, EVEN8C = "free8", "even8c"

KIND_OF_SCALES = {8: FREE8, 16: FREE16.name}
"""By the bits that a half scale or a center takes."""

BYTES_BELOW = 7
"""Bytes alone are below two to the minus this."""

MOST_SPREAD, SPREAD_PER_BIT = 128.0, 2.5
"""Matrices whose bytes reach further than this times the mean magnitude of their weights, at 4 bits, and at each bit
less by the second factor further, keep float16: their outliers leave the others too few bytes. There bytes add 6 to
10 % to the squared error of a fit, about what groups half as large take away. Measured on Qwen2.5-Coder-0.5B, where at
4 bits 11 of 168 linears are beyond it (that of one, whose bytes reach 1200 times its mean, was 4.9 times as large), at
2 bits 2, and none of SmolLM2-135M's. Evenly spaced levels have one half scale, as those of 1 bit have."""


ROWS = 1024
"""Rows whose magnitudes are in memory together."""


@dataclass(frozen=True)
class Sizes:
    """How large the weights of a matrix are.

    Attributes:
        largest: magnitude.
        mean: magnitude.
    """

    largest: float
    mean: float

    @classmethod
    def of(cls, parts: Iterable[Array]) -> "Sizes":
        """Look at some rows after the others: (rows, columns) float32 each."""
        largest = total = n_weights = 0.0
        for part in parts:
            for first in range(0, len(part), ROWS):
                magnitudes = abs(part[first : first + ROWS])
                n = len(magnitudes) * part.shape[1]
                largest, total = max(largest, float(magnitudes.max())), total + float(magnitudes.mean()) * n
                n_weights += n
            del part  # before the next is read
        return cls(largest, total / n_weights)


def bytes_reaching(largest: float, most: int = MAX_EXPONENT, name: str = FREE8) -> BlockKind:
    """Return the finest kind of this name in which bytes reach ``largest``, or nearly.

    Bytes have five bits of mantissa, or four, down to a 128th of what they reach, and even steps below. The lowest
    exponent reaches 2**-7, however small ``largest`` is; there is none above ``most``.
    """
    reach = math.frexp(largest)[1] if largest > 0.0 else -MAX_EXPONENT
    return BlockKind(name, min(max(reach + BYTES_BELOW, 0), most))


def reach_of(kind: BlockKind) -> float:
    """Return what all numbers of a kind of bytes are below."""
    return math.ldexp(1.0, kind.exponent - BYTES_BELOW)


@dataclass(frozen=True, order=True)
class Layout:
    """How a quantized matrix is stored.

    Attributes:
        bits: bit-planes.
        group_size: columns that share their levels.
        kind: of its blocks.
    """

    bits: int
    group_size: int
    kind: str = FREE16.name

    @property
    def bits_per_weight(self) -> float:
        """What a weight takes, scales and centers included."""
        return 8 * block_bytes(self.bits, self.group_size, self.block_kind) / (TILE_ROWS * self.group_size)

    @property
    def block_kind(self) -> BlockKind:
        """Its kind, with an exponent that changes no size."""
        return BlockKind(self.kind)

    def settle(self, parts: Iterable[Array]) -> tuple["Layout", BlockKind]:
        """Return how a matrix can be stored, and the kind of its blocks, to which half scales and centers are rounded.

        Args:
            parts: (rows, columns) float32 each, all that it is to be near: the exponent is that of the whole matrix,
                whose rows may be quantized apart. Not looked at where the kind does not need it.
        """
        return (self, FREE16) if self.kind == FREE16.name else self.settle_for(Sizes.of(parts))

    def settle_for(self, sizes: Sizes) -> tuple["Layout", BlockKind]:
        """Return the same for a matrix of which this is known."""
        if self.kind == FREE16.name:
            return self, FREE16
        is_even = self.block_kind.is_even
        steps = 2**self.bits - 1 if is_even else 1  # of the half scale, within what a group reaches
        kind = bytes_reaching(sizes.largest / steps, MAX_EXPONENT - (self.bits - 1) * is_even, self.kind)
        spread = MOST_SPREAD * SPREAD_PER_BIT ** (HLQ_MAX_BITS - (1 if is_even else self.bits))
        if reach_of(kind) * steps > spread * sizes.mean:
            return replace(self, kind=FREE16.name), FREE16
        return self, kind

    def __str__(self) -> str:
        """Return how messages name it."""
        kind = "" if self.kind == FREE16.name else f" of kind {self.kind}"
        return f"{self.bits} bits, groups of {self.group_size}{kind}"
