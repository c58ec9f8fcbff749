"""Backends of the stages: the numpy functions that define the results, and the threaded C code."""

from types import TracebackType

from elutq_native.quantizer import Quantizer

from elutq_cli.pipeline.feedback import feedback_columns
from elutq_cli.pipeline.fit import ITERATIONS, PROXIMITY, fit_groups, starting_points
from elutq_cli.pipeline.levels import CodeArray, FloatArray, HalfArray


class NumpyBackend:
    """The definition: slow, on one thread."""

    def fit_groups(
        self, weights: FloatArray, bits: int, group_size: int, importance: FloatArray | None = None
    ) -> tuple[HalfArray, HalfArray, CodeArray]:
        """See ``fit.fit_groups``."""
        return fit_groups(weights, bits, group_size, importance)

    def feedback_columns(
        self, weights: FloatArray, factor: FloatArray, half_scales: HalfArray, centers: HalfArray
    ) -> tuple[CodeArray, FloatArray]:
        """See ``feedback.feedback_columns``."""
        return feedback_columns(weights, factor, half_scales, centers)


class NativeBackend:
    """The same results from C, on several threads; a context manager that stops them."""

    def __init__(self, threads: int | None = None) -> None:
        """Start the threads; None: one for each core this process may use."""
        self._quantizer = Quantizer(threads)

    def fit_groups(
        self, weights: FloatArray, bits: int, group_size: int, importance: FloatArray | None = None
    ) -> tuple[HalfArray, HalfArray, CodeArray]:
        """See ``fit.fit_groups``."""
        return self._quantizer.fit(weights, starting_points(bits), group_size, importance, ITERATIONS, PROXIMITY)

    def feedback_columns(
        self, weights: FloatArray, factor: FloatArray, half_scales: HalfArray, centers: HalfArray
    ) -> tuple[CodeArray, FloatArray]:
        """See ``feedback.feedback_columns``."""
        return self._quantizer.feedback(weights, factor, half_scales, centers)

    def __enter__(self) -> "NativeBackend":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._quantizer.close()
