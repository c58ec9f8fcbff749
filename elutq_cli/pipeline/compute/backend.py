"""What a stage computes with: an array namespace, inner loops, threads, and who runs its units of work."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from types import TracebackType

from elutq_cli.pipeline.compute.arrays import Arrays, NumpyArrays
from elutq_cli.pipeline.compute.blas import one_blas_thread
from elutq_cli.pipeline.compute.crew import Crew
from elutq_cli.pipeline.compute.executor import NAMES, Executor, Threads
from elutq_cli.pipeline.compute.inner_loops import InnerLoops, NativeLoops, NumpyLoops
from elutq_cli.pipeline.compute.torch_device import prepare_torch
from elutq_formats.errors import ElutqError
from elutq_native import default_threads
from elutq_native.products import has_rounded_products

WORTH = 2
"""Times the cores of the machine that calls, from which it sends workers what computes little for what travels: below
that, it is done as soon by itself."""


def light_workers(workers: int, size: float = 1.0) -> int:
    """Return among how many workers light units are divided, see ``Backend.light``; 1: they stay with who calls.

    Args:
        workers: that there are.
        size: threads of one over those of the machine that calls.
    """
    return workers if workers * size >= WORTH else 1


@dataclass(frozen=True)
class Backend:
    """One process's means of computing; a context manager that gives them back.

    Attributes:
        arrays: where large matrices are.
        loops: the inner loops, in C or as they are defined.
        crew: threads that share the items of a map.
        executor: runs units of work, here or on other machines; None: here, on the crew.
    """

    arrays: Arrays
    loops: InnerLoops
    crew: Crew
    executor: Executor = None  # type: ignore[assignment]  # of the crew, once there is one
    _blas: AbstractContextManager[None] = field(default_factory=one_blas_thread, repr=False)

    def __post_init__(self) -> None:
        """Let the crew run units where nobody else is to."""
        if self.executor is None:
            object.__setattr__(self, "executor", Threads(self.crew))

    @property
    def light(self) -> Executor:
        """Who runs units that compute little for what travels: products, and tokens on their way through a block."""
        few = light_workers(self.executor.workers, self.executor.threads / self.crew.threads) == 1
        return Threads(self.crew) if few else self.executor

    def __enter__(self) -> "Backend":
        self._blas.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.executor.close()
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


def make_backend(device: str, threads: int | None, executor: str = "threads") -> Backend:
    """Choose the backend for a device: numpy's products on ``cpu``, torch's elsewhere.

    Args:
        device: torch's name of it.
        threads: how many; None: one for each core this process may use. On a cluster those of a unit: what stays here
            has all cores then.
        executor: who runs units of work: ``threads`` of this process, or ``ray`` or ``ray:ADDRESS``, a cluster's.

    Raises:
        ElutqError: torch or Ray is not installed, or has no such device or cluster.
        NativeError: the threads cannot be started.
    """
    if names_ray(executor, device):
        from elutq_cli.pipeline.compute.ray_cluster import RayCluster

        cluster = RayCluster(executor.partition(":")[2] or None, threads)
        cluster.wake()
        return replace(native_backend(), executor=cluster)
    if device == "cpu":
        return native_backend(threads)
    prepare_torch(device, threads or default_threads(), f"device {device}")
    return torch_backend(device, threads)


def names_ray(executor: str, device: str) -> bool:
    """Whether this is a Ray cluster, which may have an address; see ``make_backend``.

    Raises:
        ElutqError: it is nothing that is known, or cannot be with this device.
    """
    name, _, _ = executor.partition(":")
    if name not in NAMES or (name == "threads" and executor != name):
        raise ElutqError(f"executor {executor} is not known: choose threads, ray or ray:ADDRESS")
    if name == "ray" and device != "cpu":
        raise ElutqError(f"executor ray computes on processors: leave out device {device} (--device)")
    return name == "ray"
