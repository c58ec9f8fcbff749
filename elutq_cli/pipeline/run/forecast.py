"""What a run will make and take, before any of it: tensors, sizes, memory and scratch disk."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from elutq_cli.machine.disk import free_room
from elutq_cli.pipeline.recipe import MatrixPlan, Plan, Recipe
from elutq_cli.pipeline.run.peak_memory import MARGIN, peak_memory, process_bytes
from elutq_cli.pipeline.run.work_folder import work_folder
from elutq_cli.pipeline.stages.allocate import SEQUENCES
from elutq_cli.pipeline.stages.streams import stream_tokens
from elutq_cli.pipeline.stages.tune.budget import tuning_bytes, tuning_scratch
from elutq_formats.config import ModelConfig
from elutq_formats.errors import ElutqError
from elutq_formats.names import gguf_name
from elutq_formats.tensor_record import TensorRecord

SHORT_SEQUENCE = 512
"""Tokens of a sequence that is advised where memory is short: fewer save nothing."""


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
        metadata_bytes: of the file, or a little more.
    """

    records: tuple[TensorRecord, ...]
    output_bytes: int
    scratch_bytes: int
    memory_bytes: int
    tuning_bytes: int
    alternatives: dict[str, int]
    metadata_bytes: int = 0

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
        workers: int = 1,
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
            workers: that sum moments: for several, what an exact linear should add is kept of all tokens, too.
        """
        recipe = recipe.resolved(n_tokens > 0)
        shapes = plan_shapes(config, plan)
        matrices = {entry.name: entry for entry in plan.matrices()}
        records = tuple(_record(name, shape, matrices.get(name)) for name, shape in shapes.items())
        output_bytes = sum(record.n_bytes for record in records)
        if recipe.target_bpw is not None:  # of the linears, whatever each gets
            linears = [entry for block in plan.blocks for entry in block]
            planned = sum(entry.bits_per_weight * math.prod(shapes[entry.name]) for entry in linears)
            total = recipe.target_bpw * sum(math.prod(shapes[entry.name]) for entry in linears)
            output_bytes += math.ceil((total - planned) / 8)
        stream = 4 * config.hidden_size * n_tokens
        inputs = 4 * n_tokens * max(_kept_columns(config, layer) for layer in range(config.num_hidden_layers))
        streams = 4 * config.hidden_size * stream_tokens(recipe, n_tokens, held_out_tokens)
        scratch = output_bytes + 2 * streams + inputs + (stream if "e2e" in recipe.tune else 0)
        scratch += tuning_scratch(config, recipe) + (stream if workers > 1 else 0)
        if recipe.allocates:  # before any of that, the inputs of all blocks
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
            alternatives["without tuning (--tune)"] = memory(recipe.untuned(), n_tokens)
        if n_tokens > 0 and recipe.sequence_length > SHORT_SEQUENCE:
            shorter = replace(recipe, sequence_length=SHORT_SEQUENCE)
            alternatives[f"with sequences of {SHORT_SEQUENCE} tokens (--sequence-length)"] = memory(shorter, n_tokens)
        if n_tokens > 0:
            alternatives["without calibration (--calibration)"] = memory(recipe.untuned(), 0)
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
            raise ElutqError(f"the limit of memory (--max-memory) is {max_memory:g}: give a number of GB above 0")
        if max_memory is not None and self.memory_bytes > max_memory * 1e9:
            raise ElutqError(
                f"this run may take {self.memory_bytes / 1e9:.1f} GB of memory, above the limit of {max_memory:g} GB "
                f"(--max-memory): {self._advice(max_memory * 1e9)}"
            )
        if output is None:
            return
        work = work_folder(output)
        free = free_room(work.absolute().parent)
        there = sum(path.stat().st_size for path in work.iterdir()) if work.is_dir() else 0
        needed = self.output_bytes + self.metadata_bytes + self.scratch_bytes - there
        if needed > free:
            raise ElutqError(
                f"{work.absolute().parent} has {shown_size(free)} free, and this run needs {shown_size(needed)}"
            )

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


def shown_size(n_bytes: int) -> str:
    """Return a size as a reader sees it, in GB or MB."""
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.2f} MB"


def shown_time(seconds: float) -> str:
    """Return a time as a reader sees it, in the largest unit of which it has two."""
    for unit, length, decimals in (("days", 86400, 1), ("hours", 3600, 1), ("minutes", 60, 0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.{decimals}f} {unit}"
    return f"{math.ceil(seconds)} seconds"


def plan_shapes(config: ModelConfig, plan: Plan) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors of the file: of a tied head too, when it is stored apart."""
    head = {} if plan.head is None else {plan.head.name: (config.vocab_size, config.hidden_size)}
    return config.tensor_shapes() | head


def _record(name: str, shape: tuple[int, ...], entry: MatrixPlan | None) -> TensorRecord:
    if entry is None:
        return TensorRecord.of_floats(gguf_name(name), shape)
    return entry.record(shape)
