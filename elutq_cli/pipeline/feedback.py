"""The feedback stage: levels fitted to error-compensated weights, rounded column by column under a Hessian.

The numpy inner loop here defines the result; the C code behind ``elutq_native.quantizer`` repeats it bit for bit.
"""

import logging

import numpy as np
import numpy.typing as npt

from elutq_cli.pipeline.levels import CodeArray, FloatArray, HalfArray, levels, nearest
from elutq_cli.pipeline.products import multiply, pieces, subtract_product
from elutq_cli.pipeline.stage import Backend
from elutq_formats.errors import ElutqError
from elutq_formats.hlq import HLQTensor

DoubleArray = npt.NDArray[np.float64]

MOST_DAMPING = 1.0
LEAF = 128

REFITS = 1
"""Times that a group's levels are fitted again, see ``quantize_group``."""

log = logging.getLogger(__name__)


def feedback(weights: FloatArray, factor: FloatArray, bits: int, group_size: int, backend: Backend) -> HLQTensor:
    """Quantize a matrix so that its output error on the calibration inputs is small.

    Group by group from the left: the levels are fitted and the columns rounded in turn (``quantize_group``), then what
    remains of the group's errors is taken out of the columns to its right.

    Args:
        weights: (rows, columns) float32.
        factor: (columns, columns) float32, from ``inverse_factor`` of the Hessian of the inputs.
        bits: bit-planes.
        group_size: columns that share their levels.
        backend: runs the inner loops.

    Source: GPTQ (Frantar et al. 2022) with ELUTQ's levels. ELUTQ's own code keeps the codes chosen before
    compensation; here the compensated weight is rounded, which is better at every number of bits.
    """
    compensated = weights.copy()
    parts = []
    for start in range(0, weights.shape[1], group_size):
        group, rest = slice(start, start + group_size), slice(start + group_size, None)
        half_scales, centers, codes, errors = quantize_group(compensated[:, group], factor[group, group], bits, backend)
        subtract_product(compensated[:, rest], errors, factor[group, rest], backend)
        parts.append((half_scales, centers, codes))
    half_scales, centers, codes = (np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True))
    return HLQTensor(half_scales, centers, codes, group_size)


def quantize_group(
    weights: FloatArray, factor: FloatArray, bits: int, backend: Backend
) -> tuple[HalfArray, HalfArray, CodeArray, FloatArray]:
    """Fit one group's levels and round its columns.

    A column's error is weighted by 1 / U_jj^2, what it costs after the columns to its right have compensated it as well
    as they can. The sum of the squared errors returned is the group's share of the error under the damped Hessian.

    The first levels are fitted to the weights before any compensation within the group. Refitted to the weights as they
    were when their turn came, they fit better; a row keeps the levels with the least error. On novels-6m a
    second time lowers the error under H, but no longer the KL divergence once refine has followed.

    Args:
        weights: (rows, group_size) float32, compensated for the groups to the left; left unchanged.
        factor: (group_size, group_size) float32, this group's diagonal block of U.
        bits: bit-planes.
        backend: runs the inner loops.

    Returns:
        half_scales (rows, 1, bits) float16, centers (rows, 1) float16, codes and errors (rows, group_size) as
        ``feedback_columns`` gives them.
    """
    diagonal = np.diagonal(factor)
    importance = (1.0 / diagonal**2).astype(np.float32)

    def fit_and_round(target: FloatArray) -> tuple[HalfArray, HalfArray, CodeArray, FloatArray]:
        half_scales, centers, _ = backend.fit_groups(target, bits, weights.shape[1], importance)
        return half_scales, centers, *backend.feedback_columns(weights, factor, half_scales[:, 0], centers[:, 0])

    half_scales, centers, codes, errors = fit_and_round(weights)
    for _ in range(REFITS):
        rounded = np.take_along_axis(levels(half_scales[:, 0], centers[:, 0]), codes.astype(np.intp), axis=1)
        refitted = fit_and_round(rounded + errors * diagonal)
        better = _row_energy(refitted[3]) < _row_energy(errors)
        half_scales[better], centers[better] = refitted[0][better], refitted[1][better]
        codes[better], errors[better] = refitted[2][better], refitted[3][better]
    return half_scales, centers, codes, errors


def _row_energy(errors: FloatArray) -> DoubleArray:
    """Return the sum of squares of each row: (rows,) float64."""
    return np.asarray(np.square(errors, dtype=np.float64).sum(axis=1))


def feedback_columns(
    weights: FloatArray, factor: FloatArray, half_scales: HalfArray, centers: HalfArray
) -> tuple[CodeArray, FloatArray]:
    """Round a group's columns in turn; each column's error is taken out of the columns to its right.

    Args:
        weights: (rows, group_size) float32, left unchanged.
        factor: (group_size, group_size) float32, diagonal block of the inverse Hessian's upper triangular factor U.
        half_scales: (rows, bits) float16.
        centers: (rows,) float16.

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


def inverse_factor(hessian: FloatArray, damping: float, backend: Backend, name: str = "a linear") -> FloatArray:
    """Return the upper triangular U with U^T U = (H + damping * mean(diag H) * I)^-1.

    With J the reversal of rows and columns and J H J = L L^T, U is J L^-1 J. Damping grows tenfold, and says so in the
    log, while H is not positive definite in float32.

    Args:
        hessian: (n, n) float32, symmetric.
        damping: relative to the mean of the diagonal.
        backend: runs the products.
        name: whose inputs these are, for messages.

    Returns:
        (n, n) float32.

    Raises:
        ElutqError: H is not finite, or no damping up to MOST_DAMPING helps.
    """
    mean = float(np.mean(np.diagonal(hessian), dtype=np.float64))
    if not all(np.isfinite(hessian[rows]).all() for rows in pieces(len(hessian))):
        raise ElutqError(f"{name}: activations overflow on the calibration text: use other text, or none")
    if mean <= 0.0:  # the layer's input is always zero: any rounding is as good
        return np.eye(len(hessian), dtype=np.float32)
    while True:
        backwards = np.array(hessian[::-1, ::-1], order="C")
        backwards[np.diag_indices_from(backwards)] += np.float32(damping * mean)
        try:
            invert_cholesky(backwards, backend)
        except np.linalg.LinAlgError:
            if damping * 10 > MOST_DAMPING:
                raise ElutqError(
                    f"{name}: its Hessian is not positive definite even with damping {damping:g}"
                ) from None
            damping *= 10
            log.warning("%s: its Hessian is not positive definite: damping raised to %g", name, damping)
            continue
        return np.ascontiguousarray(backwards[::-1, ::-1])


def invert_cholesky(matrix: FloatArray, backend: Backend) -> None:
    """Replace a symmetric matrix A = L L^T by the lower triangular L^-1, by halves so that nearly all is products.

    Raises:
        LinAlgError: A is not positive definite; it is destroyed.
    """
    n = len(matrix)
    if n <= LEAF:
        matrix[:] = np.tril(np.linalg.inv(np.linalg.cholesky(matrix.astype(np.float64))))
        return
    half = n // 2
    top, corner, bottom = matrix[:half, :half], matrix[half:, :half], matrix[half:, half:]
    invert_cholesky(top, backend)
    lower = multiply(corner, top.T, backend)
    subtract_product(bottom, lower, lower.T, backend)
    invert_cholesky(bottom, backend)
    corner[:] = multiply(bottom, multiply(lower, top, backend), backend)
    np.negative(corner, out=corner)
    matrix[:half, half:] = 0.0
