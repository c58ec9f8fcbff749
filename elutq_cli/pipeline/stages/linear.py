"""A linear on its way through the stages: what is known of its inputs, and what becomes of it."""

from dataclasses import dataclass

import numpy as np

from elutq_cli.pipeline.compute.crew import Crew
from elutq_cli.pipeline.compute.levels import FloatArray, HalfArray
from elutq_cli.pipeline.compute.products import dequantize
from elutq_cli.reference import Array
from elutq_formats.hlq import HLQTensor
from elutq_formats.tensor_record import TensorRecord


@dataclass(frozen=True)
class LinearInputs:
    """What the stages use of the inputs that some linears share.

    Attributes:
        hessian: (columns, columns) float32, X^T X over the number of tokens.
        factor: (columns, columns) float32, U of ``inverse_factor``; None where nothing but fit is to run.
    """

    hessian: Array
    factor: Array | None


@dataclass(frozen=True)
class Matrix:
    """A matrix as the file will hold it.

    Attributes:
        record: of the file.
        contents: HLQ, or (rows, columns) float16.
    """

    record: TensorRecord
    contents: HLQTensor | HalfArray

    def restore(self, crew: Crew) -> FloatArray:
        """Return it dequantized: (rows, columns) float32."""
        if isinstance(self.contents, HLQTensor):
            return dequantize(self.contents, crew)
        return self.contents.astype(np.float32)
