"""Matrices with a row for each token of the vocabulary, some rows at a time: they need no more memory than others."""

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from elutq_cli.pipeline.compute.backend import Backend
from elutq_cli.pipeline.compute.crew import Crew
from elutq_cli.pipeline.compute.levels import FloatArray
from elutq_cli.pipeline.compute.products import ROWS_AT_ONCE, dequantize, pieces
from elutq_cli.pipeline.layout import Layout
from elutq_cli.pipeline.recipe import MatrixPlan
from elutq_cli.pipeline.stages.linear import Rows, Treatment, quantize_rows
from elutq_cli.pipeline.stages.measure import measure, measured_rows
from elutq_cli.pipeline.stages.moments import MakeRoom, in_memory
from elutq_cli.reference import Array
from elutq_cli.reference.transformer import WeightSource
from elutq_formats.block_kind import BlockKind
from elutq_formats.constants import SUPERBLOCK_TILES, TILE_ROWS
from elutq_formats.hlq import HLQTensor, block_bytes, block_count, unpack
from elutq_formats.model_tensors import EMBEDDING
from elutq_formats.tensor_record import TensorRecord

SUPERBLOCK_ROWS = SUPERBLOCK_TILES * TILE_ROWS
"""Rows whose blocks lie together in a file."""


def runs_of_rows(n_rows: int) -> list[slice]:
    """Cut the rows of a matrix into runs that go through the stages one after the other."""
    return pieces(n_rows, max(1, ROWS_AT_ONCE // SUPERBLOCK_ROWS) * SUPERBLOCK_ROWS)


def look_up(out: FloatArray, tokens: npt.NDArray[np.int64], rows: slice, values: FloatArray) -> None:
    """Fill in the rows of a matrix that tokens stand for, as far as they are here.

    Args:
        out: (sequences, n, columns) float32.
        tokens: (sequences, n) rows of the matrix.
        rows: those that are here.
        values: (rows, columns) float32, what they hold.
    """
    for sequence, place in zip(tokens, out, strict=True):
        here = (sequence >= rows.start) & (sequence < rows.stop)
        place[here] = values[sequence[here] - rows.start]


def embed(source: WeightSource, tokens: npt.NDArray[np.int64], make_room: MakeRoom = in_memory) -> FloatArray:
    """Return what the embedding makes of tokens (sequences, n): (sequences, n, hidden_size) float32, in such room."""
    found = make_room((*tokens.shape, source.config.hidden_size))
    load_chosen(source, EMBEDDING, tokens, found)
    return found


def load_chosen(source: WeightSource, name: str, chosen: npt.NDArray[np.int64], out: FloatArray) -> None:
    """Load rows of a matrix with one for each token: those numbers (sequences, n) into (sequences, n, columns)."""
    for rows in runs_of_rows(source.config.vocab_size):
        if ((chosen >= rows.start) & (chosen < rows.stop)).any():
            look_up(out, chosen, rows, source.load(name, rows=rows))


def read_rows(record: TensorRecord, contents: npt.NDArray[Any], rows: slice, crew: Crew) -> FloatArray:
    """Return rows of a finished matrix, dequantized: (rows, columns) float32.

    Args:
        record: of the matrix.
        contents: what the file holds of it: blocks uint8 (n_blocks, block_bytes), or (rows, columns) float16.
        rows: which, one of ``runs_of_rows``.
        crew: dequantizes.
    """
    if record.group_size is None:
        return contents[rows].astype(np.float32)
    first, end = (block_count(row, record.columns, record.group_size) for row in (rows.start, rows.stop))
    n_rows = rows.stop - rows.start
    tensor = unpack(contents[first:end], n_rows, record.columns, record.bits, record.group_size, record.kind)
    return dequantize(tensor, crew)


class MatrixByRows:
    """A matrix on its way into a file, some rows after the others.

    Attributes:
        contents: what the file will hold, the rows added so far: blocks uint8, or (rows, columns) float16.
    """

    def __init__(self, plan: MatrixPlan, shape: tuple[int, ...], backend: Backend) -> None:
        """Make room for a matrix (rows, columns)."""
        self.plan = plan
        self.shape = rows, columns = shape
        self.backend = backend
        self.contents: npt.NDArray[np.uint8] | npt.NDArray[np.float16]
        if plan.layout is None:
            self.contents = np.empty(shape, dtype=np.float16)
        else:
            group_size = plan.layout.group_size
            n_bytes = block_bytes(plan.layout.bits, group_size, plan.layout.block_kind)
            blocks = block_count(rows, columns, group_size), n_bytes
            self.contents = np.empty(blocks, dtype=np.uint8)
        self._measured: list[tuple[Array, HLQTensor]] = []

    def add(self, rows: slice, weights: Array, tensor: HLQTensor | None) -> Callable[[], FloatArray]:
        """Put rows that ``runs_of_rows`` has named into their place.

        Args:
            rows: which.
            weights: (rows, columns) float32.
            tensor: what became of them; None: they stay floats.

        Returns:
            A function that returns them dequantized: (rows, columns) float32.
        """
        if tensor is None:
            halves = self.contents[rows] = self.backend.arrays.fetch(weights).astype(np.float16)
            return lambda: halves.astype(np.float32)
        blocks = self.backend.loops.pack(tensor)
        first = block_count(rows.start, self.shape[1], tensor.group_size)
        self.contents[first : first + len(blocks)] = blocks
        measured = np.arange(*measured_rows(self.shape[0]).indices(self.shape[0]))
        own = measured[(measured >= rows.start) & (measured < rows.stop)] - rows.start
        if own.size:
            parts = tensor.half_scales[own], tensor.centers[own], tensor.codes[own]
            chosen = HLQTensor(*parts, tensor.group_size, tensor.kind)
            self._measured.append((weights[own], chosen))
        return lambda: dequantize(tensor, self.backend.crew)

    def record(self, hessian: Array | None) -> TensorRecord:
        """Return the file's record, with the error under the Hessian of the inputs, if there is one."""
        if self.plan.layout is None:
            return self.plan.record(self.shape)
        weights = self.backend.arrays.xp.concatenate([weights for weights, _ in self._measured])
        tensor = HLQTensor.concatenate([tensor for _, tensor in self._measured])
        return self.plan.record(self.shape, measure(weights, tensor, hessian, self.backend), tensor.kind)


class RowReader(Protocol):
    """A matrix at a time, of those that have a name."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""

    def load_by_rows(self, name: str) -> Iterator[tuple[slice, FloatArray]]:
        """Yield a matrix some rows at a time, with their place: ``runs_of_rows``."""


Use: TypeAlias = Callable[[slice, FloatArray, Callable[[], FloatArray]], None]
"""Is called with the place of some rows, what they were, and a function that dequantizes them."""


def quantize_by_rows(
    source: RowReader,
    plan: MatrixPlan,
    name: str,
    treatment: Treatment,
    backend: Backend,
    use: Use | None = None,
    advance: Callable[[int], None] = lambda n_weights: None,
) -> tuple[TensorRecord, npt.NDArray[Any]]:
    """Quantize a matrix, some rows at a time.

    Args:
        source: what it is read from, twice where its layout depends on all of it.
        plan: what becomes of it.
        name: in the source.
        treatment: what it goes through.
        backend: runs a unit of work for each run of rows.
        use: is told of each.
        advance: is told how many weights are done.

    Returns:
        What the file says of it, and what it holds of it: blocks uint8, or (rows, columns) float16.
    """
    plan, kind = plan.settle(backend.arrays.place(weights) for _, weights in source.load_by_rows(name))
    matrix = MatrixByRows(plan, source.shape(name), backend)
    finished = (
        ((rows, weights, None) for rows, weights in source.load_by_rows(name))
        if plan.layout is None
        else _quantized(source.load_by_rows(name), plan.layout, kind, treatment, backend)
    )
    for rows, weights, tensor in finished:
        restore = matrix.add(rows, backend.arrays.place(weights), tensor)
        if use is not None:
            use(rows, weights, restore)
        advance(weights.size)
        del weights, tensor, restore
    hessian = None if treatment.inputs is None else treatment.inputs.hessian
    return matrix.record(hessian), matrix.contents


def _quantized(
    runs: Iterator[tuple[slice, FloatArray]], layout: Layout, kind: BlockKind, treatment: Treatment, backend: Backend
) -> Iterator[tuple[slice, FloatArray, HLQTensor]]:
    """Yield runs of rows with what becomes of them, a unit of work each."""
    begun: deque[tuple[slice, FloatArray]] = deque()

    def units() -> Iterator[Rows]:
        for run in runs:
            begun.append(run)
            yield layout, kind, backend.arrays.place(run[1])
            del run  # not to be held while the next is read

    for tensor in backend.executor.map(partial(quantize_rows, treatment, backend), units()):
        yield *begun.popleft(), tensor
        del tensor
