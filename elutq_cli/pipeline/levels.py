"""The levels of HLQ groups: what each code stands for, and which code is nearest to a weight."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from elutq_formats.block_kind import FREE16, LARGEST_HALF, BlockKind
from elutq_formats.constants import MAX_EXPONENT

FloatArray = npt.NDArray[np.float32]
HalfArray = npt.NDArray[np.float16]
CodeArray = npt.NDArray[np.uint8]


BYTES_BELOW = 7
"""Bytes alone are below two to the minus this."""


@dataclass(frozen=True)
class Grid:
    """What half scales and centers are rounded to, so that the file can hold them.

    Attributes:
        exponent: of two, of a matrix that holds them as bytes (SPEC.md, section 4); None: any float16.
    """

    exponent: int | None = None

    @classmethod
    def of_bytes(cls, largest: float) -> "Grid":
        """Return the finest of bytes in which half scales and centers reach ``largest``, or nearly.

        Bytes have five bits of mantissa, or four, down to a 128th of what they reach, and even steps below. The lowest
        exponent reaches 2**-7, however small ``largest`` is.
        """
        reach = math.frexp(largest)[1] if largest > 0.0 else -MAX_EXPONENT
        return cls(min(max(reach + BYTES_BELOW, 0), MAX_EXPONENT))

    @property
    def reach(self) -> float:
        """What all of its numbers are below."""
        return LARGEST_HALF if self.exponent is None else math.ldexp(1.0, self.exponent - BYTES_BELOW)

    @property
    def kind(self) -> BlockKind:
        """Of the blocks that hold what is rounded to it."""
        return FREE16 if self.exponent is None else BlockKind("free8", self.exponent)

    def round_half_scales(self, values: npt.NDArray[np.float64]) -> HalfArray:
        """Round half scales, none of them negative: float16 of the same shape."""
        return self.kind.round_half_scales(values)

    def round_centers(self, values: npt.NDArray[np.float64]) -> HalfArray:
        """Round centers: float16 of the same shape."""
        return self.kind.round_centers(values)


ANY_HALF = Grid()


def signs(bits: int) -> npt.NDArray[np.float64]:
    """Return beta of every code and plane, 2 * bit - 1: (2**bits, bits) float64."""
    codes = np.arange(2**bits)
    return np.where((codes[:, None] >> np.arange(bits)) & 1, 1.0, -1.0)


def levels(half_scales: HalfArray, centers: HalfArray) -> FloatArray:
    """Return the value of every code, summed in the order of ``HLQTensor.dequantize``.

    Args:
        half_scales: (..., bits) float16.
        centers: (...) float16.

    Returns:
        (..., 2**bits) float32.
    """
    bits = half_scales.shape[-1]
    beta = signs(bits).astype(np.float32)
    values = np.repeat(centers.astype(np.float32)[..., None], 2**bits, axis=-1)
    for plane in range(bits):
        values += half_scales[..., plane, None].astype(np.float32) * beta[:, plane]
    return values


def nearest(weights: FloatArray, group_levels: FloatArray) -> CodeArray:
    """Return the code of the level nearest to each weight; of equally near ones, the lowest code.

    Args:
        weights: (..., n) float32, the weights of a group along the last axis.
        group_levels: (..., 2**bits) float32.

    Returns:
        (..., n) uint8.
    """
    codes = np.zeros(weights.shape, dtype=np.uint8)
    best = np.abs(weights - group_levels[..., 0, None])
    for code in range(1, group_levels.shape[-1]):
        distance = np.abs(weights - group_levels[..., code, None])
        closer = distance < best
        best = np.where(closer, distance, best)
        codes[closer] = code
    return codes
