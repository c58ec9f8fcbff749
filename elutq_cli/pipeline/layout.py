"""How a quantized matrix lies in the file: what its size follows from, and what is chosen for each."""

from dataclasses import dataclass

from elutq_formats.constants import TILE_ROWS
from elutq_formats.hlq import block_bytes


@dataclass(frozen=True, order=True)
class Layout:
    """How a quantized matrix is stored.

    Attributes:
        bits: bit-planes.
        group_size: columns that share their levels.
    """

    bits: int
    group_size: int

    @property
    def bits_per_weight(self) -> float:
        """What a weight takes, scales and centers included."""
        return 8 * block_bytes(self.bits, self.group_size) / (TILE_ROWS * self.group_size)

    def __str__(self) -> str:
        """Return how messages name it."""
        return f"{self.bits} bits, groups of {self.group_size}"
