"""Tensors of a checkpoint on their way through the stages into the spool, one matrix or some rows of one at a time."""

import logging
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from elutq_cli.pipeline.compute.backend import Backend
from elutq_cli.pipeline.compute.levels import FloatArray
from elutq_cli.pipeline.compute.products import unit_rows
from elutq_cli.pipeline.progress import Progress
from elutq_cli.pipeline.recipe import MatrixPlan, Recipe
from elutq_cli.pipeline.run.spool import Spool
from elutq_cli.pipeline.stages.alone import Alone, Whole, quantize_alone, runs_alone
from elutq_cli.pipeline.stages.by_rows import MatrixByRows, Use, embed, quantize_by_rows, read_rows
from elutq_cli.pipeline.stages.checked_weights import CheckedWeights
from elutq_cli.pipeline.stages.feedback import check_finite, inverse_factor
from elutq_cli.pipeline.stages.linear import LinearInputs, Matrix, Part, Treatment, quantize_part
from elutq_cli.pipeline.stages.measure import measure, measured_rows
from elutq_cli.pipeline.stages.moments import InputStatistics
from elutq_cli.pipeline.stages.streams import exact_model
from elutq_cli.reference import Array, Transformer
from elutq_formats.block_kind import BlockKind
from elutq_formats.hlq import HLQTensor
from elutq_formats.model_tensors import EMBEDDING, HEAD
from elutq_formats.names import gguf_name
from elutq_formats.tensor_record import TensorRecord

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ToQuantize:
    """A matrix, or one of a stack, that the stages are to have.

    Attributes:
        plan: what is to become of it.
        weights: (rows, columns) float32, what it is to be near.
        sample: ``sample_rows`` of the checkpoint's weights.
        of_stack: the kind of the blocks, where the plan is settled for a whole stack.
        shared: whether other units of the block use the same array.
    """

    plan: MatrixPlan
    weights: Array
    sample: Array
    of_stack: BlockKind | None = None
    shared: bool = False


@dataclass(frozen=True)
class _Begun:
    """One whose units have begun: how it is stored, how many they are, and when that was."""

    given: ToQuantize
    plan: MatrixPlan
    n_units: int
    seconds: float


