"""The driver: takes a checkpoint through the stages, block by block, to a model file."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from elutq_cli.pipeline.allocate import allocate
from elutq_cli.pipeline.calibrate import InputStatistics, block_statistics, input_statistics
from elutq_cli.pipeline.calibration_text import CalibrationText
from elutq_cli.pipeline.checked_weights import CheckedWeights
from elutq_cli.pipeline.correct import corrected
from elutq_cli.pipeline.feedback import feedback, inverse_factor
from elutq_cli.pipeline.fingerprint import fingerprint
from elutq_cli.pipeline.fit import fit
from elutq_cli.pipeline.forecast import Forecast
from elutq_cli.pipeline.levels import FloatArray
from elutq_cli.pipeline.products import measure, pack_matrix
from elutq_cli.pipeline.progress import Progress
from elutq_cli.pipeline.recipe import EMBEDDING, HEAD, MatrixPlan, Plan, Recipe
from elutq_cli.pipeline.refine import refine
from elutq_cli.pipeline.rotate import RotatedCheckpoint
from elutq_cli.pipeline.spool import Spool
from elutq_cli.pipeline.stage import Backend, Quantized
from elutq_cli.reference import Block, block_tensor_names
from elutq_cli.reference.transformer import rms_norm
from elutq_cli.version import __version__
from elutq_formats.atomic import check_output
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.errors import ElutqError
from elutq_formats.model_file import ModelFile
from elutq_formats.model_writer import Provenance, write_model
from elutq_formats.names import gguf_name
from elutq_formats.tensor_record import TensorRecord

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LinearInputs:
    """What the stages use of the inputs that some linears share.

    Attributes:
        hessian: (columns, columns) float32, X^T X over the number of tokens.
        factor: (columns, columns) float32, U of ``inverse_factor``.
    """

    hessian: FloatArray
    factor: FloatArray


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
    checkpoint: Checkpoint,
    output: Path,
    recipe: Recipe,
    calibration: CalibrationText | None,
    backend: Backend,
    force: bool = False,
    resume: bool = True,
    max_memory: float | None = None,
    progress: Progress | None = None,
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
        force: replace the output if it is there.
        resume: use what a stopped run has finished; otherwise it is removed.
        max_memory: refuse to start when the run may take more memory than so many GB.
        progress: is told of the weights just done; None: nobody is.

    Raises:
        ElutqError: anything that is wrong with the input or the disk; then there is no output.
    """
    begin = time.perf_counter()
    check_output(output, force)
    source = CheckedWeights(RotatedCheckpoint(checkpoint, recipe.seed) if recipe.rotate else checkpoint)
    plan = Plan.make(source.config, recipe)
    if recipe.target_bpw is not None and calibration is None:
        raise ElutqError("a target of bits per weight needs a text to measure on: add --calibration")
    n_tokens = 0 if calibration is None else calibration.tokens.size
    Forecast.make(source.config, plan, recipe, n_tokens).check(output, max_memory)
    tokenizer_json = checkpoint.tokenizer_json
    with Spool(output, fingerprint(checkpoint, recipe, calibration), resume) as spool:
        if calibration is not None and recipe.method == "allocate":
            found = spool.remember(partial(allocate, source, recipe, calibration.tokens, backend))
            plan = Plan.make(source.config, recipe, {name: (bits, group) for name, (bits, group) in found.items()})
        run = _Run(source, plan, recipe, backend, spool, progress or Progress())
        run.add_all(calibration)
        write_model(
            output,
            source.config,
            spool.sources(),
            name=_source_name(checkpoint.path)[0],
            tokenizer_json=tokenizer_json,
            chat_template=checkpoint.chat_template,
            provenance=_provenance(checkpoint, recipe, calibration),
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
    ) -> None:
        self.source = source
        self.config = source.config
        self.plan = plan
        self.recipe = recipe
        self.backend = backend
        self.spool = spool
        self.progress = progress

    def add_all(self, calibration: CalibrationText | None) -> None:
        """Quantize every tensor that the spool does not hold, unit by unit, in the order of the file."""
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

    def add_embedding(self, calibration: CalibrationText | None) -> list[FloatArray]:
        """Quantize the embedding.

        Returns:
            The residual streams of the calibration sequences, (sequences, n, hidden_size) float32: on the quantized
            model, and where the recipe asks for it on the exact model. None at all without calibration.
        """
        weights = self.load(EMBEDDING)
        embedding = self.add_matrix(self.plan.embedding, weights)
        if calibration is None:
            return []
        streams = [embedding()[calibration.tokens]]
        if self.recipe.corrects:
            streams.append(weights[calibration.tokens])
        return streams

    def add_block(self, layer: int) -> list[FloatArray]:
        """Quantize a block; return the residual streams after it."""
        streams = self.spool.open_streams()
        if streams:
            self.add_calibrated_block(layer, self.plan.blocks[layer], *streams)
        else:
            for plan in self.plan.blocks[layer]:
                self.add_matrix(plan, self.load(plan.name))
        for name in self.config.vector_shapes(layer):
            self.add_vector(name)
        return streams

    def add_head(self) -> list[FloatArray]:
        """Quantize the output norm and the head, if there is one; nothing comes after them."""
        norm = self.add_vector("model.norm.weight")
        if self.plan.head is None:
            return []
        head, streams = self.load(HEAD), self.spool.open_streams()
        if not streams or self.plan.head.group_size is None:
            self.add_matrix(self.plan.head, head)
            return []
        normed = partial(_head_input, norm, self.config.rms_norm_eps)
        statistics = input_statistics([normed] * len(streams), streams, None, self.backend)
        targets, inputs = self.targets({HEAD: head}, statistics)
        del statistics, head
        self.add_matrix(self.plan.head, targets.pop(HEAD), inputs)
        return []

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
        weights = {name: self.load(prefix + name) for name in block_tensor_names(self.config)}
        block = Block(self.config, layer, weights)
        for linears, statistics in block_statistics(block, hidden, exact, self.backend):
            originals = {f"{prefix}{linear}.weight": block.weights[f"{linear}.weight"] for linear in linears}
            targets, inputs = self.targets(originals, statistics)
            del statistics, originals
            for name in list(targets):
                quantized = self.add_matrix(by_name[name], targets.pop(name), inputs)
                block.weights[name.removeprefix(prefix)] = quantized()

    def targets(
        self, weights: dict[str, FloatArray], statistics: InputStatistics
    ) -> tuple[dict[str, FloatArray], LinearInputs | None]:
        """Return what the quantized weights of linears with one input should be near, and what is known of that input.

        Raises:
            ElutqError: the inputs overflow.
        """
        if self.recipe.method == "fit":
            return weights, None
        name = gguf_name(next(iter(weights)))
        factor = inverse_factor(statistics.hessian, self.recipe.damping, self.backend, name)
        if statistics.cross is not None:
            weights = {name: corrected(matrix, statistics, factor, self.backend) for name, matrix in weights.items()}
        return weights, LinearInputs(statistics.hessian, factor)

    def add_matrix(
        self, plan: MatrixPlan, weights: FloatArray, inputs: LinearInputs | None = None
    ) -> Callable[[], FloatArray]:
        """Quantize a matrix (rows, columns) float32; return a function that dequantizes what the file will hold."""
        restore: Callable[[], FloatArray]
        rows, columns = weights.shape
        name = gguf_name(plan.name)
        begin = time.perf_counter()
        if plan.group_size is None:
            half = weights.astype(np.float16)
            self.spool.add(TensorRecord(name, plan.bits, rows, columns), half)
            log.info("%s: float16", name)
            restore = partial(half.astype, np.float32)
        else:
            quantized = self.run_stages(plan.bits, plan.group_size, weights, inputs)
            record = TensorRecord(name, plan.bits, rows, columns, plan.group_size, quantized.error)
            self.spool.add(record, pack_matrix(quantized.tensor, self.backend))
            done = f"{plan.bits} bits, groups of {plan.group_size}, error {quantized.error:.4f}"
            log.info("%s: %s (%.2f s)", name, done, time.perf_counter() - begin)
            restore = quantized.tensor.dequantize
        self.progress.advance(weights.size)
        return restore

    def run_stages(self, bits: int, group_size: int, weights: FloatArray, inputs: LinearInputs | None) -> Quantized:
        """Run the stages that the recipe and the calibration call for."""
        if inputs is None:
            return fit(weights, None, bits, group_size, self.backend)
        tensor = feedback(weights, inputs.factor, bits, group_size, self.backend)
        if self.recipe.method != "feedback":
            tensor = refine(weights, inputs.hessian, tensor, self.recipe.damping, self.backend)
        return measure(weights, tensor, inputs.hessian, self.backend)

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


