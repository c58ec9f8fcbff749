"""What a run will make and take, before any of it: tensors, sizes, memory, scratch disk, and time by a short probe."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from elutq_cli.machine.disk import free_room
from elutq_cli.pipeline.compute.backend import Backend
from elutq_cli.pipeline.recipe import MatrixPlan, Plan, Recipe
from elutq_cli.pipeline.run.peak_memory import MARGIN, peak_memory, process_bytes
from elutq_cli.pipeline.run.spool import work_folder
from elutq_cli.pipeline.stages.allocate import SEQUENCES
from elutq_cli.pipeline.stages.feedback import feedback, inverse_factor
from elutq_cli.pipeline.stages.fit import fit
from elutq_cli.pipeline.stages.refine import refine
from elutq_cli.pipeline.stages.streams import compared_tokens, stream_tokens
from elutq_cli.pipeline.stages.tune.budget import tuning_bytes, tuning_scratch, tuning_seconds
from elutq_cli.reference import Array
from elutq_formats.config import ModelConfig
from elutq_formats.errors import ElutqError
from elutq_formats.names import gguf_name
from elutq_formats.tensor_record import STACK_DIMENSIONS, TensorRecord

SHORT_SEQUENCE = 512
"""Tokens of a sequence that is advised where memory is short: fewer save nothing."""

EXPONENTIAL = 400
"""Multiplications that take as long as all else that is done with a logit when predictions are compared; measured."""

PROBE_ROWS, PROBE_COLUMNS = 1024, 1024


@dataclass(frozen=True)
class Forecast:
    """What a run will make and take.

    Attributes:
        records: every tensor of the file.
        output_bytes: of the file, without its metadata.
        scratch_bytes: most that lies in the work folder beside it.
        memory_bytes: an upper bound of the process's memory, without the page cache.
        tuning_bytes: what tuning takes of it, on its device; 0 without.
        alternatives: the bound with other options, by what to change, the least change first.
    """

    records: tuple[TensorRecord, ...]
    output_bytes: int
    scratch_bytes: int
    memory_bytes: int
    tuning_bytes: int
    alternatives: dict[str, int]

    @classmethod
    def make(
        cls,
        config: ModelConfig,
        plan: Plan,
        recipe: Recipe,
        n_tokens: int,
        threads: int,
        encoding_bytes: int = 0,
        package_bytes: int = 0,
        held_out_tokens: int = 0,
    ) -> "Forecast":
        """Plan a run.

        Args:
            config: of the model.
            plan: what becomes of its matrices.
            recipe: how to quantize.
            n_tokens: to calibrate on; 0 for weights alone.
            threads: of the run.
            encoding_bytes: memory that it takes to encode the calibration text.
            package_bytes: memory of the package that reads the weights.
            held_out_tokens: of the calibration text, beside those to calibrate on.
        """
        recipe = recipe.resolved(n_tokens > 0)
        shapes = _shapes(config, plan)
        matrices = {entry.name: entry for entry in plan.matrices()}
        records = tuple(_record(name, shape, matrices.get(name)) for name, shape in shapes.items())
        output_bytes = sum(record.n_bytes for record in records)
        stream = 4 * config.hidden_size * n_tokens
        inputs = 4 * n_tokens * max(_kept_columns(config, layer) for layer in range(config.num_hidden_layers))
        streams = 4 * config.hidden_size * stream_tokens(recipe, n_tokens, held_out_tokens)
        scratch = output_bytes + 2 * streams + inputs + (stream if "e2e" in recipe.tune else 0)
        scratch += tuning_scratch(config, recipe)
        if recipe.method == "allocate":  # before any of that, the inputs of all blocks
            few = min(SEQUENCES * recipe.sequence_length, n_tokens)
            scratch = max(scratch, 4 * config.hidden_size * few * config.num_hidden_layers + inputs)

        def memory(recipe: Recipe, n_tokens: int) -> int:
            peak = peak_memory(config, plan, shapes, recipe, n_tokens, threads)
            if n_tokens > 0:
                peak = max(peak, process_bytes(config) + encoding_bytes)
            peak = max(peak, process_bytes(config) + int(MARGIN * tuning_bytes(config, recipe)))
            # The streams before a block stay in memory until it is tuned.
            return package_bytes + peak + (stream if "block" in recipe.tune else 0)

        alternatives = {}
        if recipe.tune:
            alternatives["without --tune"] = memory(recipe.untuned(), n_tokens)
        if n_tokens > 0 and recipe.sequence_length > SHORT_SEQUENCE:
            shorter = replace(recipe, sequence_length=SHORT_SEQUENCE)
            alternatives[f"with --sequence-length {SHORT_SEQUENCE}"] = memory(shorter, n_tokens)
        if n_tokens > 0:
            alternatives["without --calibration"] = memory(recipe.untuned(), 0)
        now = memory(recipe, n_tokens)
        return cls(records, output_bytes, scratch, now, tuning_bytes(config, recipe), alternatives)

    def check(self, output: Path | None, max_memory: float | None) -> None:
        """Refuse a run that cannot succeed.

        Args:
            output: where the file will be; None: nobody has said.
            max_memory: GB of memory that the run may take; None: any.

        Raises:
            ElutqError: the run may take more memory, or the disk has less room, than there is.
        """
        if max_memory is not None and not max_memory > 0:
            raise ElutqError(f"--max-memory is {max_memory:g}: give a number of GB above 0")
        if max_memory is not None and self.memory_bytes > max_memory * 1e9:
            raise ElutqError(
                f"this run may take {self.memory_bytes / 1e9:.1f} GB of memory, above --max-memory {max_memory:g}: "
                f"{self._advice(max_memory * 1e9)}"
            )
        if output is None:
            return
        work = work_folder(output)
        free = free_room(work.absolute().parent)
        there = sum(path.stat().st_size for path in work.iterdir()) if work.is_dir() else 0
        needed = self.output_bytes + self.scratch_bytes - there
        if needed > free:
            raise ElutqError(f"{work.absolute().parent} has {_size(free)} free, and this run needs {_size(needed)}")

    def describe_shortage(self, available: int | None) -> str | None:
        """Return a warning where the run may take more memory than can be had; None where it does not or who knows."""
        if available is None or self.memory_bytes <= available:
            return None
        return (
            f"this run may take {self.memory_bytes / 1e9:.1f} GB of memory, and {available / 1e9:.1f} GB can be had: "
            f"{self._advice(available)}"
        )

    def _advice(self, limit: float) -> str:
        fitting = [(what, n_bytes) for what, n_bytes in self.alternatives.items() if n_bytes <= limit]
        if not fitting:
            return "use a machine with more"
        what, n_bytes = fitting[0]
        return f"{what} it takes {n_bytes / 1e9:.1f} GB at most"


def _kept_columns(config: ModelConfig, layer: int) -> int:
    """Return the columns of what is kept of each token while a linear that writes to the stream is quantized."""
    shapes, found = config.linear_shapes(layer), []
    for branch in config.layer(layer).branches:
        columns = shapes[f"model.layers.{layer}.{branch.writer}.weight"][-1]
        if branch.mixer == "experts":  # of each that a token is sent to, and what they add
            columns = max(columns * config.n_experts_used, config.shared_expert_intermediate_size) + config.hidden_size
        found.append(columns)
    return max(found)


def _weights_of_a_token(config: ModelConfig, shape: tuple[int, ...]) -> int:
    """Return the weights of a linear that a token is multiplied by: of a stack those of the experts it is sent to."""
    n_weights = math.prod(shape)
    return n_weights * config.n_experts_used // config.n_experts if len(shape) == STACK_DIMENSIONS else n_weights


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.2f} MB"


def _shapes(config: ModelConfig, plan: Plan) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors of the file: of a tied head too, when it is stored apart."""
    head = {} if plan.head is None else {plan.head.name: (config.vocab_size, config.hidden_size)}
    return config.tensor_shapes() | head


