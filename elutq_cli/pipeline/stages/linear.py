"""A linear on its way through the stages: what is known of its inputs, and what becomes of it."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TypeAlias

import numpy as np

from elutq_cli.pipeline.compute.backend import Backend
from elutq_cli.pipeline.compute.crew import Crew
from elutq_cli.pipeline.compute.levels import FloatArray, HalfArray
from elutq_cli.pipeline.compute.products import dequantize
from elutq_cli.pipeline.layout import Layout
from elutq_cli.pipeline.stages.fit import fit
from elutq_cli.reference import Array
from elutq_formats.block_kind import BlockKind
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
class Treatment:
    """What linears that share an input go through.

    Attributes:
        stages: of the recipe.
        damping: of the recipe.
        inputs: what is known of the input; None: nothing.
    """

    stages: tuple[str, ...]
    damping: float
    inputs: LinearInputs | None = None


Rows: TypeAlias = tuple[Layout, BlockKind, Array]
"""How a matrix is stored, the kind of its blocks, and some rows of it."""


def quantize_rows(treatment: Treatment, backend: Backend, rows: Rows) -> HLQTensor:
    """Run the stages that the recipe and the calibration call for on rows of a matrix: a unit of work."""
    (layout, kind, weights), inputs = rows, treatment.inputs
    first, *others = treatment.stages if inputs is not None else ("fit",)
    if inputs is None or first == "fit":
        found = fit(backend.arrays.fetch(weights), None if inputs is None else inputs.hessian, layout, backend, kind)
    else:
        found = _stage(first)(weights, inputs.factor, layout, backend, kind)
    if inputs is None:
        return found
    for name in others:
        found = _stage(name)(weights, inputs.hessian, found, treatment.damping, backend, kind)
    return found


def _stage(name: str) -> Callable[..., HLQTensor]:
    """Return the function of that name in the file of that name beside this one."""
    function: Callable[..., HLQTensor] = getattr(import_module(f"{__package__}.{name}"), name)
    return function


Part: TypeAlias = tuple[Layout, BlockKind, Array, slice]
"""How a matrix is stored, the kind of its blocks, as much of it as travels, and which rows of that."""


def quantize_part(treatment: Treatment, backend: Backend, part: Part) -> HLQTensor:
    """Run them on some rows of a matrix, which travels whole where other units use it, too: a unit of work."""
    layout, kind, weights, rows = part
    return quantize_rows(treatment, backend, (layout, kind, weights[rows]))


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
