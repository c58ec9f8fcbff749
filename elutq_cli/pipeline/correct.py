"""The correct stage: weights to aim for, so that a linear undoes what the quantization before it did to its input."""

from collections.abc import Sequence

from elutq_cli.pipeline.calibrate import InputStatistics
from elutq_cli.pipeline.products import multiply, right_lower, right_upper
from elutq_cli.pipeline.stage import Backend
from elutq_cli.reference.transformer import Array


def corrected(weights: Sequence[Array], statistics: InputStatistics, factor: Array, backend: Backend) -> list[Array]:
    """Return the weights T whose output on the quantized prefix's inputs x is nearest to the exact model's.

    With x' the exact inputs, the error |x T^T - x' W^T|^2 + damping |T - W|^2 is least for

        T = W + W C^T (H + damping)^-1        C = x^T (x' - x)

    Where the output is added to the residual stream s, it makes up for what the stream already lacks as well:

        T = W + L (H + damping)^-1            L = (s' + x' W^T - s - x W^T)^T x

    Args:
        weights: of the linears with this input, (rows, columns) float32 each.
        statistics: of that input, with ``cross`` or ``lack``.
        factor: (columns, columns) float32, U with U^T U = (H + damping)^-1, from ``inverse_factor``.
        backend: runs the products.

    Returns:
        (rows, columns) float32 of each; the weights as they are where that is not finite.

    Source: asymmetric calibration (GPTQ, Li et al. 2025) as a plain least squares target; the term for the residual
    stream is ours.
    """
    wanted = statistics.lack if statistics.lack is not None else statistics.cross.T  # type: ignore[union-attr]
    change = multiply(multiply(wanted, factor.T, backend, right_lower), factor, backend, right_upper)
    found = []
    for matrix in weights:
        target = change if statistics.lack is not None else multiply(matrix, change, backend)
        target += matrix
        found.append(target if bool(backend.xp.isfinite(target).all()) else matrix)
    return found
