"""Large products in units of work, whole tiles each: their bits do not depend on how many workers share them."""

from collections.abc import Sequence
from functools import partial
from itertools import chain

from elutq_cli.pipeline.compute.backend import Backend
from elutq_cli.pipeline.compute.products import (
    MOMENT_TILES,
    Inner,
    add_gram,
    add_product,
    all_of_it,
    multiply,
    pieces,
    quiet,
    subtract_product,
    unit_rows,
)
from elutq_cli.reference import Array

DIVIDED_ROWS = 2048
"""Rows from which a product of a factor's halves is divided: what is smaller takes no longer than it travels."""

UNITS_EACH = 2
"""Units of a sum for each worker, so that none waits long for the last."""


def multiply_by_rows(
    left: Array, right: Array, backend: Backend, inner: Inner = all_of_it, transposed: bool = False
) -> Array:
    """Return left @ right, some rows of it a unit: see ``multiply``.

    Args:
        left: (rows, inner) float32.
        right: (inner, columns) float32, or (columns, inner) where it is to be ``transposed``.
        backend: runs the units.
        inner: as a tile's columns alone have it.
        transposed: whether right is.
    """
    light = backend.light
    workers = light.workers
    unit = partial(_rows_of_product, right, transposed, inner, backend)
    if workers == 1 or len(left) < DIVIDED_ROWS:
        return unit(left)
    product = backend.arrays.empty((len(left), right.shape[0 if transposed else 1]))
    cut = unit_rows(len(left), workers)
    for rows, part in zip(cut, light.map(unit, (left[rows] for rows in cut)), strict=True):
        product[rows] = part
    return product


def multiply_by_columns(left: Array, right: Array, backend: Backend, inner: Inner = all_of_it) -> Array:
    """Return left @ right, some columns of it a unit, each with both factors.

    Args:
        left: (rows, inner) float32.
        right: (inner, columns) float32.
        backend: runs the units.
        inner: as a tile's rows alone have it.
    """
    light = backend.light
    workers = light.workers
    if workers == 1 or len(left) < DIVIDED_ROWS:
        return multiply(left, right, backend, inner)
    product = backend.arrays.empty((len(left), right.shape[1]))
    cut, unit = unit_rows(right.shape[1], workers), partial(_columns_of_product, left, right, inner, backend)
    for columns, part in zip(cut, light.map(unit, cut), strict=True):
        product[:, columns] = part
    return product


def subtract_square(target: Array, factor: Array, backend: Backend) -> None:
    """Subtract F F^T from the upper triangle of a square target in place: see ``subtract_product``.

    Args:
        target: (n, n) float32.
        factor: (n, inner) float32, F.
        backend: runs the units, some rows of the target each.
    """
    light = backend.light
    workers = light.workers
    if workers == 1 or len(target) < DIVIDED_ROWS:
        subtract_product(target, factor, factor.T, backend, upper=True)
        return
    cut = unit_rows(len(target), UNITS_EACH * workers)  # the first rows are the longest
    units = ((target[rows, rows.start :], rows) for rows in cut)
    unit = partial(_less_square, factor, backend)
    for rows, part in zip(cut, light.map(unit, units), strict=True):
        target[rows, rows.start :] = part


def less_product(target: Array, left: Array, right: Array, backend: Backend) -> Array:
    """Return target - left @ right, some rows a unit: (rows, columns), (rows, inner), (inner, columns)."""
    light = backend.light
    cut = unit_rows(len(target), light.workers)
    unit = partial(_less_rows, left, right, backend)  # all of the left, which is a linear's: it has travelled before
    parts = list(light.map(unit, ((target[rows], rows) for rows in cut)))
    return parts[0] if len(parts) == 1 else backend.arrays.xp.concatenate(parts)


