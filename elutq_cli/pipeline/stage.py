"""What the stages share: the machine they compute on.

A stage is a function of a linear's weights, of what it needs of its inputs' Hessian, and of its own options; it returns
a ``HLQTensor``. A stage that improves on another takes that one's as well.

An ``Array`` is a numpy array or, on a backend for torch, a tensor on its device. Matrices that large products need are
Arrays; what a stage returns, and what its inner loops see, is numpy.
"""

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from elutq_cli.pipeline.levels import CodeArray, FloatArray, HalfArray
from elutq_cli.reference import Array, Namespace
from elutq_formats.block_kind import FREE16, BlockKind, Centers
from elutq_formats.hlq import HLQTensor

Item = TypeVar("Item")
Result = TypeVar("Result")


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
        """See ``fit.fit_groups``."""

    def feedback_columns(
        self, weights: FloatArray, factor: FloatArray, half_scales: HalfArray, centers: Centers
    ) -> tuple[CodeArray, FloatArray]:
        """See ``feedback.feedback_columns``."""

    def refine_group(
        self,
        half_scales: HalfArray,
        centers: Centers,
        codes: CodeArray,
        residual: FloatArray,
        hessian: FloatArray,
        kind: BlockKind = FREE16,
    ) -> tuple[HalfArray, Centers, CodeArray, FloatArray]:
        """See ``refine.refine_group``."""

    def pack(self, tensor: HLQTensor) -> npt.NDArray[np.uint8]:
        """See ``elutq_formats.hlq.pack``."""
