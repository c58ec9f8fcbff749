"""The refine stage: levels and codes of whole rows improved in turn under a Hessian, until neither gains anything.

The numpy inner loop here defines the result; the C code behind ``elutq_native.quantizer`` repeats it bit for bit.
"""

import numpy as np
import numpy.typing as npt

from elutq_cli.pipeline.levels import CodeArray, FloatArray, HalfArray, levels, signs
from elutq_cli.pipeline.products import multiply, pieces
from elutq_cli.pipeline.stage import Backend
from elutq_formats.hlq import HLQTensor

DoubleArray = npt.NDArray[np.float64]

ROUNDS = 20
"""Most rounds of levels and codes. Half of novels-6m's rows stop within six."""

SWEEPS = 4
"""Sweeps over the columns in a round: the first changes nearly all codes that change at all."""

LEAST_GAIN = 1e-4
"""A row stops when a round lowers its error by less than this part of it."""

PROXIMITY = 1e-6
"""Weight of the pull towards the present levels, relative to the mean diagonal of the normal equations: enough to solve
them when a group uses fewer than bits + 1 levels, and well above float32's rounding of them."""

HALF_MAX = 65504.0


def refine(weights: FloatArray, hessian: FloatArray, start: HLQTensor, damping: float, backend: Backend) -> HLQTensor:
    """Lower the error of a quantized matrix: trace of D (H + damping * mean(diag H) * I) D^T, D = W - Q.

    A round solves for all levels of a row at once with its codes held, rounds them to float16, and then lets each
    weight in turn take the code that lowers the row's error most. A row keeps the best it ever had, so that no row's
    error rises.

    Args:
        weights: (rows, columns) float32, what the matrix should do to the inputs.
        hessian: (columns, columns) float32, X^T X of the inputs up to a factor.
        start: a quantized form of the matrix, as ``feedback`` gives it.
        damping: relative to the mean of the Hessian's diagonal.
        backend: runs the inner loops.

    Source: the joint solve of scales is ELUTQ's closed form taken over all groups of a row under H instead of one group
    at a time; descent on the codes is cyclic coordinate descent of the integer least squares problem.
    """
    mean = float(np.mean(np.diagonal(hessian), dtype=np.float64))
    if mean <= 0.0:  # the layer's input is always zero: nothing can be gained
        return start
    damped = np.array(hessian, dtype=np.float32, order="C")
    damped[np.diag_indices_from(damped)] += np.float32(damping * mean)
    group_size = start.group_size
    best = (start.half_scales.copy(), start.centers.copy(), start.codes.copy())
    now = best
    residual = multiply(weights - start.dequantize(), damped, backend)
    best_errors = row_errors(weights - start.dequantize(), residual)
    active = np.arange(len(weights))
    for _ in range(ROUNDS):
        half_scales, centers, codes = solve_levels(HLQTensor(*now, group_size), residual, damped, backend)
        difference = weights[active] - HLQTensor(half_scales, centers, codes, group_size).dequantize()
        residual = multiply(difference, damped, backend)
        codes = backend.descend_codes(codes, residual, damped, half_scales, centers, SWEEPS)
        difference = weights[active] - HLQTensor(half_scales, centers, codes, group_size).dequantize()
        residual = multiply(difference, damped, backend)
        errors = row_errors(difference, residual)
        previous = best_errors[active]
        better = errors < previous
        best[0][active[better]] = half_scales[better]
        best[1][active[better]] = centers[better]
        best[2][active[better]] = codes[better]
        best_errors[active[better]] = errors[better]
        going = errors < (1.0 - LEAST_GAIN) * previous
        if not going.any():
            break
        active, residual = active[going], residual[going]
        now = half_scales[going], centers[going], codes[going]
    return HLQTensor(*best, group_size)


def row_errors(difference: FloatArray, residual: FloatArray) -> DoubleArray:
    """Return d H d^T of each row d of difference: (rows,) float64, given residual = difference @ H."""
    errors: DoubleArray = np.einsum("ij,ij->i", difference, residual, dtype=np.float64)
    return errors


