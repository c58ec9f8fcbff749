"""How a quantized matrix lies in the file: what its size follows from, and what is chosen for each."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from elutq_cli.pipeline.levels import ANY_HALF, Grid
from elutq_cli.reference import Array
from elutq_formats.block_kind import BlockKind
from elutq_formats.constants import TILE_ROWS
from elutq_formats.hlq import block_bytes

FREE16, FREE8 = "free16", "free8"
"""Kinds of blocks: half scales and centers as float16, or as bytes times a power of two of the matrix."""

KIND_OF_SCALES = {8: FREE8, 16: FREE16}
"""By the bits that a half scale or a center takes."""

LEAST_REACH = 2.0**-9
"""Matrices of smaller weights than this keep float16: the finest bytes reach 2**-7, and lose bits below 2**-14."""


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
    kind: str = FREE16

    @property
    def bits_per_weight(self) -> float:
        """What a weight takes, scales and centers included."""
        return 8 * block_bytes(self.bits, self.group_size, self.block_kind) / (TILE_ROWS * self.group_size)

    @property
    def block_kind(self) -> BlockKind:
        """Its kind, with an exponent that changes no size."""
        return BlockKind(self.kind)

    def settle(self, parts: Iterable[Array]) -> tuple["Layout", Grid]:
        """Return how a matrix can be stored, and what its half scales and centers are rounded to.

        Args:
            parts: (rows, columns) float32 each, all that it is to be near: the grid is that of the whole matrix, whose
                rows may be quantized apart. Not looked at where the kind does not need it.
        """
        if self.kind == FREE16:
            return self, ANY_HALF
        largest = max(max(float(part.max()), -float(part.min())) for part in parts)
        if largest < LEAST_REACH:
            return replace(self, kind=FREE16), ANY_HALF
        return self, Grid.of_bytes(largest)

    def __str__(self) -> str:
        """Return how messages name it."""
        kind = "" if self.kind == FREE16 else f" of kind {self.kind}"
        return f"{self.bits} bits, groups of {self.group_size}{kind}"
