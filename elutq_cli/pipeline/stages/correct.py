"""The correct stage: weights to aim for, so that the residual stream gets back what quantization took from it."""

from functools import partial

from elutq_cli.pipeline.compute.backend import Backend
from elutq_cli.pipeline.compute.products import multiply, right_lower, right_upper, unit_rows
from elutq_cli.reference import Array


def correct(weights: Array, lack: Array, factor: Array, backend: Backend) -> Array:
    """Return what a linear whose output is added to the residual stream should be near.

    With x its inputs and s the stream on the quantized prefix, x' and s' the exact model's, the error
    |s + x T^T - s' - x' W^T|^2 + |T - W|^2 weighted by the ridge is least for

        T = W + L (H + ridge)^-1        L = (s' + x' W^T - s - x W^T)^T G x

    where G weighs tokens, as it does in H: see ``InputStatistics``.

    Source: asymmetric calibration (GPTAQ, Li et al. 2025), which aims at x' W^T, as a plain least squares target, and
    at the stream in its place.

    Args:
        weights: (rows, columns) float32.
        lack: (rows, columns) float32, L of ``InputStatistics``.
        factor: (columns, columns) float32, U with U^T U = (H + ridge)^-1, from ``inverse_factor``.
        backend: runs the products.

    Returns:
        (rows, columns) float32; the weights as they are where that is not finite.
    """
    light, xp = backend.light, backend.arrays.xp
    units = ((lack[rows], rows) for rows in unit_rows(len(weights), light.workers))
    unit = partial(_correct_rows, weights, factor, backend)  # all of the weights: they have travelled before
    parts = list(light.map(unit, units))
    target = parts[0] if len(parts) == 1 else xp.concatenate(parts)
    return target if bool(xp.isfinite(target).all()) else weights


def _correct_rows(weights: Array, factor: Array, backend: Backend, part: tuple[Array, slice]) -> Array:
    """A unit of work: what is lacking of some rows, and which they are."""
    lack, rows = part
    target = multiply(multiply(lack, factor.T, backend, right_lower), factor, backend, right_upper)
    target += weights[rows]
    return target
