"""The correct stage: weights to aim for, so that a linear undoes what the quantization before it did to its input."""

from elutq_cli.pipeline.calibrate import InputStatistics
from elutq_cli.pipeline.products import multiply, right_lower, right_upper
from elutq_cli.pipeline.stage import Backend
from elutq_cli.reference import Array


class Correction:
    """Turns weights into those whose output on the quantized prefix's inputs x is nearest to the exact model's.

    With x' the exact inputs, the error |x T^T - x' W^T|^2 + |T - W|^2 weighted by the ridge is least for

        T = W + W C^T (H + ridge)^-1        C = x^T (x' - x)

    Where the output is added to the residual stream s, it makes up for what the stream already lacks as well:

        T = W + L (H + ridge)^-1            L = (s' + x' W^T - s - x W^T)^T x

    Source: asymmetric calibration (GPTQ, Li et al. 2025) as a plain least squares target; the term for the residual
    stream is ours.
    """

    def __init__(self, statistics: InputStatistics, factor: Array, backend: Backend) -> None:
        """Compute what the linears with an input have in common.

        Args:
            statistics: of that input, with ``cross`` or ``lack``.
            factor: (columns, columns) float32, U with U^T U = (H + ridge)^-1, from ``inverse_factor``.
            backend: runs the products.
        """
        wanted = statistics.lack if statistics.lack is not None else statistics.cross.T  # type: ignore[union-attr]
        self._change = multiply(multiply(wanted, factor.T, backend, right_lower), factor, backend, right_upper)
        self._is_of_weights = statistics.lack is not None
        self._backend = backend

    def __call__(self, weights: Array) -> Array:
        """Return the target of a linear, or of some of its rows, as long as the output is not added to the stream.

        Args:
            weights: (rows, columns) float32.

        Returns:
            (rows, columns) float32; the weights as they are where that is not finite.
        """
        target = self._change + 0.0 if self._is_of_weights else multiply(weights, self._change, self._backend)
        target += weights
        return target if bool(self._backend.xp.isfinite(target).all()) else weights
