"""What a run will make and take, before any of it: tensors, sizes, memory, scratch disk, and time by a short probe."""

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from elutq_cli.pipeline.allocate import HESSIAN_SEQUENCES, PROBE_SEQUENCES, PROBE_TOKENS
from elutq_cli.pipeline.calibrate import ADDED_TO_STREAM, TOKENS_AT_ONCE, InputStatistics
from elutq_cli.pipeline.correct import Correction
from elutq_cli.pipeline.feedback import feedback, inverse_factor
from elutq_cli.pipeline.fit import fit
from elutq_cli.pipeline.products import ROWS_AT_ONCE
from elutq_cli.pipeline.recipe import HALF_BITS, MatrixPlan, Plan, Recipe
from elutq_cli.pipeline.refine import refine
from elutq_cli.pipeline.spool import work_folder
from elutq_cli.pipeline.stage import Backend
from elutq_cli.pipeline.tune.budget import tuning_bytes, tuning_products
from elutq_cli.reference import SHARED_INPUTS
from elutq_cli.reference.transformer import Array
from elutq_formats.config import ModelConfig
from elutq_formats.errors import ElutqError
from elutq_formats.names import gguf_name
from elutq_formats.tensor_record import TensorRecord

PROCESS_BYTES = 250_000_000
"""Python, numpy and the rest, with what the C library keeps of freed memory."""

# Bytes of memory for each weight of a matrix, or each element of its Hessian, at the worst moment of a stage; measured.
WEIGHTS_ALONE, HALF, RESTORED = 7.5, 6.0, 4.5
CODES, STAGE_WEIGHT, STAGE_SQUARE = 2.5, 10.5, 9.0
FACTOR_SQUARE = 10.0
ACTIVATIONS = 4
"""Arrays of a batch's tokens by the intermediate size that a thread holds during a forward pass."""
MARGIN = 1.1

