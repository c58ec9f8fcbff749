"""The inner loop of refine: one group's levels solved for and its codes descended, under its block of a Hessian.

The numpy functions here define the result; the C code behind ``elutq_native.quantizer`` repeats it bit for bit.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from elutq_cli.pipeline.compute.levels import CodeArray, FloatArray, HalfArray, levels
from elutq_cli.pipeline.compute.loops.even import round_even, spread_even
from elutq_cli.pipeline.compute.loops.fit_groups import eliminate
from elutq_formats.block_kind import FREE16, BlockKind, Centers

DoubleArray = npt.NDArray[np.float64]

CODE_SWEEPS = 2
"""Times that all columns of a group are gone through after each solve for its levels."""

LEAST_PULL = 1e-6
"""Weight of the pull towards the present levels, relative to the diagonal of the normal equations: enough to solve them
when a group uses fewer than bits + 1 levels, and well above float32's rounding of them."""


def refine_group(
    half_scales: HalfArray,
    centers: Centers,
    codes: CodeArray,
    residual: FloatArray,
    hessian: FloatArray,
    kind: BlockKind = FREE16,
) -> tuple[HalfArray, Centers, CodeArray, FloatArray]:
    """Improve one group of each row where that lowers the row's error; the others stay as they are.

    A group that grows by s lowers d H d^T by s (2 r - s H), where r = (w - q) H; r - s H is r afterwards.

    Args:
        half_scales: (rows, bits) float16.
        centers: (rows,) float16 or float32.
        codes: (rows, group_size) uint8.
        residual: (rows, group_size) float32, this group's columns of (W - Q) H.
        hessian: (group_size, group_size) float32, positive definite: this group's diagonal block.
        kind: what half scales and centers are rounded to.

    Returns:
        half_scales, centers and codes anew, and by how much the dequantized weights grew: (rows, group_size) float32.
    """
    bits = half_scales.shape[1]
    features = features_of(codes, bits, kind)
    spread = [ordered_product(feature, hessian) for feature in features]
    across = ordered_product(np.ones((1, len(hessian)), dtype=np.float32), hessian)
    theta, matrix = solve_levels(half_scales, centers, features, spread, across, residual)
    signed, new_scales, new_centers = round_levels(theta, matrix, bits, kind)
    negative = theta[:-1] < 0.0  # the same levels, under the codes with these planes flipped
    planes = np.array([2**bits - 1]) if kind.is_even else 1 << np.arange(bits)
    new_codes = codes ^ (planes @ negative).astype(np.uint8)[:, None]
    moved = signed - half_scales[:, : len(features)]
    after_solve = residual - (new_centers.astype(np.float32) - centers)[:, None] * across
    for growth, feature in zip(moved.T, spread, strict=True):
        after_solve -= growth[:, None] * feature
    new_codes, ended = descend_codes(new_codes, after_solve, hessian, new_scales, new_centers, CODE_SWEEPS)
    step = restore(new_scales, new_centers, new_codes) - restore(half_scales, centers, codes)
    better = ordered_sum(step.astype(np.float64) * (residual + ended)) > 0.0
    return (
        np.where(better[:, None], new_scales, half_scales),
        np.where(better, new_centers, centers),
        np.where(better[:, None], new_codes, codes),
        step * better[:, None],
    )


def restore(half_scales: HalfArray, centers: Centers, codes: CodeArray) -> FloatArray:
    """Return a group's dequantized weights: (rows, group_size) float32."""
    return np.take_along_axis(levels(half_scales, centers), codes.astype(np.intp), axis=1)


def signs_of(codes: CodeArray, bits: int) -> FloatArray:
    """Return the signs of each plane: (bits, rows, group_size) float32."""
    shifts = np.arange(bits, dtype=np.uint8)[:, None, None]
    features: FloatArray = ((codes >> shifts) & np.uint8(1)).astype(np.float32)
    features *= 2.0
    features -= 1.0
    return features


def features_of(codes: CodeArray, bits: int, kind: BlockKind) -> FloatArray:
    """Return what weights have of each unknown but the center: (scales, rows, group_size) float32.

    The unknowns are all half scales, or where the kind is even the first, whose multiples the others are.
    """
    features = signs_of(codes, bits)
    if kind.is_even:
        return np.tensordot(2.0 ** np.arange(bits, dtype=np.float32), features, 1)[None]
    return features


def ordered_product(left: FloatArray, right: FloatArray) -> FloatArray:
    """Return left @ right in float32, every sum in the order of the inner axis."""
    product = np.zeros((len(left), right.shape[1]), dtype=np.float32)
    for inner in range(len(right)):
        product += left[:, inner, None] * right[inner]
    return product


