"""The feedback stage: levels fitted to error-compensated weights, rounded column by column under a Hessian."""

import logging
from functools import partial
from typing import TypeAlias

import numpy as np

from elutq_cli.pipeline.compute.backend import Backend
from elutq_cli.pipeline.compute.divided import multiply_by_columns, multiply_by_rows, subtract_square
from elutq_cli.pipeline.compute.levels import CodeArray, FloatArray, HalfArray, levels
from elutq_cli.pipeline.compute.products import (
    column_blocks,
    left_upper,
    pieces,
    put_rows,
    ridge,
    right_lower,
    right_upper,
    subtract_product,
)
from elutq_cli.pipeline.layout import Layout
from elutq_cli.reference import Array
from elutq_formats.block_kind import FREE16, BlockKind, Centers
from elutq_formats.errors import CalibrationError
from elutq_formats.hlq import HLQTensor

MOST_DAMPING = 1.0
LEAF = 128

REFITS = 1
"""Times that a group's levels are fitted again, see ``quantize_group``."""

Group: TypeAlias = tuple[HalfArray, Centers, CodeArray, FloatArray]
"""Half scales, centers, codes and errors of a group's rows."""

log = logging.getLogger(__name__)


def feedback(weights: Array, factor: Array, layout: Layout, backend: Backend, kind: BlockKind = FREE16) -> HLQTensor:
    """Quantize a matrix so that its output error on the calibration inputs is small.

    Group by group from the left: the levels are fitted and the columns rounded in turn (``quantize_group``), then what
    remains of the group's errors is taken out of the columns to its right. Those past a block of columns hear of a
    group's errors only when their own block's turn comes.

    Args:
        weights: (rows, columns) float32.
        factor: (columns, columns) float32, from ``inverse_factor`` of the Hessian of the inputs.
        layout: how it is to be stored.
        backend: runs the inner loops.
        kind: what half scales and centers are rounded to, from ``layout.settle`` of the whole matrix.

    Source: GPTQ (Frantar et al. 2022) with ELUTQ's levels. ELUTQ's own code keeps the codes chosen before
    compensation; here the compensated weight is rounded, which is better at every number of bits.
    """
    bits, group_size = layout.bits, layout.group_size
    rows, columns = weights.shape
    all_errors = backend.arrays.empty((rows, columns))
    half_scales = np.empty((rows, columns // group_size, bits), dtype=np.float16)
    centers = np.empty(half_scales.shape[:2], dtype=kind.centers_type)
    codes = np.empty((rows, columns), dtype=np.uint8)
    for block in column_blocks(columns, group_size):
        now = weights[:, block] + 0.0
        subtract_product(now, all_errors[:, : block.start], factor[: block.start, block], backend)
        compensated, own = backend.arrays.fetch(now), backend.arrays.fetch(factor[block, block])
        errors = np.empty_like(compensated)
        for inside in pieces(compensated.shape[1], group_size):
            group = (block.start + inside.start) // group_size
            found = quantize_group(compensated[:, inside], own[inside, inside], bits, backend, kind)
            places = half_scales[:, group], centers[:, group], codes[:, block][:, inside], errors[:, inside]
            rest = compensated[:, inside.stop :], own[inside, inside.stop :]
            backend.crew.map(partial(_keep, places, found, *rest), pieces(rows))
        all_errors[:, block] = backend.arrays.place(errors)
    return HLQTensor(half_scales, centers, codes, group_size, kind)


def quantize_group(
    weights: FloatArray, factor: FloatArray, bits: int, backend: Backend, kind: BlockKind = FREE16
) -> Group:
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
        kind: what half scales and centers are rounded to.

    Returns:
        half_scales (rows, bits) float16, centers (rows,), codes and errors (rows, group_size) as
        ``feedback_columns`` gives them.
    """
    diagonal = np.diagonal(factor)
    importance = (1.0 / diagonal**2).astype(np.float32)

    def fit_and_round(target: FloatArray) -> Group:
        half_scales, centers, _ = backend.loops.fit_groups(target, bits, weights.shape[1], importance, kind)
        found = half_scales[:, 0], centers[:, 0]
        return *found, *backend.loops.feedback_columns(weights, factor, *found)

    def restore_as_met(rows: slice) -> None:
        half_scales, centers, codes, errors = best
        own_levels = levels(half_scales[rows], centers[rows])
        rounded = np.take_along_axis(own_levels, codes[rows].astype(np.intp), axis=1)
        as_met[rows] = rounded + errors[rows] * diagonal

    def keep_better(rows: slice) -> None:
        better = _row_energy(refitted[3][rows]) < _row_energy(best[3][rows])
        put_rows([part[rows] for part in best], [part[rows] for part in refitted], better)

    best = fit_and_round(weights)
    as_met = np.empty_like(best[3])
    for _ in range(REFITS):
        backend.crew.map(restore_as_met, pieces(len(weights)))
        refitted = fit_and_round(as_met)
        backend.crew.map(keep_better, pieces(len(weights)))
    return best


def _keep(places: Group, found: Group, compensated: FloatArray, factor: FloatArray, rows: slice) -> None:
    """Put what was found for a group's rows into place, and take its errors out of the columns to its right."""
    put_rows(places, found, rows)
    compensated[rows] -= found[3][rows] @ factor


def _row_energy(errors: FloatArray) -> FloatArray:
    """Return the sum of squares of each row: (rows,) float32."""
    return np.asarray(np.einsum("rc,rc->r", errors, errors))


def inverse_factor(hessian: Array, damping: float, backend: Backend, name: str = "a linear") -> Array:
    """Return the upper triangular U with U^T U = (H + ridge)^-1, the ridge that of damping.

    Damping grows tenfold, to MOST_DAMPING, and says so in the log, while H is not positive definite in float32.

    Args:
        hessian: (n, n) float32, symmetric.
        damping: relative to the diagonal, see ``ridge``.
        backend: runs the products.
        name: whose inputs these are, for messages.

    Returns:
        (n, n) float32.

    Raises:
        CalibrationError: H is not finite, or not even MOST_DAMPING helps.
    """
    check_finite(hessian, backend, name)
    if not bool((hessian.diagonal() > 0.0).any()):  # the layer's input is always zero: any rounding is as good
        return backend.arrays.place(np.eye(len(hessian), dtype=np.float32))
    while True:
        factor = hessian + 0.0  # a copy, numpy's or torch's
        factor.reshape(-1)[:: len(hessian) + 1] += ridge(hessian, damping)
        try:
            invert_to_factor(factor, backend)
        except np.linalg.LinAlgError:
            if damping >= MOST_DAMPING:
                raise CalibrationError(
                    f"{name}: its Hessian is not positive definite even with damping {damping:g}"
                ) from None
            damping = min(damping * 10, MOST_DAMPING)
            log.warning("%s: its Hessian is not positive definite: damping raised to %g", name, damping)
            continue
        return factor


def check_finite(hessian: Array, backend: Backend, name: str) -> None:
    """Refuse a Hessian (n, n) of inputs that overflow.

    Raises:
        CalibrationError: naming the linear whose inputs these are.
    """
    if not all(bool(backend.arrays.xp.isfinite(hessian[rows]).all()) for rows in pieces(len(hessian))):
        raise CalibrationError(f"{name}: activations overflow on the calibration text: use other text, or none")


def invert_to_factor(matrix: Array, backend: Backend) -> None:
    """Replace a symmetric matrix by the upper triangular U whose U^T U is its inverse; its upper triangle is read.

    With A = R R^T, R upper triangular, U is R^-1. By halves, so that nearly all is products, and
    those of large halves units of work:

        A = [[P, Q], [Q^T, S]]    U = [[U_P, -U_P X U_S], [0, U_S]]    X = Q U_S^T, U_P the factor of P - X X^T

    Raises:
        LinAlgError: A is not positive definite; it is destroyed.
    """
    n = len(matrix)
    if n <= LEAF:
        reversed_rows = backend.arrays.fetch(matrix)[::-1, ::-1].astype(np.float64)  # J A J = L L^T: U = J L^-1 J
        lower = np.linalg.inv(np.linalg.cholesky(reversed_rows))
        matrix[:] = backend.arrays.place(np.triu(lower[::-1, ::-1]).astype(np.float32))
        return
    half = n // 2
    top, corner, bottom = matrix[:half, :half], matrix[:half, half:], matrix[half:, half:]
    invert_to_factor(bottom, backend)
    across = multiply_by_rows(corner, bottom, backend, right_lower, transposed=True)
    subtract_square(top, across, backend)
    invert_to_factor(top, backend)
    corner[:] = multiply_by_rows(multiply_by_columns(top, across, backend, left_upper), bottom, backend, right_upper)
    corner *= -1.0
    matrix[half:, :half] = 0.0
