"""The levels of HLQ groups: what each code stands for, and which code is nearest to a weight."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from elutq_formats.constants import CENTER_SHIFT, HALF_SCALE_SHIFT, MAX_EXPONENT

FloatArray = npt.NDArray[np.float32]
HalfArray = npt.NDArray[np.float16]
CodeArray = npt.NDArray[np.uint8]

LARGEST_HALF = 65504.0
"""The largest float16."""


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
        exponent reaches 2**-7: where ``largest`` is far below that, those steps of 2**-19 are too coarse.
        """
        reach = math.frexp(largest)[1] if largest > 0.0 else -MAX_EXPONENT
        return cls(min(max(reach + 7, 0), MAX_EXPONENT))  # bytes alone stay below 2**-7

    def round_half_scales(self, values: npt.NDArray[np.float64]) -> HalfArray:
        """Round half scales, none of them negative: float16 of the same shape."""
        if self.exponent is None:
            return _to_half(values)
        return self._nearest_bytes(values, HALF_SCALE_SHIFT, 255)

    def round_centers(self, values: npt.NDArray[np.float64]) -> HalfArray:
        """Round centers: float16 of the same shape."""
        if self.exponent is None:
            return _to_half(values)
        magnitudes = self._nearest_bytes(np.abs(values), CENTER_SHIFT, 127)
        return np.asarray(np.where(values < 0.0, -magnitudes, magnitudes))

    def _nearest_bytes(self, magnitudes: npt.NDArray[np.float64], shift: int, last: int) -> HalfArray:
        """Round by way of float16, as C does, to byte << shift as its bits, times the power of two."""
        factor = np.float32(2.0 ** (self.exponent or 0))
        halves = (np.minimum(magnitudes, LARGEST_HALF).astype(np.float32) / factor).astype(np.float16)
        nearest = np.minimum((halves.view(np.uint16).astype(np.int32) + (1 << (shift - 1))) >> shift, last)
        steps = (nearest << shift).astype(np.uint16).view(np.float16)
        return np.asarray((steps.astype(np.float32) * factor).astype(np.float16))


ANY_HALF = Grid()


def _to_half(values: npt.NDArray[np.float64]) -> HalfArray:
    """Round to float16 by way of float32, as C does; too large values to the largest."""
    return np.clip(values, -LARGEST_HALF, LARGEST_HALF).astype(np.float32).astype(np.float16)


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
