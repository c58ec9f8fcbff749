"""The correct stage: weights to aim for, so that a linear undoes what the quantization before it did to its input."""

import numpy as np

from elutq_cli.pipeline.calibrate import InputStatistics
from elutq_cli.pipeline.levels import FloatArray
from elutq_cli.pipeline.products import multiply
from elutq_cli.pipeline.stage import Backend


def corrected(weights: FloatArray, statistics: InputStatistics, factor: FloatArray, backend: Backend) -> FloatArray:
    """Return the weights T whose output on the quantized prefix's inputs x is nearest to the exact model's.

    With x' the exact inputs, the error |x T^T - x' W^T|^2 + damping |T - W|^2 is least for

        T = W + (W C^T + D^T) (H + damping)^-1        C = x^T (x' - x),  D = x^T (s' - s)

    where D counts only for linears whose output is added to the residual stream: there s' - s, what the stream already
    lacks, is made up for as well.

    Args:
        weights: (rows, columns) float32.
        statistics: of the linear's inputs, with ``cross``; with ``drift`` where its output is added to the stream.
        factor: (columns, columns) float32, U with U^T U = (H + damping)^-1, from ``inverse_factor``.
        backend: runs the products.

    Returns:
        (rows, columns) float32.

    Source: asymmetric calibration (GPTAQ, Li et al. 2025) as a plain least squares target; the term for the residual
    stream is ours.
    """
    assert statistics.cross is not None
    if statistics.drift is None and len(weights) > len(factor):  # fewer products this way round
        correction = multiply(multiply(statistics.cross.T, factor.T, backend), factor, backend)
        target = multiply(weights, correction, backend)
    else:
        wanted = multiply(weights, statistics.cross.T, backend)
        if statistics.drift is not None:
            wanted += statistics.drift.T
        target = multiply(multiply(wanted, factor.T, backend), factor, backend)
    target += weights
    return target if np.isfinite(target).all() else weights