def solve_levels(
    start: HLQTensor, residual: FloatArray, hessian: FloatArray, backend: Backend
) -> tuple[HalfArray, HalfArray, CodeArray]:
    """Give every row the levels that minimise its error under H while its codes are held.

    Row by row, with the features B (columns, groups * (bits + 1)) that hold each group's signs and a column of ones:
    (B^T H B) step = B^T H (w - q), and the levels move by step.

    Args:
        start: the present levels and codes.
        residual: (rows, columns) float32, (W - Q) H for the present levels.
        hessian: (columns, columns) float32, positive definite.
        backend: runs some rows on each of its threads.

    Returns:
        half_scales (rows, groups, bits) float16 not negative, centers (rows, groups) float16, and codes (rows, columns)
        uint8, with the bits of a plane flipped where the solution's scale is negative: the same levels.
    """
    half_scales, centers, codes = np.empty_like(start.half_scales), np.empty_like(start.centers), start.codes.copy()
    n_groups, bits = half_scales.shape[1:]

    def solve(rows: slice) -> None:
        features = _features(start.codes[rows], bits, start.group_size)
        by_group = residual[rows].reshape(-1, n_groups, start.group_size)
        slope = np.einsum("rkgj,rgj->rgk", features, by_group, dtype=np.float64).reshape(len(features), -1)
        matrix = normal_matrices(features, hessian)
        diagonal = np.arange(matrix.shape[1])
        matrix[:, diagonal, diagonal] *= 1.0 + PROXIMITY
        step = np.linalg.solve(matrix, slope[..., None]).reshape(-1, n_groups, bits + 1)
        moved = start.half_scales[rows] + step[..., :bits]
        flip = (moved < 0.0) @ (1 << np.arange(bits))
        half_scales[rows] = np.minimum(np.abs(moved), HALF_MAX)
        centers[rows] = np.clip(start.centers[rows] + step[..., bits], -HALF_MAX, HALF_MAX)
        codes[rows] ^= np.repeat(flip, start.group_size, axis=1).astype(np.uint8)

    backend.map(solve, pieces(start.rows))
    return half_scales, centers, codes


def normal_matrices(features: FloatArray, hessian: FloatArray) -> DoubleArray:
    """Return B^T H B of every row: (rows, groups * (bits + 1), groups * (bits + 1)) float64.

    Args:
        features: (rows, bits + 1, groups, group_size) float32.
        hessian: (groups * group_size, groups * group_size) float32, symmetric.
    """
    rows, size, n_groups, group_size = features.shape
    matrix = np.empty((rows, n_groups, size, n_groups, size))
    for group in range(n_groups):
        first = group * group_size
        own = np.ascontiguousarray(features[:, :, group]).reshape(-1, group_size)
        spread = (own @ hessian[first : first + group_size, first:]).reshape(rows, size, n_groups - group, group_size)
        part = np.einsum("rkgj,rlgj->rkgl", spread, features[:, :, group:])
        matrix[:, group, :, group:] = part
        matrix[:, group:, :, group] = part.transpose(0, 2, 3, 1)
    return matrix.reshape(rows, n_groups * size, n_groups * size)


def descend_codes(
    codes: CodeArray,
    residual: FloatArray,
    hessian: FloatArray,
    half_scales: HalfArray,
    centers: HalfArray,
    sweeps: int,
) -> CodeArray:
    """Let each column's weights in turn take the code that lowers their row's error most, the others held.

    A weight that grows by s lowers d H d^T by s (2 r_j - s H_jj), where r = (w - q) H. Of equally good codes the
    present one stays, then the lowest is taken.

    Args:
        codes: (rows, columns) uint8, left unchanged.
        residual: (rows, columns) float32, (W - Q) H; left unchanged.
        hessian: (columns, columns) float32, symmetric.
        half_scales: (rows, groups, bits) float16.
        centers: (rows, groups) float16.
        sweeps: most times to go over all columns.

    Returns:
        (rows, columns) uint8.
    """
    codes, residual = codes.copy(), residual.copy()
    rows, columns = codes.shape
    group_levels = levels(half_scales, centers)
    group_size = columns // centers.shape[1]
    for _ in range(sweeps):
        before = codes.copy()
        for column in range(columns):
            own = group_levels[:, column // group_size]
            step = own - np.take_along_axis(own, codes[:, column, None].astype(np.intp), axis=1)
            gain = step * (np.float32(2) * residual[:, column, None] - step * hessian[column, column])
            best = gain.argmax(axis=1)
            moved = np.flatnonzero(gain[np.arange(rows), best] > 0.0)
            codes[moved, column] = best[moved]
            residual[moved] -= step[moved, best[moved], None] * hessian[column]
        if np.array_equal(codes, before):
            break
    return codes


def _features(codes: CodeArray, bits: int, group_size: int) -> FloatArray:
    """Return the signs of each plane, and ones: (rows, bits + 1, groups, group_size) float32."""
    rows, columns = codes.shape
    table = np.concatenate([signs(bits), np.ones((2**bits, 1))], axis=1).astype(np.float32)
    features = np.empty((rows, bits + 1, columns // group_size, group_size), dtype=np.float32)
    for plane in range(bits + 1):
        features[:, plane] = table[codes, plane].reshape(rows, -1, group_size)
    return features
