"""What rounding does to rows of a matrix, those of a sample, in each layout that it can have."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from elutq_cli.pipeline.compute.backend import Backend
from elutq_cli.pipeline.compute.products import multiply
from elutq_cli.pipeline.layout import Layout, Sizes
from elutq_cli.pipeline.stages.feedback import feedback
from elutq_cli.reference import Array

SAMPLED_ROWS = 64
"""Rows of a linear on which its error in each layout is measured, about."""


@dataclass(frozen=True)
class RowErrors:
    """What rounding does to a linear's rows.

    Attributes:
        sizes: (rows,) float64, squared norm of each.
        sampled: those whose errors were measured.
        errors: (sampled rows,) float64, their squared errors under H, a token's mean, by layout.
    """

    sizes: npt.NDArray[np.float64]
    sampled: slice | npt.NDArray[np.intp]
    errors: Mapping[Layout, npt.NDArray[np.float64]]

    @classmethod
    def of_stack(cls, experts: Sequence["RowErrors"]) -> "RowErrors":
        """Put those of a layer's experts on top of each other, in the layouts that all measured ones can have."""
        measured = [(number, of) for number, of in enumerate(experts) if of.errors]
        n_rows = len(experts[0].sizes)
        sampled = np.concatenate([number * n_rows + np.arange(n_rows)[of.sampled] for number, of in measured])
        layouts = [layout for layout in measured[0][1].errors if all(layout in of.errors for _, of in measured)]
        errors = {layout: np.concatenate([of.errors[layout] for _, of in measured]) for layout in layouts}
        return cls(np.concatenate([of.sizes for of in experts]), sampled, errors)

    def harms(self, squares: npt.NDArray[np.float64]) -> dict[Layout, float]:
        """Return the divergence in each layout, from the mean squares of the loss's gradient at each row's output.

        The sampled rows' share is scaled up by what all rows would have if errors grew with their sizes.
        """
        of_all = self.sizes @ squares
        of_sampled = self.sizes[self.sampled] @ squares[self.sampled]
        scale = of_all / of_sampled if of_sampled > 0.0 else 0.0
        return {layout: float(0.5 * scale * (error @ squares[self.sampled])) for layout, error in self.errors.items()}


def measure_errors(
    weights: Array,
    hessian: Array,
    factor: Array | None,
    options: Iterable[Layout],
    backend: Backend,
    n_rows: int = SAMPLED_ROWS,
) -> RowErrors:
    """Round about so many rows of a matrix in each layout.

    Args:
        weights: (rows, columns) float32.
        hessian: (columns, columns) float32, X^T X of the inputs over the number of tokens.
        factor: of that, from ``inverse_factor``; None: only sizes are wanted.
        options: the layouts, as far as the matrix can have them.
        backend: runs the stages.
        n_rows: how many.
    """
    sizes = backend.arrays.fetch((weights * weights).sum(-1)).astype(np.float64)
    if factor is None:
        return RowErrors(sizes, slice(0, 0), {})
    sampled = _spread_rows(len(weights), n_rows)
    rows, errors = weights[sampled], {}
    of_weights = Sizes.of([weights])
    for layout, kind in dict.fromkeys(option.settle_for(of_weights) for option in options):
        difference = backend.arrays.place(feedback(rows, factor, layout, backend, kind).dequantize()) - rows
        of_rows = (multiply(difference, hessian, backend) * difference).sum(-1)
        errors[layout] = np.maximum(backend.arrays.fetch(of_rows).astype(np.float64), 0.0)
    return RowErrors(sizes, sampled, errors)


def _spread_rows(n_rows: int, n_chosen: int) -> slice:
    step = max(1, n_rows // n_chosen) | 1  # odd: with an even one all might have the same place in their heads
    return slice(step // 2, n_rows, step)