def _record(name: str, shape: tuple[int, ...], entry: MatrixPlan | None) -> TensorRecord:
    if entry is None:
        return TensorRecord.of_floats(gguf_name(name), shape)
    return entry.record(shape)


def estimate_seconds(
    config: ModelConfig, plan: Plan, recipe: Recipe, n_tokens: int, backend: Backend, held_out_tokens: int = 0
) -> float:
    """Time the stages on a small matrix and scale them up; good to about a factor of 1.5 on a quiet machine."""
    recipe = recipe.resolved(n_tokens > 0)
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((PROBE_ROWS, PROBE_COLUMNS), dtype=np.float32)
    shapes = _shapes(config, plan)
    probed: dict[int, float] = {}

    def alone(entry: MatrixPlan) -> float:
        layout = entry.layout
        if layout is None or entry.kept:
            return 0.0
        if layout.bits not in probed:
            probed[layout.bits] = _seconds(lambda: fit(weights, None, layout, backend)) / weights.size
        return probed[layout.bits] * math.prod(shapes[entry.name])

    if n_tokens == 0:
        return sum(map(alone, plan.matrices()))
    x = backend.arrays.place(rng.standard_normal((PROBE_COLUMNS, PROBE_COLUMNS), dtype=np.float32))

    def multiply() -> None:
        backend.arrays.fetch(x @ x)  # a device is waited for

    multiply()  # a device's first product takes its time
    product = _seconds(multiply) / PROBE_COLUMNS**3 / (backend.crew.threads if isinstance(x, np.ndarray) else 1)
    hessian = x.T @ x / len(x)
    stages = _seconds(lambda: _run_stages(backend.arrays.place(weights), hessian, recipe, backend)) / weights.size
    squares = 0.0
    if recipe.method != "fit":
        squares = _seconds(lambda: inverse_factor(hessian, recipe.damping, backend)) / len(x) ** 3
    seconds = alone(plan.embedding)
    beside = stream_tokens(recipe, n_tokens, held_out_tokens) - (2 if recipe.keeps_exact else 1) * n_tokens
    corrected = tuple(
        branch.writer
        for layer in range(config.num_hidden_layers)
        for branch in config.layer(layer).branches
        if branch.after is None and branch.mixer != "experts"
    )
    for entry in (entry for block in plan.blocks for entry in block):
        *stack, rows, columns = shapes[entry.name]
        share, n_experts = (config.n_experts_used, stack[0]) if stack else (1, 1)
        # Passes over the tokens with this linear, and moments of its input; products grow with the columns.
        products = share * ((3 * rows + 0.5 * columns) * columns * n_tokens + rows * columns * beside)
        if recipe.corrects and entry.name.removesuffix(".weight").endswith(corrected):
            products += rows * columns * (n_tokens + 2 * columns)  # what the stream lacks, and what makes up for it
        seconds += products * product
        seconds += n_experts * (stages * rows * columns * max(1.0, columns / PROBE_COLUMNS) + squares * columns**3)
    if recipe.method == "allocate":
        # Forwards, forwards again and back, with the head; Hessians and errors cost about one block's stages.
        n_weights = sum(_weights_of_a_token(config, shapes[entry.name]) for block in plan.blocks for entry in block)
        few = min(SEQUENCES * recipe.sequence_length, n_tokens)
        seconds += (3 * n_weights + 2 * config.vocab_size * config.hidden_size) * few * product + 0.3 * seconds
    seconds += tuning_seconds(config, recipe, product)
    logits = 2 * config.vocab_size * (compared_tokens(recipe, n_tokens) + held_out_tokens)
    seconds += logits * (config.hidden_size + EXPONENTIAL) * product
    return seconds + (alone(plan.head) * 2 if plan.head is not None else 0.0)


def _run_stages(weights: Array, hessian: Array, recipe: Recipe, backend: Backend) -> None:
    layout = recipe.layout(recipe.bits)
    if recipe.method == "fit":
        fit(backend.arrays.fetch(weights), hessian, layout, backend)
        return
    tensor = feedback(weights, hessian, layout, backend)
    if recipe.method != "feedback":
        refine(weights, hessian, tensor, recipe.damping, backend)


def _seconds(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin
