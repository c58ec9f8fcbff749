"""Large products in tiles of fixed size, on the backend's threads: the result does not depend on their number."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from elutq_cli.pipeline.compute.backend import Backend
from elutq_cli.pipeline.compute.crew import Crew, Item, Result
from elutq_cli.pipeline.compute.levels import FloatArray
from elutq_cli.reference import Array
from elutq_formats.hlq import HLQTensor

BLOCK_COLUMNS = 512
"""Columns that a stage goes through before the others hear of what has changed, by one product."""

MOMENT_TILES = 2
"""Tiles to a side of one of a sum of moments: those are read and written again for every batch of tokens."""

MEANS_PART = 0.1
"""What damping adds to a column's diagonal element is in proportion to it and to this part of the mean of all."""

PIECE_ROWS = 512
"""Rows that numpy's functions work on at a time: fewer, and calling them takes longer than what they do."""

RESTORED_AT_ONCE = 1 << 18
"""Weights that a thread dequantizes together."""

ROWS_AT_ONCE = 1 << 13
"""Rows of a matrix that go through the stages together: a head may have ten times as many, and needs no more memory."""

AT_ONCE = 4
"""Batches of tokens that are in memory together, so that it does not depend on the number of threads."""

AnyArray: TypeAlias = npt.NDArray[Any]
Inner = Callable[[slice, slice], slice]


def pieces(n_rows: int, size: int = PIECE_ROWS) -> list[slice]:
    """Cut rows into runs of so many."""
    return [slice(first, min(first + size, n_rows)) for first in range(0, n_rows, size)]


def unit_rows(n_rows: int, workers: int) -> list[slice]:
    """Cut rows into units of work for so many workers: whole tiles, so that products come out the same in any cut."""
    share = -(-n_rows // (workers * PIECE_ROWS)) * PIECE_ROWS
    return pieces(n_rows, ROWS_AT_ONCE if workers == 1 else min(share, ROWS_AT_ONCE))


def small_pieces(tensor: HLQTensor) -> list[slice]:
    """Cut the rows of a matrix into runs that take little memory on each of many threads when they are dequantized."""
    return pieces(tensor.rows, max(1, RESTORED_AT_ONCE // tensor.columns))


def put_rows(places: Sequence[AnyArray], found: Sequence[AnyArray], rows: slice | AnyArray) -> None:
    """Copy these rows of every array to its place."""
    for place, part in zip(places, found, strict=True):
        place[rows] = part[rows]


def column_blocks(n_columns: int, group_size: int) -> list[slice]:
    """Cut columns into runs of whole groups, about BLOCK_COLUMNS each."""
    return pieces(n_columns, max(1, BLOCK_COLUMNS // group_size) * group_size)


def tiles(matrix: Array, size: int, upper: bool = False) -> list[tuple[slice, slice]]:
    """Cut a matrix into squares of this size; ``upper`` leaves out those below its diagonal."""
    n_rows, n_columns = matrix.shape
    squares = [(rows, columns) for rows in pieces(n_rows, size) for columns in pieces(n_columns, size)]
    return [(rows, columns) for rows, columns in squares if not upper or columns.stop > rows.start]


def map_few(
    function: Callable[[Item], Result], items: Sequence[Item], crew: Crew, at_once: int = AT_ONCE
) -> list[Result]:
    """Return the function's results for items that take much memory: so many of them at a time.

    All threads have work all the same where the function's products are ``multiply``'s.
    """
    return [result for few in pieces(len(items), at_once) for result in crew.map(function, items[few])]


# Which part of the inner axis a tile's product runs over.


def all_of_it(rows: slice, columns: slice) -> slice:
    """Neither factor is triangular."""
    return slice(None)


def left_upper(rows: slice, columns: slice) -> slice:
    """The left factor is upper triangular."""
    return slice(rows.start, None)


def right_upper(rows: slice, columns: slice) -> slice:
    """The right factor is upper triangular."""
    return slice(0, columns.stop)


def right_lower(rows: slice, columns: slice) -> slice:
    """The right factor is lower triangular."""
    return slice(columns.start, None)


def multiply(left: Array, right: Array, backend: Backend, inner: Inner = all_of_it) -> Array:
    """Return left @ right: (rows, inner) and (inner, columns)."""
    product = backend.arrays.empty((left.shape[0], right.shape[1]))

    def fill(tile: tuple[slice, slice]) -> None:
        along = inner(*tile)
        product[tile] = left[tile[0], along] @ right[along, tile[1]]

    backend.crew.map(fill, tiles(product, backend.arrays.tile))
    return product


def multiply_rounded(left: Array, right: Array, backend: Backend) -> Array:
    """Return left @ right, of activations: see ``Arrays.add_rounded_product``."""
    product = backend.arrays.zeros((left.shape[0], right.shape[1]))

    def fill(tile: tuple[slice, slice]) -> None:
        backend.arrays.add_rounded_product(product[tile], left[tile[0]], right[:, tile[1]])

    backend.crew.map(fill, tiles(product, backend.arrays.tile))
    return product


def subtract_product(target: Array, left: Array, right: Array, backend: Backend, upper: bool = False) -> None:
    """Subtract left @ right from target in place: (rows, columns), (rows, inner), (inner, columns).

    With ``upper`` the part of the target below its diagonal is left as it is, but for the tiles on the diagonal.
    """

    def subtract(tile: tuple[slice, slice]) -> None:
        target[tile] -= left[tile[0]] @ right[:, tile[1]]

    backend.crew.map(subtract, tiles(target, backend.arrays.tile, upper))


def ridge(hessian: Array, damping: float) -> Array:
    """Return what damping adds to a Hessian's diagonal: (n,) float32, zeros where its inputs are always zero.

    Each column has its own, so that correlations shrink alike whatever the columns' sizes; the mean's part is for
    columns that are hardly ever used.
    """
    diagonal = hessian.diagonal()
    return damping * (diagonal + diagonal.sum() * (MEANS_PART / len(hessian)))


def squared_norm(matrix: Array, hessian: Array | None) -> float:
    """Return trace(A H A^T) of a matrix A: (rows, columns), or its squared Frobenius norm when H is None."""
    return float((matrix * (matrix if hessian is None else matrix @ hessian)).sum())


def dequantize(tensor: HLQTensor, crew: Crew) -> FloatArray:
    """Return what ``tensor.dequantize`` does, some rows on each of the threads."""
    restored = np.empty((tensor.rows, tensor.columns), dtype=np.float32)

    def fill(rows: slice) -> None:
        restored[rows] = tensor.of_rows(rows).dequantize()

    crew.map(fill, small_pieces(tensor))
    return restored


def subtract_restored(weights: Array, tensor: HLQTensor, backend: Backend) -> Array:
    """Return weights - tensor.dequantize(): (rows, columns)."""
    difference = backend.arrays.empty((tensor.rows, tensor.columns))

    def fill(rows: slice) -> None:
        difference[rows] = weights[rows] - backend.arrays.place(tensor.of_rows(rows).dequantize())

    backend.crew.map(fill, small_pieces(tensor))
    return difference


def add_gram(total: Array, inputs: Sequence[Array], backend: Backend) -> None:
    """Add X^T X of each X: (tokens, columns) to the upper triangle of total: (columns, columns), in place.

    The triangle is coarse: the tiles on the diagonal are filled whole. See ``Arrays.add_rounded_product``.
    """

    def add(tile: tuple[slice, slice]) -> None:
        for x in inputs:
            backend.arrays.add_rounded_product(total[tile], x[:, tile[0]].T, x[:, tile[1]])

    backend.crew.map(quiet(add), tiles(total, MOMENT_TILES * backend.arrays.tile, upper=True))


def add_product(total: Array, left: Array, right: Array, backend: Backend) -> None:
    """Add left^T @ right to total in place: (tokens, inner), (tokens, columns), (inner, columns).

    See ``Arrays.add_rounded_product``.
    """

    def add(tile: tuple[slice, slice]) -> None:
        backend.arrays.add_rounded_product(total[tile], left[:, tile[0]].T, right[:, tile[1]])

    backend.crew.map(quiet(add), tiles(total, MOMENT_TILES * backend.arrays.tile))


def mirror_upper(total: Array, backend: Backend) -> None:
    """Copy the upper triangle of a square matrix to its lower one, in place, tile by tile."""

    def mirror(tile: tuple[slice, slice]) -> None:
        rows, columns = tile
        if rows != columns:
            total[columns, rows] = total[tile].T

    backend.crew.map(mirror, tiles(total, MOMENT_TILES * backend.arrays.tile, upper=True))


def quiet(function: Callable[[Item], Result]) -> Callable[[Item], Result]:
    """Keep numpy from warning of overflow in calibration: a Hessian that is not finite is refused by name anyway."""
    return partial(_call_quietly, function)


def _call_quietly(function: Callable[[Item], Result], item: Item) -> Result:
    with np.errstate(over="ignore", invalid="ignore"):
        return function(item)
