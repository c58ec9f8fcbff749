"""Large products in pieces of fixed size, on the backend's threads: the result does not depend on their number."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from elutq_cli.pipeline.levels import FloatArray
from elutq_cli.pipeline.stage import Backend, Item, Quantized, Result
from elutq_formats.constants import SUPERBLOCK_TILES, TILE_ROWS
from elutq_formats.hlq import HLQTensor, pack

PIECE_ROWS = 256
PIECE_WEIGHTS = 1 << 20

MEASURED_ROWS = 1024
"""Rows on which the error of a matrix is measured, evenly spaced: it only informs, and costs two products with H."""


def pieces(n_rows: int) -> list[slice]:
    """Cut rows into runs of PIECE_ROWS."""
    return [slice(first, min(first + PIECE_ROWS, n_rows)) for first in range(0, n_rows, PIECE_ROWS)]


def multiply(left: npt.NDArray[Any], right: npt.NDArray[Any], backend: Backend) -> npt.NDArray[Any]:
    """Return left @ right: (rows, inner) and (inner, columns), of one dtype."""
    product = np.empty((len(left), right.shape[1]), dtype=left.dtype)

    def fill(rows: slice) -> None:
        np.matmul(left[rows], right, out=product[rows])

    backend.map(fill, pieces(len(left)))
    return product


def subtract_product(
    target: npt.NDArray[Any], left: npt.NDArray[Any], right: npt.NDArray[Any], backend: Backend
) -> None:
    """Subtract left @ right from target in place: (rows, columns), (rows, inner), (inner, columns)."""

    def subtract(rows: slice) -> None:
        target[rows] -= left[rows] @ right

    backend.map(subtract, pieces(len(target)))


def squared_norm(matrix: FloatArray, hessian: FloatArray | None) -> float:
    """Return trace(A H A^T) of a matrix A: (rows, columns), or its squared Frobenius norm when H is None."""
    product = matrix if hessian is None else matrix @ hessian
    return float(np.einsum("ij,ij->i", matrix, product).sum(dtype=np.float64))


def measure(weights: FloatArray, tensor: HLQTensor, hessian: FloatArray | None, backend: Backend) -> Quantized:
    """Measure a quantized matrix against its weights (rows, columns) float32, on MEASURED_ROWS of its rows at most."""
    step = -(-len(weights) // MEASURED_ROWS)

    def part(rows: slice) -> tuple[float, float]:
        rows = slice(rows.start * step, rows.stop * step, step)
        restored = HLQTensor(tensor.half_scales[rows], tensor.centers[rows], tensor.codes[rows], tensor.group_size)
        difference = weights[rows] - restored.dequantize()
        return squared_norm(difference, hessian), squared_norm(weights[rows], hessian)

    parts = backend.map(part, pieces(-(-len(weights) // step)))
    error, norm = (sum(column) for column in zip(*parts, strict=True))
    return Quantized(tensor, math.sqrt(max(0.0, error) / norm) if norm > 0.0 else 0.0)


def pack_matrix(tensor: HLQTensor, backend: Backend) -> npt.NDArray[np.uint8]:
    """Lay a matrix out as ``pack`` does, some superblocks on each of the backend's threads."""
    step = TILE_ROWS * SUPERBLOCK_TILES * max(1, PIECE_WEIGHTS // (TILE_ROWS * SUPERBLOCK_TILES * tensor.columns))

    def part(first: int) -> npt.NDArray[np.uint8]:
        rows = slice(first, first + step)
        return pack(HLQTensor(tensor.half_scales[rows], tensor.centers[rows], tensor.codes[rows], tensor.group_size))

    return np.concatenate(backend.map(part, range(0, tensor.rows, step)))


def add_gram(total: FloatArray, inputs: Sequence[FloatArray], backend: Backend) -> None:
    """Add X^T X of each X: (tokens, columns) to the upper triangle of total: (columns, columns), in place.

    The triangle is coarse: the square pieces on the diagonal are filled whole.
    """

    def add(rows: slice) -> None:
        for x in inputs:
            total[rows, rows.start :] += x[:, rows].T @ x[:, rows.start :]

    backend.map(quiet(add), pieces(len(total)))


def add_product(total: FloatArray, left: FloatArray, right: FloatArray, backend: Backend) -> None:
    """Add left^T @ right to total in place: (tokens, inner), (tokens, columns), (inner, columns)."""

    def add(rows: slice) -> None:
        total[rows] += left[:, rows].T @ right

    backend.map(quiet(add), pieces(len(total)))


def mirror_upper(total: FloatArray, backend: Backend) -> None:
    """Copy the upper triangle of a square matrix to its lower one, in place."""

    def mirror(rows: slice) -> None:
        total[rows.stop :, rows] = total[rows, rows.stop :].T

    backend.map(mirror, pieces(len(total)))


def quiet(function: Callable[[Item], Result]) -> Callable[[Item], Result]:
    """Keep numpy from warning of overflow in calibration: a Hessian that is not finite is refused by name anyway."""

    def call(item: Item) -> Result:
        with np.errstate(over="ignore", invalid="ignore"):
            return function(item)

    return call
