"""Stacks of experts on their way through the stages into the spool: the matrix of one expert after the other."""

import math
from dataclasses import replace

import numpy as np

from elutq_cli.pipeline.compute.backend import Backend
from elutq_cli.pipeline.compute.levels import FloatArray
from elutq_cli.pipeline.compute.products import dequantize
from elutq_cli.pipeline.recipe import MatrixPlan
from elutq_cli.pipeline.run.spool import Spool
from elutq_cli.pipeline.run.tensors import Tensors, ToQuantize
from elutq_cli.pipeline.stages.linear import Matrix
from elutq_cli.reference import Array
from elutq_formats.hlq import HLQTensor, unpack
from elutq_formats.tensor_record import TensorRecord


class StackOnItsWay:
    """A stack whose experts are quantized in their order; all share bits, groups, kind and exponent."""

    def __init__(self, plan: MatrixPlan, tensors: Tensors, spool: Spool, backend: Backend) -> None:
        """Look at all weights where the kind depends on how large they are, and make room in the spool."""
        self.shape = tensors.shape(plan.name)
        self._tensors, self._spool, self._backend = tensors, spool, backend
        experts = (backend.arrays.place(tensors.load_expert(plan.name, number)) for number in range(self.shape[0]))
        self._plan, self._kind = plan.settle(experts)
        self._record = self._plan.record(self.shape, kind=self._kind)
        self._errors: list[float] = []
        dims, dtype = tuple(reversed(self._record.dims)), np.uint8 if self._record.group_size else np.float16
        self._file = spool.open_stack(self._record.name, dims, dtype)

    def to_quantize(self, weights: Array, sample: Array) -> ToQuantize:
        """Return the next expert's matrix as the stages are to have it: see ``ToQuantize``."""
        return ToQuantize(self._plan, weights, sample, self._kind)

    def add(self, matrix: Matrix) -> None:
        """Put the next expert's matrix, which is quantized, where it belongs."""
        contents = matrix.contents
        if isinstance(contents, HLQTensor):
            self._file.add(self._backend.loops.pack(contents))
        else:
            self._file.add(contents)
        if matrix.record.error is not None:
            self._errors.append(matrix.record.error)

    def restore(self, number: int) -> FloatArray:
        """Return an expert's matrix, dequantized: (rows, columns) float32."""
        record, contents = self._record, self._file.read(number)
        if record.group_size is None:
            return contents.astype(np.float32)
        _, rows, columns = self.shape
        return dequantize(
            unpack(contents, rows, columns, record.bits, record.group_size, record.kind), self._backend.crew
        )

    def restore_placed(self, number: int) -> Array:
        """Return the same on the backend."""
        return self._backend.arrays.place(self.restore(number))

    def finish(self) -> TensorRecord:
        """Put the stack into the spool, with the root of its experts' mean squared errors."""
        error = math.hypot(*self._errors) / math.sqrt(len(self._errors)) if self._errors else None
        self._record = replace(self._record, error=error)
        self._spool.add_stack(self._record, self._file)
        return self._record
