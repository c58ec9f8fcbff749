"""The driver: takes a checkpoint through the stages, block by block, to a model file."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from elutq_cli.pipeline.allocate import allocate
from elutq_cli.pipeline.by_rows import MatrixByRows, look_up
from elutq_cli.pipeline.calibrate import InputStatistics, block_statistics, input_statistics
from elutq_cli.pipeline.calibration_text import CalibrationText
from elutq_cli.pipeline.checked_weights import CheckedWeights
from elutq_cli.pipeline.correct import Correction
from elutq_cli.pipeline.feedback import check_finite, feedback, inverse_factor
from elutq_cli.pipeline.fingerprint import fingerprint
from elutq_cli.pipeline.fit import fit
from elutq_cli.pipeline.levels import FloatArray
from elutq_cli.pipeline.linear import LinearInputs, Matrix
from elutq_cli.pipeline.measure import measure, measure_block, sample_rows
from elutq_cli.pipeline.preparation import prepare
from elutq_cli.pipeline.products import ROWS_AT_ONCE, multiply, pieces
from elutq_cli.pipeline.progress import Progress
from elutq_cli.pipeline.provenance import describe_run, printable_origin
from elutq_cli.pipeline.recipe import MatrixPlan, Plan, Recipe
from elutq_cli.pipeline.refine import refine
from elutq_cli.pipeline.rotate import RotatedCheckpoint
from elutq_cli.pipeline.spool import Spool
from elutq_cli.pipeline.stage import Backend
from elutq_cli.reference import Array, Block, block_tensor_names
from elutq_cli.reference.transformer import rms_norm
from elutq_formats.atomic import check_output
from elutq_formats.hlq import HLQTensor
from elutq_formats.model_file import ModelFile
from elutq_formats.model_tensors import EMBEDDING, FINAL_NORM, HEAD
from elutq_formats.model_writer import TensorSource, write_model
from elutq_formats.names import gguf_name
from elutq_formats.source import ModelSource
from elutq_formats.tensor_record import TensorRecord

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Summary:
    """What a run made.

    Attributes:
        bits_per_weight: over all tensors.
        size_bytes: of the file.
        seconds: wall-clock time.
        errors: relative error of every quantized matrix, by its name in the file.
    """

    bits_per_weight: float
    size_bytes: int
    seconds: float
    errors: dict[str, float]


def quantize(
    checkpoint: ModelSource,
    output: Path,
    recipe: Recipe,
    calibration: CalibrationText | None,
    backend: Backend,
    force: bool = False,
    resume: bool = True,
    max_memory: float | None = None,
    progress: Progress | None = None,
    device: str = "cpu",
) -> Summary:
    """Quantize a checkpoint into a model file.

    Without calibration one matrix is in memory at a time; with it, one block and its Hessians. Finished blocks, and the
    activations of the calibration sequences between them, are in a work folder beside the output, and a run that was
    stopped goes on after them.

    Args:
        checkpoint: the model.
        output: the file to make.
        recipe: how.
        calibration: sequences for error feedback, or None: weights alone are fitted.
        backend: runs the inner loops.
        force: replace the output if it is there, and what a stopped run of another kind has finished.
        resume: use what a stopped run has finished; otherwise it is removed.
        max_memory: refuse to start when the run may take more memory than so many GB.
        progress: is told of the weights just done; None: nobody is.
        device: torch's name of where to tune.

    Raises:
        ElutqError: anything that is wrong with the input or the disk; then there is no output.
    """
    begin = time.perf_counter()
    check_output(output, force)
    recipe = recipe.resolved(calibration is not None)
    source = CheckedWeights(RotatedCheckpoint(checkpoint, recipe.seed) if recipe.rotate else checkpoint, backend)
    plan = prepare(checkpoint, output, recipe, calibration, backend, max_memory, device).plan
    for note in checkpoint.notes:
        log.warning("%s", note)
    with Spool(output, fingerprint(checkpoint, recipe, calibration, device), resume, force) as spool:
        progress = progress or Progress()
        if recipe.method == "allocate" and calibration is not None:
            find = partial(allocate, source, recipe, calibration.tokens, backend)
            found = spool.remember(partial(find, make_room=spool.make_room, note=progress.note))
            plan = Plan.make(source.config, recipe, {name: (bits, group) for name, (bits, group) in found.items()})
        run = _Run(source, plan, recipe, backend, spool, progress, device)
        sources = run.add_all(calibration)
        origin = printable_origin(checkpoint)
        write_model(
            output,
            source.config,
            sources,
            origin=origin,
            tokenizer_json=checkpoint.tokenizer_json,
            chat_template=checkpoint.chat_template,
            special_tokens=checkpoint.special_tokens,
            sampling=checkpoint.sampling,
            provenance=describe_run(checkpoint, origin, recipe, calibration),
            force=force,
        )
    file = ModelFile.open(output)
    errors = {record.name: record.error for record in file.tensors.values() if record.error is not None}
    return Summary(file.bits_per_weight(), file.size_bytes, time.perf_counter() - begin, errors)


class _Run:
    """One checkpoint on its way into a spool."""

    def __init__(
        self,
        source: CheckedWeights,
        plan: Plan,
        recipe: Recipe,
        backend: Backend,
        spool: Spool,
        progress: Progress,
        device: str,
    ) -> None:
        self.source = source
        self.config = source.config
        self.plan = plan
        self.recipe = recipe
        self.backend = backend
        self.spool = spool
        self.progress = progress
        self.device = device

    def add_all(self, calibration: CalibrationText | None) -> Iterable[TensorSource]:
        """Quantize every tensor that the spool does not hold, unit by unit; return them all in the file's order."""
        names = [self.stored_name(entry.name) for entry in self.plan.matrices()]
        self.progress.begin(sum(math.prod(self.source.shape(name)) for name in names), "weights")
        for record in self.spool.records:
            self.progress.advance(record.n_weights if record.bits != 32 else 0)
        units: list[Callable[[], list[FloatArray]]] = [
            partial(self.add_embedding, calibration),
            *(partial(self.add_block, layer) for layer in range(self.config.num_hidden_layers)),
            self.add_head,
        ]
        for unit in units[self.spool.n_finished :]:
            self.spool.finish_unit(unit())
        if calibration is None or "e2e" not in self.recipe.tune:
            return self.spool.sources()
        return self.tune_end_to_end(calibration.tokens)

    def add_embedding(self, calibration: CalibrationText | None) -> list[FloatArray]:
        """Quantize the embedding.

        Returns:
            The residual streams of the calibration sequences, (sequences, n, hidden_size) float32: on the quantized
            model, and where the recipe asks for it on the exact model. None at all without calibration.
        """
        streams: list[FloatArray] = []
        if calibration is not None:
            shape = (*calibration.tokens.shape, self.config.hidden_size)
            streams = [self.spool.make_room(shape) for _ in range(2 if self.recipe.keeps_exact else 1)]

        def look_up_rows(rows: slice, weights: FloatArray, restore: Callable[[], FloatArray]) -> None:
            if calibration is not None:
                for stream, values in zip(streams, (restore(), weights), strict=False):
                    look_up(stream, calibration.tokens, rows, values)

        self.add_by_rows(self.plan.embedding, use=look_up_rows)
        return streams

    def add_block(self, layer: int) -> list[FloatArray]:
        """Quantize a block; return the residual streams after it."""
        streams = self.spool.open_streams()
        if streams:
            self.add_calibrated_block(layer, self.plan.blocks[layer], *streams)
        else:
            for plan in self.plan.blocks[layer]:
                self.add_by_rows(plan)
        for name in self.config.vector_shapes(layer):
            self.add_vector(name)
        return streams

    def add_head(self) -> list[FloatArray]:
        """Quantize the output norm and the head, if there is one; return the streams for those who tune all blocks."""
        norm, streams = self.add_vector(FINAL_NORM), self.spool.open_streams()
        if self.plan.head is not None:
            correct, inputs = None, None
            if streams and self.plan.head.group_size is not None:
                statistics = input_statistics([self.head_input(norm)] * len(streams), streams, self.backend)
                correct, inputs = self.prepare(HEAD, statistics)
                del statistics
            self.add_by_rows(self.plan.head, correct, inputs)
        return streams if "e2e" in self.recipe.tune else []

    def head_input(self, norm: FloatArray) -> Callable[[Array], Array]:
        """Return the function from the last block's output to the head's input."""
        weight, epsilon = self.backend.place(norm), self.config.rms_norm_eps
        return lambda x: rms_norm(x, weight, epsilon, self.backend.xp)

    def add_calibrated_block(
        self, layer: int, plans: tuple[MatrixPlan, ...], hidden: FloatArray, exact: FloatArray | None = None
    ) -> None:
        """Quantize a block's linears one input at a time.

        Args:
            layer: the block.
            plans: of its linears.
            hidden: its input, which becomes the quantized block's output.
            exact: the exact model's, which becomes the exact block's output; or None.
        """
        prefix = f"model.layers.{layer}."
        by_name = {plan.name: plan for plan in plans}
        weights = {name: self.backend.place(self.load(prefix + name)) for name in block_tensor_names(self.config)}
        block = Block(self.config, layer, weights, self.backend.xp, partial(multiply, backend=self.backend))
        before = np.array(hidden) if "block" in self.recipe.tune else None
        matrices: dict[str, Matrix] = {}
        for linears, statistics in block_statistics(block, hidden, exact, self.backend, self.spool.make_room):
            originals = {f"{prefix}{linear}.weight": block.weights[f"{linear}.weight"] for linear in linears}
            correct, inputs = self.prepare(next(iter(originals)), statistics)
            targets = {name: weights if correct is None else correct(weights) for name, weights in originals.items()}
            del statistics, originals, correct
            for name in list(targets):
                sample = sample_rows(block.weights[name.removeprefix(prefix)])
                matrix = self.quantize_matrix(by_name[name], targets.pop(name), inputs, sample)
                if before is None:
                    self.add_matrix(matrix)
                else:
                    matrices[name.removeprefix(prefix)] = matrix
                block.weights[name.removeprefix(prefix)] = self.backend.place(matrix.restore(self.backend))
        if before is not None and exact is not None:
            matrices = self.tune_block(block, matrices, before, exact)
            hidden[...] = before
            tensors = {name: of.contents for name, of in matrices.items() if isinstance(of.contents, HLQTensor)}
            errors = measure_block(block, hidden, tensors, self.load, self.backend, self.spool.make_room)
            for name, matrix in matrices.items():
                self.add_matrix(Matrix(replace(matrix.record, error=errors.get(name)), matrix.contents))

    def tune_block(
        self, block: Block, matrices: Mapping[str, Matrix], inputs: FloatArray, outputs: FloatArray
    ) -> dict[str, Matrix]:
        """Tune a block whose linears are quantized; its weights become those of the matrices that are returned."""
        from elutq_cli.pipeline.tune.block import tune_block

        starts = {name: matrix.contents for name, matrix in matrices.items() if isinstance(matrix.contents, HLQTensor)}
        tuned = tune_block(block, starts, inputs, outputs, self.recipe.seed, self.device, self.progress.note)
        log.info("blk.%d: output error %.4f, %.4f before tuning", block.layer, tuned.after, tuned.before)
        found = dict(matrices)
        if tuned.after < tuned.before:
            for name, tensor in tuned.matrices.items():
                found[name] = Matrix(matrices[name].record, tensor)
                block.weights[name] = self.backend.place(found[name].restore(self.backend))
        return found

    def tune_end_to_end(self, tokens: npt.NDArray[np.int64]) -> Iterable[TensorSource]:
        """Tune the levels of all blocks on sequences (sequences, n), each epoch a unit; return the file's tensors."""
        from elutq_cli.pipeline.tune.end_to_end import EndToEnd, QuantizedModel

        model = QuantizedModel(self.config, self.spool.sources(), self.device)
        exact_head = model.head(self.load(FINAL_NORM), self.load(HEAD))
        tuning = EndToEnd(model, exact_head, tokens, self.recipe.seed)
        hidden, exact, *state = self.spool.open_streams()
        if state:
            tuning.resume(state)
        self.progress.begin(tuning.n_steps, "steps")
        self.progress.advance(tuning.n_steps_done)
        while not tuning.finished:
            tuning.run_epoch(exact, self.progress)
            log.info("epoch %d: KL %.5f, %.5f before tuning", tuning.n_epochs_done, tuning.losses[-1], tuning.losses[0])
            self.spool.finish_unit([hidden, exact, *tuning.state()])
        if not tuning.keep_best():
            return self.spool.sources()
        stream = self.spool.make_room(hidden.shape)
        errors = model.measure(tokens, stream, self.load, self.backend, self.spool.make_room)
        return model.replace_tuned(self.spool.sources(), errors)

    def prepare(self, name: str, statistics: InputStatistics) -> tuple[Correction | None, LinearInputs | None]:
        """Return what turns the weights of linears with one input into targets, and what the stages use of that input.

        Args:
            name: of one of them, for messages.
            statistics: of the input.

        Raises:
            ElutqError: the inputs overflow.
        """
        if self.recipe.method == "fit":
            check_finite(statistics.hessian, self.backend, gguf_name(name))
            return None, LinearInputs(statistics.hessian, None)
        factor = inverse_factor(statistics.hessian, self.recipe.damping, self.backend, gguf_name(name))
        correct = Correction(statistics, factor, self.backend) if self.recipe.corrects else None
        return correct, LinearInputs(statistics.hessian, factor)

    def add_by_rows(
        self,
        plan: MatrixPlan,
        correct: Callable[[Array], Array] | None = None,
        inputs: LinearInputs | None = None,
        use: Callable[[slice, FloatArray, Callable[[], FloatArray]], None] | None = None,
    ) -> None:
        """Quantize a matrix, some rows at a time, and put it into the spool.

        Args:
            plan: what becomes of it.
            correct: returns what rows of it should be near; None: themselves.
            inputs: what is known of its input; None: nothing.
            use: called with the place of some rows, what they were, and a function that dequantizes them.
        """
        begin = time.perf_counter()
        name = self.stored_name(plan.name)
        matrix = MatrixByRows(plan, self.source.shape(name), self.backend)
        for rows, weights in self.source.load_by_rows(name):
            placed = self.backend.place(weights)
            target = placed if correct is None else correct(placed)
            restore = matrix.add(rows, placed, target, lambda part: self.run_stages(plan, part, inputs))
            if use is not None:
                use(rows, weights, restore)
            self.progress.advance(weights.size)
            del weights, placed, target, restore
        record = matrix.record(None if inputs is None else inputs.hessian)
        _log_done(record, begin)
        self.spool.add(record, matrix.contents)

    def quantize_matrix(self, plan: MatrixPlan, weights: Array, inputs: LinearInputs | None, sample: Array) -> Matrix:
        """Quantize a matrix.

        Args:
            plan: what is to become of it.
            weights: (rows, columns) float32, what it is to be near.
            inputs: what is known of its input.
            sample: ``sample_rows`` of the checkpoint's weights.
        """
        rows, columns = weights.shape
        name = gguf_name(plan.name)
        begin = time.perf_counter()
        if plan.group_size is None:
            matrix = Matrix(
                TensorRecord(name, plan.bits, rows, columns), self.backend.fetch(weights).astype(np.float16)
            )
        else:
            tensor = self.run_stages(plan, weights, inputs)
            error = measure(sample, tensor, None if inputs is None else inputs.hessian, self.backend)
            matrix = Matrix(TensorRecord(name, plan.bits, rows, columns, plan.group_size, error), tensor)
        _log_done(matrix.record, begin)
        self.progress.advance(rows * columns)
        return matrix

    def add_matrix(self, matrix: Matrix) -> None:
        """Put a quantized matrix into the spool."""
        contents = matrix.contents
        if isinstance(contents, HLQTensor):
            self.spool.add(matrix.record, self.backend.pack(contents))
        else:
            self.spool.add(matrix.record, contents)

    def run_stages(self, plan: MatrixPlan, weights: Array, inputs: LinearInputs | None) -> HLQTensor:
        """Run the stages that the recipe and the calibration call for, on a matrix that is to be quantized."""
        bits, group_size = plan.bits, plan.group_size
        assert group_size is not None
        if inputs is None or inputs.factor is None:
            hessian = None if inputs is None else inputs.hessian
            return fit(self.backend.fetch(weights), hessian, bits, group_size, self.backend)
        parts = []
        for rows in pieces(len(weights), ROWS_AT_ONCE):
            part = feedback(weights[rows], inputs.factor, bits, group_size, self.backend)
            if self.recipe.method != "feedback":
                part = refine(weights[rows], inputs.hessian, part, self.recipe.damping, self.backend)
            parts.append(part)
        return HLQTensor.concatenate(parts)

    def add_vector(self, name: str) -> FloatArray:
        """Copy a norm or a bias."""
        vector = self.load(name)
        self.spool.add(TensorRecord(gguf_name(name), 32, len(vector)), vector)
        return vector

    def load(self, name: str) -> FloatArray:
        """Load a tensor of the checkpoint; a tied head is the embedding."""
        return self.source.load(self.stored_name(name))

    def stored_name(self, name: str) -> str:
        """Return the name of the tensor that a matrix of the plan is made from."""
        return EMBEDDING if name == HEAD and self.config.tie_word_embeddings else name


def _log_done(record: TensorRecord, begin: float) -> None:
    how = "float16"
    if record.group_size is not None:
        how = f"{record.bits} bits, groups of {record.group_size}, error {record.error:.4f}"
    log.info("%s: %s (%.2f s)", record.name, how, time.perf_counter() - begin)
