"""The levels of HLQ groups: what each code stands for, and which code is nearest to a weight."""

import numpy as np
import numpy.typing as npt

from elutq_formats.block_kind import Centers

FloatArray = npt.NDArray[np.float32]
HalfArray = npt.NDArray[np.float16]
CodeArray = npt.NDArray[np.uint8]


def signs(bits: int) -> npt.NDArray[np.float64]:
    """Return beta of every code and plane, 2 * bit - 1: (2**bits, bits) float64."""
    codes = np.arange(2**bits)
    return np.where((codes[:, None] >> np.arange(bits)) & 1, 1.0, -1.0)


def levels(half_scales: HalfArray, centers: Centers) -> FloatArray:
    """Return the value of every code, summed in the order of ``HLQTensor.dequantize``.

    Args:
        half_scales: (..., bits) float16.
        centers: (...) float16 or float32.

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
