"""Backends of the stages: the numpy functions that define the results, and the threaded C code.

An ``Array`` is a numpy array or, on a backend for torch, a tensor on its device. Matrices that large products need are
Arrays; what a stage returns, and what its inner loops see, is numpy.
"""

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Protocol

import numpy as np
import numpy.typing as npt

from elutq_cli.pipeline.compute.blas import one_blas_thread
from elutq_cli.pipeline.compute.crew import Crew, Item, Result
from elutq_cli.pipeline.compute.levels import CodeArray, FloatArray, HalfArray
from elutq_cli.pipeline.compute.loops.feedback_columns import feedback_columns
from elutq_cli.pipeline.compute.loops.fit_groups import ITERATIONS, PROXIMITY, fit_groups, starting_points
from elutq_cli.pipeline.compute.loops.refine_group import CODE_SWEEPS, LEAST_PULL, refine_group
from elutq_cli.pipeline.compute.torch_device import prepare_torch
from elutq_cli.reference import Array, Namespace
from elutq_formats.block_kind import FREE16, BlockKind, Centers
from elutq_formats.hlq import HLQTensor, pack
from elutq_native import default_threads
from elutq_native.products import add_rounded_product, has_rounded_products
from elutq_native.quantizer import Quantizer


class Backend(Protocol):
    """The stages' inner loops and where their large products are computed, on one kind of machine."""

    @property
    def threads(self) -> int:
        """Calls that ``map`` runs at the same time."""

    @property
    def tile(self) -> int:
        """Rows and columns of a product's tile: large enough for full speed, small enough to follow a triangle."""

    @property
    def xp(self) -> Namespace:
        """The module that computes on Arrays: numpy or torch."""

    def place(self, array: FloatArray) -> Array:
        """Return a numpy array as an Array; where those are numpy arrays, itself."""

    def fetch(self, array: Array) -> FloatArray:
        """Return an Array as a numpy array; where it is one, itself."""

    def empty(self, shape: tuple[int, ...]) -> Array:
        """Return an Array of float32, its contents undefined."""

    def zeros(self, shape: tuple[int, ...]) -> Array:
        """Return an Array of float32 zeros."""

    def add_rounded_product(self, target: Array, left: Array, right: Array) -> None:
        """Add left @ right to target in place, its factors rounded to bfloat16 where that is the faster.

        For activations, whose products are most of a calibrated run: their rounding averages out over tokens.
        """

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Return the function's results for all items, in their order; the function may call map itself."""

    def fit_groups(
        self,
        weights: FloatArray,
        bits: int,
        group_size: int,
        importance: FloatArray | None = None,
        kind: BlockKind = FREE16,
    ) -> tuple[HalfArray, Centers, CodeArray]:
        """See ``fit_groups``."""

    def feedback_columns(
        self, weights: FloatArray, factor: FloatArray, half_scales: HalfArray, centers: Centers
    ) -> tuple[CodeArray, FloatArray]:
        """See ``feedback_columns``."""

    def refine_group(
        self,
        half_scales: HalfArray,
        centers: Centers,
        codes: CodeArray,
        residual: FloatArray,
        hessian: FloatArray,
        kind: BlockKind = FREE16,
    ) -> tuple[HalfArray, Centers, CodeArray, FloatArray]:
        """See ``refine_group``."""

    def pack(self, tensor: HLQTensor) -> npt.NDArray[np.uint8]:
        """See ``elutq_formats.hlq.pack``."""


class OnProcessor:
    """Arrays are numpy's."""

    xp: Namespace = np
    tile = 512

    def place(self, array: FloatArray) -> Array:
        """Return the array."""
        return array

    def fetch(self, array: Array) -> FloatArray:
        """Return the array."""
        return np.asarray(array)

    def empty(self, shape: tuple[int, ...]) -> Array:
        """Return float32 of undefined contents."""
        return np.empty(shape, dtype=np.float32)

    def zeros(self, shape: tuple[int, ...]) -> Array:
        """Return float32 zeros."""
        return np.zeros(shape, dtype=np.float32)

    def add_rounded_product(self, target: Array, left: Array, right: Array) -> None:
        """Add left @ right to target in place, without any rounding."""
        target += left @ right


