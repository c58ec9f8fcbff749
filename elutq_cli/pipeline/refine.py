"""The refine stage: levels and codes improved group by group under a Hessian, in sweeps over whole rows.

The numpy inner loop here defines the result; the C code behind ``elutq_native.quantizer`` repeats it bit for bit.
"""

import numpy as np
import numpy.typing as npt

from elutq_cli.pipeline.fit import eliminate
from elutq_cli.pipeline.levels import LARGEST_HALF, CodeArray, FloatArray, HalfArray, levels
from elutq_cli.pipeline.products import pieces, subtract_product
from elutq_cli.pipeline.stage import Backend
from elutq_formats.hlq import HLQTensor

DoubleArray = npt.NDArray[np.float64]

SWEEPS = 3
"""Times that all groups of a row are gone through. On novels-6m more lower the error under H, but not the KL
divergence."""

CODE_SWEEPS = 2
"""Times that all columns of a group are gone through after each solve for its levels."""

PROXIMITY = 1e-6
"""Weight of the pull towards the present levels, relative to the diagonal of the normal equations: enough to solve them
when a group uses fewer than bits + 1 levels, and well above float32's rounding of them."""


def refine(weights: FloatArray, hessian: FloatArray, start: HLQTensor, damping: float, backend: Backend) -> HLQTensor:
    """Lower the error of a quantized matrix: trace of D (H + damping * mean(diag H) * I) D^T, D = W - Q.

    Group after group, from the left and then again: the group's levels are solved for with its codes held and rounded
    to float16, each of its weights in turn takes the code that lowers the row's error most, and all other groups learn
    what this changed from the residual D H. A row's group that would not gain stays as it is, so that no row's error
    rises.

    Args:
        weights: (rows, columns) float32, what the matrix should do to the inputs.
        hessian: (columns, columns) float32, X^T X of the inputs up to a factor.
        start: a quantized form of the matrix, as ``feedback`` gives it.
        damping: relative to the mean of the Hessian's diagonal.
        backend: runs the inner loops.

    Source: block coordinate descent. The solve for scales is ELUTQ's closed form under H; descent on the codes is
    cyclic coordinate descent of the integer least squares problem.
    """
    mean = float(np.mean(np.diagonal(hessian), dtype=np.float64))
    if mean <= 0.0:  # the layer's input is always zero: nothing can be gained
        return start
    damped = np.array(hessian, dtype=np.float32, order="C")
    damped[np.diag_indices_from(damped)] += np.float32(damping * mean)
    half_scales, centers, codes = start.half_scales.copy(), start.centers.copy(), start.codes.copy()
    residual = np.empty_like(weights)

    def begin(rows: slice) -> None:
        now = HLQTensor(half_scales[rows], centers[rows], codes[rows], start.group_size)
        np.matmul(weights[rows] - now.dequantize(), damped, out=residual[rows])

    backend.map(begin, pieces(len(weights)))
    for _ in range(SWEEPS):
        for group in range(centers.shape[1]):
            part = slice(group * start.group_size, (group + 1) * start.group_size)
            own = np.ascontiguousarray(damped[part, part])
            grown = refine_group(
                half_scales[:, group], centers[:, group], codes[:, part], residual[:, part], own, backend
            )
            subtract_product(residual, grown, damped[part], backend)
    return HLQTensor(half_scales, centers, codes, start.group_size)


