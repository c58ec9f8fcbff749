"""What the stages share: the inner loops they call, and the result they return.

A stage is a function of a linear's weights, of what it needs of its inputs' Hessian, and of its own options; it returns
a ``HLQTensor``. A stage that improves on another takes that one's as well.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from elutq_cli.pipeline.levels import CodeArray, FloatArray, HalfArray
from elutq_formats.hlq import HLQTensor

Item = TypeVar("Item")
Result = TypeVar("Result")


class Backend(Protocol):
    """The stages' inner loops, on one kind of machine."""

    @property
    def threads(self) -> int:
        """Calls that ``map`` runs at the same time."""

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Return the function's results for all items, in their order."""

    def fit_groups(
        self, weights: FloatArray, bits: int, group_size: int, importance: FloatArray | None = None
    ) -> tuple[HalfArray, HalfArray, CodeArray]:
        """See ``fit.fit_groups``."""

    def feedback_columns(
        self, weights: FloatArray, factor: FloatArray, half_scales: HalfArray, centers: HalfArray
    ) -> tuple[CodeArray, FloatArray]:
        """See ``feedback.feedback_columns``."""

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


@dataclass(frozen=True)
class Quantized:
    """A quantized linear.

    Attributes:
        tensor: what the model file will hold.
        error: root of the squared error over the squared norm, both under the Hessian where there is one: 0 is exact,
            1 is as bad as zeros. 0 when the norm is 0.
    """

    tensor: HLQTensor
    error: float