def sum_moments(
    inputs: Sequence[Array], others: Sequence[Array] | None, backend: Backend, scales: Sequence[Array] | None = None
) -> tuple[Array, Array | None]:
    """Return the sums of X^T X and of Y^T X over batches of tokens, in their order, some tiles of them a unit.

    Of the first the part below the diagonal is left out: see ``add_gram``.

    Args:
        inputs: X of each batch, (tokens, columns) float32; may be on disk.
        others: Y of each, (tokens, rows) float32, or None.
        backend: runs the units.
        scales: (tokens, 1) float32 of each batch: its tokens are multiplied by them first, in X and Y; None: by none.

    Returns:
        (columns, columns) and (rows, columns) float32, or None.
    """
    light, columns, size = backend.light, inputs[0].shape[1], MOMENT_TILES * backend.arrays.tile
    workers = light.workers
    squares, bands = pieces(columns, panel_columns(columns, workers, size)), []
    of_inputs = [tuple(x[:, panel] for x in inputs) for panel in squares]  # one object each, to be sent once
    of_others: list[tuple[Array, ...]] = []
    if others is not None:
        rows = others[0].shape[1]
        bands = pieces(rows, band_rows(rows, len(squares), workers, size))
        of_others = [tuple(y[:, band] for y in others) for band in bands]
    numbers = range(len(squares))
    upper = [(i, j) for i in numbers for j in numbers if i <= j]
    beside = [(i, j) for i in range(len(bands)) for j in numbers]
    units = chain(
        ((of_inputs[i], of_inputs[j]) for i, j in upper),
        ((of_others[i], of_inputs[j]) for i, j in beside),
    )
    parts = light.map(quiet(partial(_sum_part, scales, backend)), units)
    total = backend.arrays.zeros((columns, columns))
    for i, j in upper:
        total[squares[i], squares[j]] = next(parts)
    if others is None:
        return total, None
    other_total = backend.arrays.empty((others[0].shape[1], columns))
    for i, j in beside:
        other_total[bands[i], squares[j]] = next(parts)
    return total, other_total


def panel_columns(columns: int, workers: int, size: int) -> int:
    """Return how many columns of X a unit of X^T X has on either side: whole tiles of this size."""
    n_panels = 1
    while n_panels * (n_panels + 1) // 2 < UNITS_EACH * workers:
        n_panels += 1
    return _share(columns, n_panels, size)


def band_rows(rows: int, n_panels: int, workers: int, size: int) -> int:
    """Return how many columns of Y a unit of Y^T X has, where X is cut into so many panels."""
    return _share(rows, -(-UNITS_EACH * workers // n_panels), size)


def _share(n: int, parts: int, size: int) -> int:
    """Return the length of equal parts, rounded up to whole tiles."""
    return -(-n // (size * parts)) * size


def _rows_of_product(right: Array, transposed: bool, inner: Inner, backend: Backend, left: Array) -> Array:
    return multiply(left, right.T if transposed else right, backend, inner)


def _columns_of_product(left: Array, right: Array, inner: Inner, backend: Backend, columns: slice) -> Array:
    return multiply(left, right[:, columns], backend, inner)


def _less_square(factor: Array, backend: Backend, part: tuple[Array, slice]) -> Array:
    """A unit of work: rows of a target from its diagonal on, and which they are."""
    target, rows = part
    less = target + 0.0  # a copy, numpy's or torch's
    subtract_product(less, factor[rows], factor.T[:, rows.start :], backend, upper=True)
    return less


def _less_rows(left: Array, right: Array, backend: Backend, part: tuple[Array, slice]) -> Array:
    """A unit of work: rows of a target, and which they are."""
    target, rows = part
    less = target + 0.0
    subtract_product(less, left[rows], right, backend)
    return less


def _sum_part(
    scales: Sequence[Array] | None, backend: Backend, factors: tuple[tuple[Array, ...], tuple[Array, ...]]
) -> Array:
    """A unit of work: panels of Y and X over all batches; on the diagonal of X^T X they are the same."""
    left, right = factors
    total = backend.arrays.zeros((left[0].shape[1], right[0].shape[1]))
    for number, (y, x) in enumerate(zip(left, right, strict=True)):
        scaled = x if scales is None else x * scales[number]
        if y is x:
            add_gram(total, [scaled], backend)
        else:
            add_product(total, y if scales is None else y * scales[number], scaled, backend)
    return total