def _provenance(checkpoint: Checkpoint, recipe: Recipe, calibration: CalibrationText | None) -> Provenance:
    """Return what the file records of its origin."""
    source, revision = _source_name(checkpoint.path)
    provenance: dict[str, str | int | float | bool | list[str]] = {
        "version": __version__,
        "source": source,
        "method": ", ".join(_stages(recipe, calibration is not None)),
        "recipe": recipe.to_json(),
        "seed": recipe.seed,
    }
    if revision is not None:
        provenance["source_revision"] = revision
    if calibration is not None:
        n_sequences, length = calibration.tokens.shape
        provenance |= {
            "calibration.files": [file.name for file in calibration.files],
            "calibration.sha256": list(calibration.sha256),
            "calibration.samples": n_sequences,
            "calibration.sequence_length": length,
        }
    return provenance


def _head_input(norm: FloatArray, epsilon: float, x: FloatArray) -> FloatArray:
    return np.asarray(rms_norm(x, norm, epsilon, np))


def _stages(recipe: Recipe, calibrated: bool) -> tuple[str, ...]:
    """Return the stages that run, in their order."""
    first = ("rotate",) if recipe.rotate else ()
    if not calibrated:
        return (*first, "fit")
    return (
        first
        + {
            "fit": ("calibrate", "fit"),
            "feedback": ("calibrate", "feedback"),
            "refine": ("calibrate", "feedback", "refine"),
            "correct": ("calibrate", "correct", "feedback", "refine"),
            "allocate": ("allocate", "calibrate", "correct", "feedback", "refine"),
        }[recipe.method]
    )


def _source_name(folder: Path) -> tuple[str, str | None]:
    """Return a checkpoint's name, and its revision when the folder is a snapshot in the Hugging Face cache."""
    folder = folder.resolve()
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        return folder.parent.parent.name.removeprefix("models--").replace("--", "/"), folder.name
    return folder.name, None
