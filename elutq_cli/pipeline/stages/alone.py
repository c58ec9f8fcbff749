"""A unit of work: a matrix quantized by its weights alone, read where the unit runs."""

from typing import Any

import numpy.typing as npt

from elutq_cli.pipeline.compute.backend import Backend
from elutq_cli.pipeline.recipe import MatrixPlan
from elutq_cli.pipeline.stages.by_rows import quantize_by_rows
from elutq_cli.pipeline.stages.checked_weights import CheckedWeights
from elutq_cli.pipeline.stages.linear import Treatment
from elutq_formats.source import Weights
from elutq_formats.tensor_record import TensorRecord


def quantize_alone(
    source: Weights, treatment: Treatment, backend: Backend, matrix: tuple[MatrixPlan, str]
) -> tuple[TensorRecord, npt.NDArray[Any]]:
    """Read a matrix, some rows at a time, and quantize it.

    Args:
        source: what it is read from.
        treatment: with no inputs.
        backend: of where this runs.
        matrix: what becomes of it, and its name in the source.

    Returns:
        See ``quantize_by_rows``.

    Raises:
        ElutqError: see ``CheckedWeights.load``.
    """
    plan, name = matrix
    return quantize_by_rows(CheckedWeights(source, backend.crew), plan, name, treatment, backend)