def ordered_sum(terms: npt.NDArray[np.floating]) -> DoubleArray:
    """Return the float64 sums of the rows, each in the order of its columns."""
    return np.add.accumulate(terms, axis=1, dtype=np.float64)[:, -1]


def solve_levels(
    half_scales: HalfArray,
    centers: Centers,
    features: FloatArray,
    spread: Sequence[FloatArray],
    across: FloatArray,
    residual: FloatArray,
) -> tuple[DoubleArray, DoubleArray]:
    """Return the levels of one group that minimise each row's error under H while all codes are held.

    With B (group_size, scales + 1), the features and a column of ones, they change by (B^T H B)^-1 B^T r.

    Args:
        half_scales: (rows, bits) float16.
        centers: (rows,) float16 or float32.
        features: (scales, rows, group_size) float32, see ``features_of``.
        spread: the same times H, for each of them.
        across: (1, group_size) float32, ones times H.
        residual: (rows, group_size) float32, this group's columns of (W - Q) H for the present levels.

    Returns:
        theta, (scales + 1, rows) float64: half scales, negative ones too, and centers; and B^T H B, of which the lower
        triangle is filled in: (scales + 1, scales + 1, rows) float64.
    """
    n_scales = len(features)
    matrix = np.zeros((n_scales + 1, n_scales + 1, len(residual)))
    theta = np.empty((n_scales + 1, len(residual)))
    for i in range(n_scales):
        for j in range(i + 1):
            matrix[i, j] = ordered_sum(spread[i] * features[j])
        matrix[n_scales, i] = ordered_sum(spread[i])
        theta[i] = ordered_sum(features[i] * residual)
    matrix[n_scales, n_scales] = ordered_sum(across)
    theta[n_scales] = ordered_sum(residual)
    pulled = matrix.copy()
    for i in range(n_scales + 1):
        pulled[i, i] *= 1.0 + LEAST_PULL
    eliminate(pulled, theta)
    theta[:n_scales] += half_scales[:, :n_scales].T
    theta[n_scales] += centers
    return theta, matrix


def round_levels(
    theta: DoubleArray, matrix: DoubleArray, bits: int, kind: BlockKind
) -> tuple[FloatArray, HalfArray, Centers]:
    """Round what ``solve_levels`` returns to what a file can hold.

    Returns:
        The half scales that were solved for, with their signs, (rows, scales) float32; all of them without,
        (rows, bits) float16; and centers (rows,).
    """
    if kind.is_even:
        first, centers = round_even(theta, matrix, kind)
        return first[:, None], spread_even(np.abs(first), bits).T, centers
    half_scales = kind.round_half_scales(np.abs(theta[:-1]).T)
    signed = np.where(theta[:-1].T < 0.0, -half_scales, half_scales).astype(np.float32)
    return signed, half_scales, kind.round_centers(theta[-1])


def descend_codes(
    codes: CodeArray,
    residual: FloatArray,
    hessian: FloatArray,
    half_scales: HalfArray,
    centers: Centers,
    sweeps: int,
) -> tuple[CodeArray, FloatArray]:
    """Let each column's weights in turn take the code that lowers their row's error most, the others held.

    A weight that grows by s lowers d H d^T by s (2 r_j - s H_jj), where r = (w - q) H. Of equally good codes the
    present one stays, then the lowest is taken.

    Args:
        codes: (rows, group_size) uint8, left unchanged.
        residual: (rows, group_size) float32, (W - Q) H; left unchanged.
        hessian: (group_size, group_size) float32, symmetric.
        half_scales: (rows, bits) float16.
        centers: (rows,) float16 or float32.
        sweeps: most times to go over all columns.

    Returns:
        codes (rows, group_size) uint8, and (W - Q) H (rows, group_size) float32 with them.
    """
    codes, residual = codes.copy(), residual.copy()
    own = levels(half_scales, centers)
    for _ in range(sweeps):
        before = codes.copy()
        for column in range(codes.shape[1]):
            step = own - np.take_along_axis(own, codes[:, column, None].astype(np.intp), axis=1)
            gain = step * (np.float32(2) * residual[:, column, None] - step * hessian[column, column])
            best = gain.argmax(axis=1)
            moved = np.flatnonzero(gain[np.arange(len(codes)), best] > 0.0)
            codes[moved, column] = best[moved]
            residual[moved] -= step[moved, best[moved], None] * hessian[column]
        if np.array_equal(codes, before):
            break
    return codes, residual
