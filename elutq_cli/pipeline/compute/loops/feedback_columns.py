"""The inner loop of feedback: a group's columns rounded in turn.

The numpy function here defines the result; the C code behind ``elutq_native.quantizer`` repeats it bit for bit.
"""

import numpy as np

from elutq_cli.pipeline.compute.levels import CodeArray, FloatArray, HalfArray, levels, nearest
from elutq_formats.block_kind import Centers


def feedback_columns(
    weights: FloatArray, factor: FloatArray, half_scales: HalfArray, centers: Centers
) -> tuple[CodeArray, FloatArray]:
    """Round a group's columns in turn; each column's error is taken out of the columns to its right.

    Args:
        weights: (rows, group_size) float32, left unchanged.
        factor: (group_size, group_size) float32, diagonal block of the inverse Hessian's upper triangular factor U.
        half_scales: (rows, bits) float16.
        centers: (rows,) float16 or float32.

    Returns:
        codes (rows, group_size) uint8, and errors (rows, group_size) float32: (weight - level) / U_jj of every column,
        what the columns past the group still have to compensate.
    """
    group_levels = levels(half_scales, centers)
    compensated = weights.copy()
    codes = np.empty(weights.shape, dtype=np.uint8)
    errors = np.empty_like(weights)
    for column in range(weights.shape[1]):
        now = compensated[:, column : column + 1]
        code = nearest(now, group_levels)
        error = (now - np.take_along_axis(group_levels, code.astype(np.intp), axis=1)) / factor[column, column]
        compensated[:, column + 1 :] -= error * factor[column, column + 1 :]
        codes[:, column], errors[:, column] = code[:, 0], error[:, 0]
    return codes, errors