TUNING_OVERHEAD = 2.5
"""Time of a tuning step over that of its products alone, measured on novels-6m."""

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
    """

    records: tuple[TensorRecord, ...]
    output_bytes: int
    scratch_bytes: int
    memory_bytes: int
    tuning_bytes: int

    @classmethod
    def make(cls, config: ModelConfig, plan: Plan, recipe: Recipe, n_tokens: int, threads: int) -> "Forecast":
        """Plan a run that calibrates on so many tokens, 0 for weights alone, on so many threads."""
        recipe = recipe.resolved(n_tokens > 0)
        shapes = {**config.tensor_shapes()}
        matrices = {entry.name: entry for entry in plan.matrices()}
        if plan.head is not None:
            shapes[plan.head.name] = (config.vocab_size, config.hidden_size)
        records = tuple(_record(name, shape, matrices.get(name)) for name, shape in shapes.items())
        output_bytes = sum(record.n_bytes for record in records)
        stream = 4 * config.hidden_size * n_tokens
        inputs = 4 * n_tokens * max(shapes[f"model.layers.0.{name}.weight"][1] for name in ADDED_TO_STREAM)
        scratch = output_bytes + 2 * stream * (2 if recipe.keeps_exact else 1) + inputs
        tuning = tuning_bytes(config, recipe)
        # The streams before a block stay in memory until it is tuned.
        memory = max(_memory(config, plan, shapes, recipe, n_tokens, threads), PROCESS_BYTES + tuning)
        return cls(records, output_bytes, scratch, memory + (stream if "block" in recipe.tune else 0), tuning)

    def check(self, output: Path | None, max_memory: float | None) -> None:
        """Refuse a run that cannot succeed.

        Args:
            output: where the file will be; None: nobody has said.
            max_memory: GB of memory that the run may take; None: any.

        Raises:
            ElutqError: the run may take more memory, or the disk has less room, than there is.
        """
        if max_memory is not None and self.memory_bytes > max_memory * 1e9:
            raise ElutqError(
                f"this run may take {self.memory_bytes / 1e9:.1f} GB of memory, above --max-memory {max_memory:g}: "
                "calibration takes the most, leave it out or use a machine with more"
            )
        if output is None:
            return
        work = work_folder(output)
        free = shutil.disk_usage(work.absolute().parent).free
        there = sum(path.stat().st_size for path in work.iterdir()) if work.is_dir() else 0
        needed = self.output_bytes + self.scratch_bytes - there
        if needed > free:
            raise ElutqError(f"{work.absolute().parent} has {_size(free)} free, and this run needs {_size(needed)}")


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.2f} MB"


def _record(name: str, shape: tuple[int, ...], entry: MatrixPlan | None) -> TensorRecord:
    if entry is None:
        return TensorRecord(gguf_name(name), 32, shape[0])
    return TensorRecord(gguf_name(name), entry.bits, shape[0], shape[1], entry.group_size)


def _memory(
    config: ModelConfig,
    plan: Plan,
    shapes: dict[str, tuple[int, ...]],
    recipe: Recipe,
    n_tokens: int,
    threads: int,
) -> int:
    def alone(entry: MatrixPlan, also: float = 0.0) -> float:
        return (also + (HALF if entry.bits == HALF_BITS else WEIGHTS_ALONE)) * math.prod(shapes[entry.name])

    if n_tokens == 0:
        return PROCESS_BYTES + int(MARGIN * max(alone(entry) for entry in plan.matrices()))
    peaks = [alone(plan.embedding, RESTORED)]
    own = 0.0
    for layer, block in enumerate(plan.blocks):
        own = 4.0 * sum(math.prod(shapes[entry.name]) for entry in block)
        exact = 0.0  # weights of the exact block, kept until its stream has passed the half that they belong to
        for first, linears in SHARED_INPUTS.items():
            sharing = [shapes[f"model.layers.{layer}.{linear}.weight"] for linear in linears]
            peaks.append(own + _calibrated(sharing, first in ADDED_TO_STREAM, exact))
            exact = 0.0 if first in ADDED_TO_STREAM else 4.0 * sum(map(math.prod, sharing))
    if recipe.method == "allocate":
        # Beside a block and a Hessian: a probe's residual stream for each linear of the model, and the head's logits.
        n_linears = sum(map(len, plan.blocks))
        tokens = PROBE_SEQUENCES * min(PROBE_TOKENS, recipe.sequence_length)
        streams = 4.0 * config.hidden_size * (n_linears * tokens + HESSIAN_SEQUENCES * recipe.sequence_length)
        for entry in plan.blocks[0]:
            rows, columns = shapes[entry.name]
            peaks.append(own + (FACTOR_SQUARE - 4.0) * columns**2 + 4.0 * rows * columns + streams)
        head = config.vocab_size * config.hidden_size
        logits = 40.0 * min(PROBE_TOKENS, recipe.sequence_length) * config.vocab_size
        peaks.append(4.0 * head + streams + PROBE_SEQUENCES * logits)
    if plan.head is not None:
        shape = shapes[plan.head.name]
        calibrated = 4.0 * math.prod(shape) + _calibrated([shape], False, 0.0)
        peaks.append(alone(plan.head) if plan.head.bits == HALF_BITS else calibrated)
    activations = threads * ACTIVATIONS * 4 * TOKENS_AT_ONCE * config.intermediate_size
    return PROCESS_BYTES + int(MARGIN * (max(peaks) + activations))


def _calibrated(sharing: list[tuple[int, ...]], adds_to_stream: bool, exact: float) -> float:
    """Return the bytes that the stages take for matrices (rows, columns) that share an input, beside their block.

    Args:
        sharing: their shapes.
        adds_to_stream: whether their output joins the residual stream.
        exact: bytes of exact weights in memory until the input's moments are known.
    """
    rows, columns = sharing[0]
    square, targets = columns**2, sum(map(math.prod, sharing))
    largest = max(rows for rows, _ in sharing)
    stages = (CODES * largest + STAGE_WEIGHT * min(largest, ROWS_AT_ONCE)) * columns
    second = 4.0 * (rows if adds_to_stream else columns) * columns  # the moment beside the Hessian
    return max(
        exact + 4.0 * square + second,
        FACTOR_SQUARE * square + second,
        8.0 * square + 3.0 * second + 4.0 * targets,  # two products of the correction beside it
        STAGE_SQUARE * square + 4.0 * targets + stages,
    )


def estimate_seconds(config: ModelConfig, plan: Plan, recipe: Recipe, n_tokens: int, backend: Backend) -> float:
    """Time the stages on a small matrix and scale them up; good to about a factor of 1.5 on a quiet machine."""
    recipe = recipe.resolved(n_tokens > 0)
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((PROBE_ROWS, PROBE_COLUMNS), dtype=np.float32)
    shapes = {**config.tensor_shapes()}
    if plan.head is not None:
        shapes[plan.head.name] = (config.vocab_size, config.hidden_size)
    probed: dict[int, float] = {}

    def alone(entry: MatrixPlan) -> float:
        if entry.group_size is None:
            return 0.0
        if entry.bits not in probed:
            group_size = min(entry.group_size, PROBE_COLUMNS)
            probed[entry.bits] = _seconds(lambda: fit(weights, None, entry.bits, group_size, backend)) / weights.size
        return probed[entry.bits] * math.prod(shapes[entry.name])

    if n_tokens == 0:
        return sum(map(alone, plan.matrices()))
    x = backend.place(rng.standard_normal((PROBE_COLUMNS, PROBE_COLUMNS), dtype=np.float32))

    def multiply() -> None:
        backend.fetch(x @ x)  # a device is waited for

    multiply()  # a device's first product takes its time
    product = _seconds(multiply) / PROBE_COLUMNS**3 / (backend.threads if isinstance(x, np.ndarray) else 1)
    hessian = x.T @ x / len(x)
    stages = _seconds(lambda: _run_stages(backend.place(weights), hessian, recipe, backend)) / weights.size
    squares = 0.0
    if recipe.method != "fit":
        squares = _seconds(lambda: inverse_factor(hessian, recipe.damping, backend)) / len(x) ** 3
    seconds = alone(plan.embedding)
    for entry in (entry for block in plan.blocks for entry in block):
        rows, columns = shapes[entry.name]
        # Passes over the tokens with this linear, and moments of its input; products grow with the columns.
        passes = (3 * rows + (1.5 if recipe.corrects else 0.5) * columns) * columns * n_tokens * product
        seconds += passes + stages * rows * columns * max(1.0, columns / PROBE_COLUMNS) + squares * columns**3
    if recipe.method == "allocate":
        # Each linear's probe goes through all blocks after it; Hessians and errors cost about one block's stages.
        block = sum(math.prod(shapes[entry.name]) for entry in plan.blocks[0])
        n_passes = sum(len(plan.blocks[0]) * layer for layer in range(len(plan.blocks)))
        n_probed = PROBE_SEQUENCES * min(PROBE_TOKENS, recipe.sequence_length)
        seconds += n_passes * block * n_probed * product + 0.3 * seconds
    seconds += TUNING_OVERHEAD * tuning_products(config, recipe) * product
    return seconds + (alone(plan.head) * 2 if plan.head is not None else 0.0)


def _run_stages(weights: Array, hessian: Array, recipe: Recipe, backend: Backend) -> None:
    if recipe.method == "fit":
        fit(backend.fetch(weights), hessian, recipe.bits, recipe.group_size, backend)
        return
    tensor = feedback(weights, hessian, recipe.bits, recipe.group_size, backend)
    if recipe.method != "feedback":
        refine(weights, hessian, tensor, recipe.damping, backend)
    if recipe.corrects:
        Correction(InputStatistics(hessian, hessian), hessian, backend)(weights)


def _seconds(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin
