"""The stages' inner loops: the numpy functions that define the results, and the C code that repeats them on threads."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from elutq_cli.pipeline.compute.levels import CodeArray, FloatArray, HalfArray
from elutq_cli.pipeline.compute.loops.feedback_columns import feedback_columns
from elutq_cli.pipeline.compute.loops.fit_groups import ITERATIONS, PROXIMITY, fit_groups, starting_points
from elutq_cli.pipeline.compute.loops.refine_group import CODE_SWEEPS, LEAST_PULL, refine_group
from elutq_formats.block_kind import FREE16, BlockKind, Centers
from elutq_formats.hlq import HLQTensor, pack
from elutq_native.quantizer import Quantizer


class InnerLoops(Protocol):
    """What takes a stage's time beside large products; all of it on numpy arrays."""

    def fit_groups(
        self,
        weights: FloatArray,
        bits: int,
        group_size: int,
        importance: FloatArray | None = None,
        kind: BlockKind = FREE16,
    ) -> tuple[HalfArray, Centers, CodeArray]:
        """See ``loops.fit_groups``."""

    def feedback_columns(
        self, weights: FloatArray, factor: FloatArray, half_scales: HalfArray, centers: Centers
    ) -> tuple[CodeArray, FloatArray]:
        """See ``loops.feedback_columns``."""

    def refine_group(
        self,
        half_scales: HalfArray,
        centers: Centers,
        codes: CodeArray,
        residual: FloatArray,
        hessian: FloatArray,
        kind: BlockKind = FREE16,
    ) -> tuple[HalfArray, Centers, CodeArray, FloatArray]:
        """See ``loops.refine_group``."""

    def pack(self, tensor: HLQTensor) -> npt.NDArray[np.uint8]:
        """See ``elutq_formats.hlq.pack``."""

    def close(self) -> None:
        """Stop their threads."""


class NumpyLoops:
    """The definition: slow, on the calling thread."""

    def fit_groups(
        self,
        weights: FloatArray,
        bits: int,
        group_size: int,
        importance: FloatArray | None = None,
        kind: BlockKind = FREE16,
    ) -> tuple[HalfArray, Centers, CodeArray]:
        """See ``loops.fit_groups``."""
        return fit_groups(weights, bits, group_size, importance, kind)

    def feedback_columns(
        self, weights: FloatArray, factor: FloatArray, half_scales: HalfArray, centers: Centers
    ) -> tuple[CodeArray, FloatArray]:
        """See ``loops.feedback_columns``."""
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
        """See ``loops.refine_group``."""
        return refine_group(half_scales, centers, codes, residual, hessian, kind)

    def pack(self, tensor: HLQTensor) -> npt.NDArray[np.uint8]:
        """See ``elutq_formats.hlq.pack``."""
        return pack(tensor)

    def close(self) -> None:
        """There are no threads."""


class NativeLoops:
    """The same results from C, on several threads."""

    def __init__(self, threads: int) -> None:
        """Start the threads."""
        self._quantizer = Quantizer(threads)

    def fit_groups(
        self,
        weights: FloatArray,
        bits: int,
        group_size: int,
        importance: FloatArray | None = None,
        kind: BlockKind = FREE16,
    ) -> tuple[HalfArray, Centers, CodeArray]:
        """See ``loops.fit_groups``."""
        starts = starting_points(bits)
        grid = kind.number, kind.exponent
        found = self._quantizer.fit(weights, starts, group_size, importance, ITERATIONS, PROXIMITY, *grid)
        return found[0], found[1].astype(kind.centers_type), found[2]

    def feedback_columns(
        self, weights: FloatArray, factor: FloatArray, half_scales: HalfArray, centers: Centers
    ) -> tuple[CodeArray, FloatArray]:
        """See ``loops.feedback_columns``."""
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
        """See ``loops.refine_group``."""
        grid = kind.number, kind.exponent
        found = self._quantizer.refine(half_scales, centers, codes, residual, hessian, CODE_SWEEPS, LEAST_PULL, *grid)
        return found[0], found[1].astype(kind.centers_type), *found[2:]

    def pack(self, tensor: HLQTensor) -> npt.NDArray[np.uint8]:
        """See ``elutq_formats.hlq.pack``."""
        numbers = tensor.kind.encode(tensor.half_scales, tensor.centers)
        return self._quantizer.pack(*numbers, tensor.codes, tensor.bits, tensor.kind.number)

    def close(self) -> None:
        """Stop the threads."""
        self._quantizer.close()
