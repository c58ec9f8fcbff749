"""The correct stage: weights to aim for, so that a linear undoes what the quantization before it did to its input."""

import numpy as np

from elutq_cli.pipeline.calibrate import InputStatistics
from elutq_cli.pipeline.feedback import inverse_factor
from elutq_cli.pipeline.levels import FloatArray
from elutq_cli.pipeline.products import multiply
from elutq_cli.pipeline.stage import Backend


def correction(statistics: InputStatistics, damping: float, backend: Backend) -> FloatArray | None:
    """Return what ``corrected`` needs, once for all linears that share an input: (H + damping)^-1 as a matrix.

    Returns:
        (columns, columns) float32; None when the exact inputs were not kept.
    """
    if statistics.cross is None:
        return None
    factor = inverse_factor(statistics.hessian, damping, backend)
    return multiply(np.ascontiguousarray(factor.T), factor, backend)


def corrected(
    weights: FloatArray, statistics: InputStatistics, inverse: FloatArray, adds_to_stream: bool, backend: Backend
) -> FloatArray:
    """Return the weights T whose output on the quantized prefix's inputs x is nearest to the exact model's.

    With x' the exact inputs, the error |x T^T - x' W^T|^2 + damping |T - W|^2 is least for

        T = W + (W C^T + D^T) (H + damping)^-1        C = x^T (x' - x),  D = x^T (s' - s)

    where D counts only for linears whose output is added to the residual stream: there s' - s, what the stream already
    lacks, is made up for as well.

    Args:
        weights: (rows, columns) float32.
        statistics: of the linear's inputs, with ``cross``.
        inverse: from ``correction``.
        adds_to_stream: whether the linear's output is added to the residual stream.
        backend: runs the products.

    Returns:
        (rows, columns) float32.

    Source: asymmetric calibration (GPTAQ, Li et al. 2025) as a plain least squares target; the term for the residual
    stream is ours.
    """
    assert statistics.cross is not None
    wanted = multiply(weights, statistics.cross.T, backend)
    if adds_to_stream and statistics.drift is not None:
        wanted += statistics.drift.T
    target = weights + multiply(wanted, inverse, backend)
    return target if np.isfinite(target).all() else weights