def refine_group(
    half_scales: HalfArray,
    centers: HalfArray,
    codes: CodeArray,
    residual: FloatArray,
    hessian: FloatArray,
    backend: Backend,
) -> FloatArray:
    """Improve one group of each row in place, where that lowers the row's error.

    A group that grows by s lowers d H d^T by s (2 r - s H), where r = (w - q) H.

    Args:
        half_scales: (rows, bits) float16.
        centers: (rows,) float16.
        codes: (rows, group_size) uint8.
        residual: (rows, group_size) float32, this group's columns of (W - Q) H; left unchanged.
        hessian: (group_size, group_size) float32, positive definite: this group's diagonal block.
        backend: runs the inner loops.

    Returns:
        (rows, group_size) float32: by how much the dequantized weights grew.
    """
    bits = half_scales.shape[1]
    new_scales, new_centers, new_codes = np.empty_like(half_scales), np.empty_like(centers), np.empty_like(codes)
    after_solve, grown = np.empty_like(residual), np.empty_like(residual)

    def solve(rows: slice) -> None:
        features = signs_of(codes[rows], bits)
        theta = solve_levels(half_scales[rows], centers[rows], features, residual[rows], hessian)
        new_scales[rows] = np.minimum(np.abs(theta[:bits]), LARGEST_HALF).T
        new_centers[rows] = np.clip(theta[bits], -LARGEST_HALF, LARGEST_HALF)
        negative = theta[:bits] < 0.0  # the same levels, under the codes with these planes flipped
        new_codes[rows] = codes[rows] ^ ((1 << np.arange(bits)) @ negative).astype(np.uint8)[:, None]
        before = restore(half_scales[rows], centers[rows], features)
        after = restore(new_scales[rows], new_centers[rows], signs_of(new_codes[rows], bits))
        after_solve[rows] = residual[rows] - (after - before) @ hessian

    def settle(rows: slice) -> None:
        before = restore(half_scales[rows], centers[rows], signs_of(codes[rows], bits))
        step = restore(new_scales[rows], new_centers[rows], signs_of(new_codes[rows], bits)) - before
        gain = np.einsum("rc,rc->r", step, 2.0 * residual[rows] - step @ hessian, dtype=np.float64)
        better = gain > 0.0
        half_scales[rows][better] = new_scales[rows][better]
        centers[rows][better] = new_centers[rows][better]
        codes[rows][better] = new_codes[rows][better]
        grown[rows] = step * better[:, None]

    backend.map(solve, pieces(len(codes)))
    new_codes[:] = backend.descend_codes(
        new_codes, after_solve, hessian, new_scales[:, None], new_centers[:, None], CODE_SWEEPS
    )
    backend.map(settle, pieces(len(codes)))
    return grown


def restore(half_scales: HalfArray, centers: HalfArray, features: FloatArray) -> FloatArray:
    """Return a group's dequantized weights (rows, group_size) float32, summed in the order of ``levels``."""
    scales = half_scales.astype(np.float32)
    restored: FloatArray = centers.astype(np.float32)[:, None] + scales[:, 0, None] * features[0]
    for plane in range(1, scales.shape[1]):
        restored += scales[:, plane, None] * features[plane]
    return restored


def signs_of(codes: CodeArray, bits: int) -> FloatArray:
    """Return the signs of each plane: (bits, rows, group_size) float32."""
    shifts = np.arange(bits, dtype=np.uint8)[:, None, None]
    features: FloatArray = ((codes >> shifts) & np.uint8(1)).astype(np.float32)
    features *= 2.0
    features -= 1.0
    return features


def solve_levels(
    half_scales: HalfArray, centers: HalfArray, features: FloatArray, residual: FloatArray, hessian: FloatArray
) -> DoubleArray:
    """Return the change of one group's levels that minimises each row's error under H while all codes are held.

    With B (group_size, bits + 1), the signs of each plane and a column of ones, it is (B^T H B)^-1 B^T r.

    Args:
        half_scales: (rows, bits) float16.
        centers: (rows,) float16.
        features: (bits, rows, group_size) float32, the signs of the present codes.
        residual: (rows, group_size) float32, this group's columns of (W - Q) H for the present levels.
        hessian: (group_size, group_size) float32, positive definite: this group's diagonal block.

    Returns:
        (bits + 1, rows) float64: half scales, negative ones too, and centers.
    """
    bits = len(features)
    spread = [plane @ hessian for plane in features]
    matrix = np.empty((bits + 1, bits + 1, len(residual)))
    theta = np.empty((bits + 1, len(residual)))
    for i in range(bits):
        for j in range(i + 1):
            matrix[i, j] = np.einsum("rc,rc->r", spread[i], features[j])
        matrix[bits, i] = spread[i].sum(axis=1)
        theta[i] = np.einsum("rc,rc->r", features[i], residual)
    matrix[bits, bits] = hessian.sum(dtype=np.float64)
    theta[bits] = residual.sum(axis=1)
    for i in range(bits + 1):
        matrix[i, i] *= 1.0 + PROXIMITY
    eliminate(matrix, theta)
    theta[:bits] += half_scales.T
    theta[bits] += centers
    return theta


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
