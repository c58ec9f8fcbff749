"""What the stages share: the inner loops they call, and the result they return.

A stage is a function of a linear's weights, the Hessian of its inputs (None without calibration) and its own options
that returns a ``Quantized``. A stage that improves on another takes that one's ``HLQTensor`` as well.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from elutq_cli.pipeline.levels import CodeArray, FloatArray, HalfArray
from elutq_formats.hlq import HLQTensor


class Backend(Protocol):
    """The stages' inner loops, on one kind of machine."""

    def fit_groups(
        self, weights: FloatArray, bits: int, group_size: int, importance: FloatArray | None = None
    ) -> tuple[HalfArray, HalfArray, CodeArray]:
        """See ``fit.fit_groups``."""

    def feedback_columns(
        self, weights: FloatArray, factor: FloatArray, half_scales: HalfArray, centers: HalfArray
    ) -> tuple[CodeArray, FloatArray]:
        """See ``feedback.feedback_columns``."""


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

    @classmethod
    def of(cls, weights: FloatArray, tensor: HLQTensor, hessian: FloatArray | None) -> "Quantized":
        """Measure a quantized matrix against its weights: (rows, columns) float32."""
        norm = squared_norm(weights, hessian)
        error = squared_norm(weights - tensor.dequantize(), hessian)
        return cls(tensor, math.sqrt(error / norm) if norm > 0.0 else 0.0)


def squared_norm(matrix: FloatArray, hessian: FloatArray | None) -> float:
    """Return trace(A H A^T) of a matrix A: (rows, columns), or its squared Frobenius norm when H is None."""
    product = matrix if hessian is None else matrix @ hessian
    row_sums = np.einsum("ij,ij->i", matrix, product)
    return max(0.0, float(row_sums.sum(dtype=np.float64)))
