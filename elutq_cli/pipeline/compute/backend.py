"""What a stage computes with: an array namespace, inner loops, and the threads that share its work."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType

from elutq_cli.pipeline.compute.arrays import Arrays, NumpyArrays
from elutq_cli.pipeline.compute.blas import one_blas_thread
from elutq_cli.pipeline.compute.crew import Crew
from elutq_cli.pipeline.compute.inner_loops import InnerLoops, NativeLoops, NumpyLoops
from elutq_cli.pipeline.compute.torch_device import prepare_torch
from elutq_native import default_threads
from elutq_native.products import has_rounded_products


@dataclass(frozen=True)
class Backend:
    """One process's means of computing; a context manager that gives them back.

    Attributes:
        arrays: where large matrices are.
        loops: the inner loops, in C or as they are defined.
        crew: threads that share the items of a map.
    """

    arrays: Arrays
    loops: InnerLoops
    crew: Crew
    _blas: AbstractContextManager[None] = field(default_factory=one_blas_thread, repr=False)

    def __enter__(self) -> "Backend":
        self._blas.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.crew.close()
        self.loops.close()
        self._blas.__exit__(kind, error, trace)


def numpy_backend(loops: InnerLoops | None = None) -> Backend:
    """Return what defines the results: slow, on one thread."""
    return Backend(NumpyArrays(), loops or NumpyLoops(), Crew(1))


def native_backend(
    threads: int | None = None,
    rounds: bool = has_rounded_products(),
    make_loops: Callable[[int], InnerLoops] = NativeLoops,
) -> Backend:
    """Return the same results from C, on several threads.

    But for products of activations, which are rounded where the processor is the faster for it.

    Args:
        threads: how many; None: one for each core this process may use.
        rounds: whether factors of ``add_rounded_product`` are rounded.
        make_loops: makes the inner loops for so many threads.

    Raises:
        NativeError: the threads cannot be started.
    """
    threads = default_threads() if threads is None else threads
    return Backend(NumpyArrays(rounds), make_loops(threads), Crew(threads))


def torch_backend(device: str, threads: int | None = None) -> Backend:
    """Return one whose large products are torch's, on a device that ``prepare_torch`` has found.

    Raises:
        NativeError: the threads cannot be started.
    """
    from elutq_cli.pipeline.compute.torch_arrays import TorchArrays

    threads, arrays = default_threads() if threads is None else threads, TorchArrays(device)
    return Backend(arrays, NativeLoops(threads), Crew(threads, arrays.begin_thread))


def make_backend(device: str, threads: int | None) -> Backend:
    """Choose the backend for a device: numpy's products on ``cpu``, torch's elsewhere.

    Raises:
        ElutqError: torch is not installed, or has no such device.
        NativeError: the threads cannot be started.
    """
    if device == "cpu":
        return native_backend(threads)
    prepare_torch(device, threads or default_threads(), f"--device {device}")
    return torch_backend(device, threads)
