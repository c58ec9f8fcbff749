"""Units of work: a matrix quantized by its weights alone, or some rows of one, read where the unit runs."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy.typing as npt

from elutq_cli.pipeline.compute.backend import Backend
from elutq_cli.pipeline.recipe import MatrixPlan
from elutq_cli.pipeline.stages.by_rows import quantize_by_rows, runs_of_rows
from elutq_cli.pipeline.stages.checked_weights import CheckedWeights
from elutq_cli.pipeline.stages.linear import Treatment, quantize_rows
from elutq_formats.block_kind import BlockKind
from elutq_formats.hlq import HLQTensor
from elutq_formats.model_tensors import EMBEDDING, HEAD
from elutq_formats.source import Weights
from elutq_formats.tensor_record import TensorRecord

Whole: TypeAlias = tuple[TensorRecord, npt.NDArray[Any]]
"""What ``quantize_by_rows`` makes of a matrix."""


def runs_alone(plan: MatrixPlan, n_rows: int) -> list[slice]:
    """Return the rows of a matrix that are units of their own where several workers are there; none: it is one unit.

    A matrix with a row for each token of the vocabulary would take as long as several blocks.
    """
    runs = runs_of_rows(n_rows) if plan.layout is not None and plan.name in (EMBEDDING, HEAD) else []
    return runs if len(runs) > 1 else []


@dataclass(frozen=True)
class Alone:
    """A matrix, or some rows of it.

    Attributes:
        plan: what becomes of it.
        name: in the source.
        part: the kind of its blocks, for which all of it has been looked at, and the rows; None: the whole matrix.
    """

    plan: MatrixPlan
    name: str
    part: tuple[BlockKind, slice] | None = None


def quantize_alone(source: Weights, treatment: Treatment, backend: Backend, matrix: Alone) -> Whole | HLQTensor:
    """Read weights and quantize them.

    Args:
        source: what they are read from.
        treatment: with no inputs.
        backend: of where this runs.
        matrix: which.

    Returns:
        Of rows what becomes of them; of a whole matrix, read some rows at a time, what the file says of it and holds.

    Raises:
        ElutqError: see ``CheckedWeights.load``.
    """
    checked = CheckedWeights(source, backend.crew)
    if matrix.part is None or matrix.plan.layout is None:
        return quantize_by_rows(checked, matrix.plan, matrix.name, treatment, backend)
    kind, rows = matrix.part
    weights = backend.arrays.place(checked.load(matrix.name, rows))
    return quantize_rows(treatment, backend, (matrix.plan.layout, kind, weights))