class NumpyBackend(OnProcessor):
    """The definition: slow, on one thread."""

    threads = 1

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Call the function for one item after the other."""
        return [function(item) for item in items]

    def fit_groups(
        self,
        weights: FloatArray,
        bits: int,
        group_size: int,
        importance: FloatArray | None = None,
        kind: BlockKind = FREE16,
    ) -> tuple[HalfArray, Centers, CodeArray]:
        """See ``fit_groups``."""
        return fit_groups(weights, bits, group_size, importance, kind)

    def feedback_columns(
        self, weights: FloatArray, factor: FloatArray, half_scales: HalfArray, centers: Centers
    ) -> tuple[CodeArray, FloatArray]:
        """See ``feedback_columns``."""
        return feedback_columns(weights, factor, half_scales, centers)

    def refine_group(
        self,
        half_scales: HalfArray,
        centers: Centers,
        codes: CodeArray,
        residual: FloatArray,
        hessian: FloatArray,
        kind: BlockKind = FREE16,
    ) -> tuple[HalfArray, Centers, CodeArray, FloatArray]:
        """See ``refine_group``."""
        return refine_group(half_scales, centers, codes, residual, hessian, kind)

    def pack(self, tensor: HLQTensor) -> npt.NDArray[np.uint8]:
        """See ``elutq_formats.hlq.pack``."""
        return pack(tensor)


class NativeBackend(OnProcessor):
    """The same results from C, on several threads; a context manager that stops them.

    But for products of activations, which are rounded where the processor is the faster for it.
    """

    def __init__(self, threads: int | None = None, rounds: bool = has_rounded_products()) -> None:
        """Start the threads.

        Args:
            threads: how many; None: one for each core this process may use.
            rounds: whether factors of ``add_rounded_product`` are rounded.
        """
        self.threads = default_threads() if threads is None else threads
        self._quantizer = Quantizer(self.threads)
        self._crew = Crew(self.threads, self.begin_thread)
        self._blas = one_blas_thread()
        self._rounds = rounds

    def begin_thread(self) -> None:
        """Prepare a thread of ``map``'s."""

    def add_rounded_product(self, target: Array, left: Array, right: Array) -> None:
        """Add left @ right to target in place, the factors rounded to bfloat16 unless this was not wanted."""
        if self._rounds:
            add_rounded_product(target, left, right)
        else:
            super().add_rounded_product(target, left, right)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Call the function for several items at a time; numpy lets go of the interpreter while it computes."""
        return self._crew.map(function, items)

    def fit_groups(
        self,
        weights: FloatArray,
        bits: int,
        group_size: int,
        importance: FloatArray | None = None,
        kind: BlockKind = FREE16,
    ) -> tuple[HalfArray, Centers, CodeArray]:
        """See ``fit_groups``."""
        starts = starting_points(bits)
        grid = kind.number, kind.exponent
        found = self._quantizer.fit(weights, starts, group_size, importance, ITERATIONS, PROXIMITY, *grid)
        return found[0], found[1].astype(kind.centers_type), found[2]

    def feedback_columns(
        self, weights: FloatArray, factor: FloatArray, half_scales: HalfArray, centers: Centers
    ) -> tuple[CodeArray, FloatArray]:
        """See ``feedback_columns``."""
        return self._quantizer.feedback(weights, factor, half_scales, centers)

    def refine_group(
        self,
        half_scales: HalfArray,
        centers: Centers,
        codes: CodeArray,
        residual: FloatArray,
        hessian: FloatArray,
        kind: BlockKind = FREE16,
    ) -> tuple[HalfArray, Centers, CodeArray, FloatArray]:
        """See ``refine_group``."""
        grid = kind.number, kind.exponent
        found = self._quantizer.refine(half_scales, centers, codes, residual, hessian, CODE_SWEEPS, LEAST_PULL, *grid)
        return found[0], found[1].astype(kind.centers_type), *found[2:]

    def pack(self, tensor: HLQTensor) -> npt.NDArray[np.uint8]:
        """See ``elutq_formats.hlq.pack``."""
        numbers = tensor.kind.encode(tensor.half_scales, tensor.centers)
        return self._quantizer.pack(*numbers, tensor.codes, tensor.bits, tensor.kind.number)

    def __enter__(self) -> "NativeBackend":
        self._blas.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._crew.close()
        self._quantizer.close()
        self._blas.__exit__(kind, error, trace)


def make_backend(device: str, threads: int | None) -> NativeBackend:
    """Choose the backend for a device: numpy's products on ``cpu``, torch's elsewhere.

    Raises:
        ElutqError: torch is not installed, or has no such device.
        NativeError: the threads cannot be started.
    """
    if device == "cpu":
        return NativeBackend(threads)
    prepare_torch(device, threads or default_threads(), f"--device {device}")
    from elutq_cli.pipeline.compute.torch_backend import TorchBackend

    return TorchBackend(device, threads)
