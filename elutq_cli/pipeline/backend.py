"""Backends of the stages: the numpy functions that define the results, and the threaded C code."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

from elutq_cli.pipeline.blas import one_blas_thread
from elutq_cli.pipeline.feedback import feedback_columns
from elutq_cli.pipeline.fit import ITERATIONS, PROXIMITY, fit_groups, starting_points
from elutq_cli.pipeline.levels import CodeArray, FloatArray, HalfArray
from elutq_cli.pipeline.refine import descend_codes
from elutq_cli.pipeline.stage import Item, Result
from elutq_native import default_threads
from elutq_native.quantizer import Quantizer


class NumpyBackend:
    """The definition: slow, on one thread."""

    threads = 1

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Call the function for one item after the other."""
        return [function(item) for item in items]

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

    def descend_codes(
        self,
        codes: CodeArray,
        residual: FloatArray,
        hessian: FloatArray,
        half_scales: HalfArray,
        centers: HalfArray,
        sweeps: int,
    ) -> CodeArray:
        """See ``refine.descend_codes``."""
        return descend_codes(codes, residual, hessian, half_scales, centers, sweeps)


class NativeBackend:
    """The same results from C, on several threads; a context manager that stops them."""

    def __init__(self, threads: int | None = None) -> None:
        """Start the threads; None: one for each core this process may use."""
        self.threads = default_threads() if threads is None else threads
        self._quantizer = Quantizer(self.threads)
        self._executor = ThreadPoolExecutor(self.threads) if self.threads > 1 else None
        self._blas = one_blas_thread()

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Call the function for several items at a time; numpy lets go of the interpreter while it computes."""
        if self._executor is None:
            return [function(item) for item in items]
        return list(self._executor.map(function, items))

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

    def descend_codes(
        self,
        codes: CodeArray,
        residual: FloatArray,
        hessian: FloatArray,
        half_scales: HalfArray,
        centers: HalfArray,
        sweeps: int,
    ) -> CodeArray:
        """See ``refine.descend_codes``."""
        return self._quantizer.descend(codes, residual, hessian, half_scales, centers, sweeps)

    def __enter__(self) -> "NativeBackend":
        self._blas.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
        self._quantizer.close()
        self._blas.__exit__(kind, error, trace)
