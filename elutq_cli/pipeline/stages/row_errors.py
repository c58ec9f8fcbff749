"""What rounding does to rows of a matrix, those of a sample, in each layout that it can have."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from elutq_cli.pipeline.compute.backend import Backend
from elutq_cli.pipeline.compute.products import multiply
from elutq_cli.pipeline.layout import Layout, Sizes
from elutq_cli.pipeline.stages.feedback import feedback, inverse_factor
from elutq_cli.reference import Array
from elutq_formats.block_kind import BlockKind

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
        """Put those of a layer's experts on top of each other; all that were measured have the same layouts."""
        measured = [(number, of) for number, of in enumerate(experts) if of.errors]
        n_rows = len(experts[0].sizes)
        sampled = np.concatenate([number * n_rows + np.arange(n_rows)[of.sampled] for number, of in measured])
        errors = {layout: np.concatenate([of.errors[layout] for _, of in measured]) for layout in measured[0][1].errors}
        return cls(np.concatenate([of.sizes for of in experts]), sampled, errors)

    def harms(self, squares: npt.NDArray[np.float64]) -> dict[Layout, float]:
        """Return the divergence in each layout, from the mean squares of the loss's gradient at each row's output.

        The sampled rows' share is scaled up by what all rows would have if errors grew with their sizes.
        """
        of_all = self.sizes @ squares
        of_sampled = self.sizes[self.sampled] @ squares[self.sampled]
        scale = of_all / of_sampled if of_sampled > 0.0 else 0.0
        return {layout: float(0.5 * scale * (error @ squares[self.sampled])) for layout, error in self.errors.items()}


@dataclass(frozen=True)
class Sample:
    """Rows of a linear that are rounded in each layout that it can have.

    Attributes:
        sizes: (all rows,) float64, squared norm of each.
        sampled: those that are rounded.
        rows: (sampled rows, columns) float32.
        layouts: the layouts, each with the kind of its blocks.
    """

    sizes: npt.NDArray[np.float64]
    sampled: slice
    rows: Array
    layouts: tuple[tuple[Layout, BlockKind], ...]

    @classmethod
    def of(
        cls,
        weights: Array,
        options: Iterable[Layout],
        backend: Backend,
        n_rows: int = SAMPLED_ROWS,
        of_weights: Sizes | None = None,
    ) -> "Sample":
        """Choose about so many rows of a matrix, and the layouts, as far as it can have them.

        Args:
            weights: (rows, columns) float32.
            options: the layouts, as the recipe would have them.
            backend: computes.
            n_rows: to be chosen.
            of_weights: how large the weights are of all that is stored as one; None: those of the matrix.
        """
        sizes = backend.arrays.fetch((weights * weights).sum(-1)).astype(np.float64)
        sampled, of_weights = _spread_rows(len(weights), n_rows), of_weights or Sizes.of([weights])
        layouts = dict.fromkeys(option.settle_for(of_weights) for option in options)
        return cls(sizes, sampled, weights[sampled], tuple(layouts))

    @classmethod
    def of_none(cls, weights: Array, backend: Backend) -> "Sample":
        """Look at the sizes of a matrix's rows alone."""
        return replace(cls.of(weights, (), backend), sampled=slice(0, 0), rows=weights[:0])

    def measured(self, errors: Mapping[Layout, npt.NDArray[np.float64]]) -> RowErrors:
        """Return what is known of the matrix when the rows' errors are."""
        return RowErrors(self.sizes, self.sampled, errors)


ToRound: TypeAlias = tuple[Array, tuple[tuple[Layout, BlockKind], ...]]
"""Rows and layouts of a ``Sample``."""


def round_rows(
    rows: Array, layouts: Iterable[tuple[Layout, BlockKind]], hessian: Array, factor: Array, backend: Backend
) -> dict[Layout, npt.NDArray[np.float64]]:
    """Return the squared errors of rows of a matrix under H in each layout: (rows,) float64.

    Args:
        rows: (rows, columns) float32.
        layouts: of a ``Sample``.
        hessian: (columns, columns) float32, X^T X of the inputs over the number of tokens.
        factor: of that, from ``inverse_factor``.
        backend: runs the stages.
    """
    errors = {}
    for layout, kind in layouts:
        difference = backend.arrays.place(feedback(rows, factor, layout, backend, kind).dequantize()) - rows
        of_rows = (multiply(difference, hessian, backend) * difference).sum(-1)
        errors[layout] = np.maximum(backend.arrays.fetch(of_rows).astype(np.float64), 0.0)
    return errors


def round_all(
    damping: float, backend: Backend, shared: tuple[Array | None, str, tuple[ToRound, ...]]
) -> list[dict[Layout, npt.NDArray[np.float64]]]:
    """Round the samples of linears that share an input, a unit of work: its Hessian's factor is made on the way.

    Args:
        damping: see ``inverse_factor``.
        backend: of where this runs.
        shared: the input's Hessian, (columns, columns) float32, or None where there is nothing to round; the name of
            one of the linears, for messages; and what is to be rounded of each.

    Raises:
        CalibrationError: see ``inverse_factor``.
    """
    hessian, name, samples = shared
    if hessian is None:
        return [{} for _ in samples]
    factor = inverse_factor(hessian, damping, backend, name)
    return [round_rows(rows, layouts, hessian, factor, backend) for rows, layouts in samples]


def _spread_rows(n_rows: int, n_chosen: int) -> slice:
    step = max(1, n_rows // n_chosen) | 1  # odd: with an even one all might have the same place in their heads
    return slice(step // 2, n_rows, step)