class Tensors:
    """Takes tensors from a checkpoint to a spool, through the stages of a recipe.

    Attributes:
        config: hyper-parameters of the model.
    """

    def __init__(
        self, source: CheckedWeights, recipe: Recipe, backend: Backend, spool: Spool, progress: Progress
    ) -> None:
        """Read nothing yet."""
        self.config = source.config
        self._source = source
        self._recipe = recipe
        self._backend = backend
        self._spool = spool
        self._progress = progress
        self._alone: Iterator[Whole | HLQTensor] = iter(())
        self._begun: dict[str, MatrixByRows] = {}

    def load(self, name: str) -> FloatArray:
        """Load a tensor of the checkpoint; a tied head is the embedding."""
        return self._source.load(self._stored_name(name))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor of the checkpoint."""
        return self._source.shape(self._stored_name(name))

    def load_expert(self, name: str, number: int) -> FloatArray:
        """Load one expert's matrix of a stack of the checkpoint."""
        (matrix,) = self._source.load(name, slice(number, number + 1))
        return np.asarray(matrix)

    def embed(self, tokens: npt.NDArray[np.int64]) -> FloatArray:
        """Return the checkpoint's embedding of tokens (sequences, n): (sequences, n, hidden_size) float32, on disk."""
        return embed(self._source, tokens, self._spool.make_room)

    def exact_model(self) -> Transformer:
        """Return the checkpoint as a model, on the backend."""
        return exact_model(self._source, self._backend)

    def n_weights(self, name: str) -> int:
        """Return the weights of a matrix of the plan."""
        return math.prod(self.shape(name))

    def head_rows(self) -> Iterator[tuple[FloatArray, FloatArray]]:
        """Yield the finished head some rows at a time: the checkpoint's, and dequantized."""
        finished = {record.name: (record, contents) for record, contents in self._spool.sources()}
        record, contents = finished.get(gguf_name(HEAD)) or finished[gguf_name(EMBEDDING)]
        for rows, weights in self._source.load_by_rows(self._stored_name(HEAD)):
            yield weights, read_rows(record, contents(), rows, self._backend.crew)

    def add_vector(self, name: str) -> FloatArray:
        """Copy what stays in float32: a norm, a bias, a router."""
        vector = self.load(name)
        self._spool.add(TensorRecord.of_floats(gguf_name(name), vector.shape), vector)
        return vector

    def prepare(self, name: str, statistics: InputStatistics) -> LinearInputs:
        """Return what the stages use of an input that linears share.

        Args:
            name: of one of them, as messages have it.
            statistics: of the input.

        Raises:
            ElutqError: the inputs overflow.
        """
        if not self._recipe.factors:
            check_finite(statistics.hessian, self._backend, name)
            return LinearInputs(statistics.hessian, None)
        factor = inverse_factor(statistics.hessian, self._recipe.damping, self._backend, name)
        return LinearInputs(statistics.hessian, factor)

    def begin_alone(self, plans: Iterable[MatrixPlan]) -> None:
        """Let matrices be quantized by their weights alone, ahead of ``add_alone``, which is called for each."""
        unit = partial(quantize_alone, self._source.source, self._treatment(None), self._backend)
        self._alone = self._backend.executor.map(unit, self._units_alone(plans))

    def _units_alone(self, plans: Iterable[MatrixPlan]) -> Iterator[Alone]:
        """Yield matrices as units of work, those of the vocabulary in several where others are to work, too."""
        for plan in plans:
            name = self._stored_name(plan.name)
            if not plan.kept and (runs := self._runs_alone(plan)):
                settled, kind = plan.settle(weights for _, weights in self._source.load_by_rows(name))
                self._begun[plan.name] = MatrixByRows(settled, self.shape(plan.name), self._backend)
                yield from (Alone(settled, name, (kind, rows)) for rows in runs)
            elif not plan.kept:
                yield Alone(plan, name)

    def _runs_alone(self, plan: MatrixPlan) -> list[slice]:
        """Return the rows of a matrix that are units of their own; none where all of it is one."""
        return runs_alone(plan, self.shape(plan.name)[0]) if self._backend.executor.workers > 1 else []

    def add_alone(self, plan: MatrixPlan) -> None:
        """Put the next of ``begin_alone``'s matrices into the spool, or one that others have quantized."""
        if plan.kept:
            self._add_kept(plan)
            return
        begin = time.perf_counter()
        record, contents = self._assemble(plan) if self._runs_alone(plan) else self._next_alone()
        assert record.name == gguf_name(plan.name)
        log_done(record, begin)
        self._spool.add(record, contents)
        self._progress.advance(record.n_weights)

    def _next_alone(self) -> Whole:
        found = next(self._alone)
        assert not isinstance(found, HLQTensor)
        return found

    def _assemble(self, plan: MatrixPlan) -> Whole:
        """Return a matrix whose rows come from several units."""
        name = self._stored_name(plan.name)
        for rows in self._runs_alone(plan):
            tensor = next(self._alone)  # the first begins the matrix
            assert isinstance(tensor, HLQTensor)
            self._begun[plan.name].add(rows, self._source.load(name, rows), tensor)
            del tensor
        matrix = self._begun.pop(plan.name)
        return matrix.record(None), matrix.contents

    def add_by_rows(self, plan: MatrixPlan, inputs: LinearInputs | None = None, use: Use | None = None) -> None:
        """Quantize a matrix, some rows at a time, and put it into the spool.

        Args:
            plan: what becomes of it.
            inputs: what is known of its input; None: nothing.
            use: is told of each run of rows.
        """
        begin, name, advance = time.perf_counter(), self._stored_name(plan.name), self._progress.advance
        treatment = self._treatment(inputs)
        record, contents = quantize_by_rows(self._source, plan, name, treatment, self._backend, use, advance)
        log_done(record, begin)
        self._spool.add(record, contents)

    def _add_kept(self, plan: MatrixPlan) -> None:
        """Put a matrix that others have quantized into the spool with their levels."""
        begin, name = time.perf_counter(), self._stored_name(plan.name)
        tensor = self._source.levels(name)
        sample = self._source.load(name, measured_rows(tensor.rows))
        error = measure(sample, tensor, None, self._backend)
        shape = tensor.rows, tensor.columns
        record = TensorRecord(gguf_name(plan.name), tensor.bits, *shape, tensor.group_size, error, tensor.kind)
        log_done(record, begin)
        self._spool.add(record, self._backend.loops.pack(tensor))
        self._progress.advance(math.prod(shape))

    def quantize_sharing(self, matrices: Iterable[ToQuantize], inputs: LinearInputs | None) -> Iterator[Matrix]:
        """Quantize matrices that share an input, in their order; while one is finished here, others may be at the next.

        Args:
            matrices: asked for as the first of their units begin, so that those to come need not exist yet.
            inputs: what is known of their input.
        """
        begun: deque[_Begun] = deque()
        unit = partial(quantize_part, self._treatment(inputs), self._backend)
        parts: list[HLQTensor] = []
        for part in self._backend.executor.map(unit, self._units(matrices, begun)):
            parts.append(part)
            del part
            while begun and len(parts) >= begun[0].n_units:
                own, parts = parts[: begun[0].n_units], parts[begun[0].n_units :]
                yield self._finish(begun.popleft(), own, inputs)
                del own
        for matrix in begun:
            yield self._finish(matrix, [], inputs)

    def _units(self, matrices: Iterable[ToQuantize], begun: deque[_Begun]) -> Iterator[Part]:
        """Yield the units of matrices, each of which joins those that have begun before its first."""
        for given in matrices:
            plan, kind = given.plan, given.of_stack
            if kind is None:
                plan, kind = plan.settle([given.weights])
            rows = [] if plan.layout is None else unit_rows(len(given.weights), self._backend.executor.workers)
            begun.append(_Begun(given, plan, len(rows), time.perf_counter()))
            for some in rows:
                assert plan.layout is not None
                travels = (given.weights, some) if given.shared else (given.weights[some], slice(None))
                yield plan.layout, kind, *travels
                del travels
            del given

    def _finish(self, begun: _Begun, parts: list[HLQTensor], inputs: LinearInputs | None) -> Matrix:
        """Make a matrix of what its units returned."""
        given, plan = begun.given, begun.plan
        rows, columns = given.weights.shape
        if plan.layout is None:
            matrix = Matrix(plan.record((rows, columns)), self._backend.arrays.fetch(given.weights).astype(np.float16))
        else:
            tensor = HLQTensor.concatenate(parts)
            parts.clear()
            error = measure(given.sample, tensor, None if inputs is None else inputs.hessian, self._backend)
            matrix = Matrix(plan.record((rows, columns), error, tensor.kind), tensor)
        if given.of_stack is None:
            log_done(matrix.record, begun.seconds)
        self._progress.advance(rows * columns)
        return matrix

    def add_matrix(self, matrix: Matrix) -> None:
        """Put a quantized matrix into the spool."""
        contents = matrix.contents
        if isinstance(contents, HLQTensor):
            self._spool.add(matrix.record, self._backend.loops.pack(contents))
        else:
            self._spool.add(matrix.record, contents)

    def _treatment(self, inputs: LinearInputs | None) -> Treatment:
        return Treatment(self._recipe.stages, self._recipe.damping, inputs)

    def _stored_name(self, name: str) -> str:
        """Return the name of the tensor that a matrix of the plan is made from."""
        return EMBEDDING if name == HEAD and self.config.tie_word_embeddings else name


def log_done(record: TensorRecord, begin: float | None = None) -> None:
    """Tell what became of a matrix, or of a stack of them, and how long it took where that is known."""
    how, took = "float16", "" if begin is None else f" ({time.perf_counter() - begin:.2f} s)"
    if record.group_size is not None:
        how = f"{record.bits} bits, groups of {record.group_size}, {record.kind}, error {record.error:.4f}"
    log.info("%s: %s%s", record.name, how, took)
