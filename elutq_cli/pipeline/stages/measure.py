"""The relative error of quantized matrices against the weights that they stand for."""

import math
from collections.abc import Callable, Mapping

from elutq_cli.pipeline.compute.backend import Backend
from elutq_cli.pipeline.compute.levels import FloatArray
from elutq_cli.pipeline.compute.products import pieces, squared_norm
from elutq_cli.pipeline.stages.calibrate import block_statistics
from elutq_cli.pipeline.stages.moments import MakeRoom
from elutq_cli.reference import Array, Block
from elutq_formats.hlq import HLQTensor

MEASURED_ROWS = 128
"""Rows on which the error of a matrix is measured, evenly spaced: it only informs, and costs two products with H."""


def measured_rows(n_rows: int) -> slice:
    """Return the rows of a matrix on which its error is measured, evenly spaced and MEASURED_ROWS at most."""
    return slice(0, n_rows, -(-n_rows // MEASURED_ROWS))


def sample_rows(weights: Array) -> Array:
    """Return those rows of a matrix: a view."""
    return weights[measured_rows(len(weights))]


def measure(sample: Array, tensor: HLQTensor, hessian: Array | None, backend: Backend) -> float:
    """Return the error of a quantized matrix: the root of its squared error over the weights' squared norm.

    Both are under the Hessian of the matrix's inputs where there is one. 0 is exact, 1 as bad as zeros; 0 when the norm
    is 0.

    Args:
        sample: (rows, columns) float32, ``sample_rows`` of the weights that the matrix stands for.
        tensor: what became of them.
        hessian: (columns, columns) float32, X^T X of the inputs up to a factor, or None.
        backend: runs the products.
    """
    step = measured_rows(tensor.rows).step

    def part(rows: slice) -> tuple[float, float]:
        original = backend.arrays.place(sample[rows])
        restored = tensor.of_rows(slice(rows.start * step, rows.stop * step, step)).dequantize()
        return squared_norm(original - backend.arrays.place(restored), hessian), squared_norm(original, hessian)

    parts = backend.crew.map(part, pieces(len(sample), MEASURED_ROWS // 8))
    error, norm = (sum(column) for column in zip(*parts, strict=True))
    return math.sqrt(max(0.0, error) / norm) if norm > 0.0 else 0.0


def measure_block(
    block: Block,
    hidden: FloatArray,
    tensors: Mapping[str, HLQTensor],
    original: Callable[[str], FloatArray],
    backend: Backend,
    make_room: MakeRoom,
) -> dict[str, float]:
    """Measure a block's matrices on the inputs that they have in the end, when nothing in it changes any more.

    Args:
        block: with its quantized weights.
        hidden: (sequences, n, hidden_size) float32, the block's input; replaced by its output.
        tensors: its quantized matrices, by their names in the block.
        original: returns the weights that a matrix stands for, (rows, columns) float32, by its name in the checkpoint.
        backend: runs the block and the products.
        make_room: see ``block_statistics``.

    Returns:
        The error of each, by its name in the block.
    """
    errors = {}
    for linears, statistics in block_statistics(block, hidden, None, backend, make_room):
        for name in (f"{linear}.weight" for linear in linears):
            if name in tensors:
                sample = sample_rows(original(f"model.layers.{block.layer}.{name}"))
                errors[name] = measure(sample, tensors[name], statistics.hessian, backend)
    return errors
