"""How long a run takes, by a short probe of its stages: on one worker, and on several."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from elutq_cli.pipeline.compute.backend import Backend, light_workers
from elutq_cli.pipeline.compute.divided import DIVIDED_ROWS
from elutq_cli.pipeline.compute.products import MOMENT_TILES, PIECE_ROWS, ROWS_AT_ONCE, dequantize
from elutq_cli.pipeline.recipe import MatrixPlan, Plan, Recipe
from elutq_cli.pipeline.run.forecast import plan_shapes
from elutq_cli.pipeline.stages.allocate import SEQUENCES
from elutq_cli.pipeline.stages.alone import runs_alone
from elutq_cli.pipeline.stages.divergence import TOKENS_AT_ONCE as TOKENS_AT_HEAD
from elutq_cli.pipeline.stages.feedback import inverse_factor
from elutq_cli.pipeline.stages.fit import fit
from elutq_cli.pipeline.stages.linear import LinearInputs, Treatment, quantize_rows
from elutq_cli.pipeline.stages.moments import TOKENS_AT_ONCE
from elutq_cli.pipeline.stages.streams import compared_tokens, stream_tokens
from elutq_cli.pipeline.stages.tune.budget import tuning_seconds
from elutq_formats.block_kind import FREE16
from elutq_formats.config import ModelConfig
from elutq_formats.tensor_record import STACK_DIMENSIONS

EXPONENTIAL = 400
"""Multiplications that take as long as all else that is done with a logit when predictions are compared; measured."""

PROBE_ROWS, PROBE_COLUMNS = 1024, 1024


def _weights_of_a_token(config: ModelConfig, shape: tuple[int, ...]) -> int:
    """Return the weights of a linear that a token is multiplied by: of a stack those of the experts it is sent to."""
    n_weights = math.prod(shape)
    return n_weights * config.n_experts_used // config.n_experts if len(shape) == STACK_DIMENSIONS else n_weights


@dataclass(frozen=True)
class Work:
    """Seconds that a run takes one worker, what travels left out.

    Attributes:
        here: those of the machine that calls, whatever the number of workers.
        divided: the others, and of how many units they are, all as long: N workers have them done N at a time.
        longest: of a unit, where not all are as long.
        light: of units that stay here where workers are few, see ``Backend.light``.
        size: threads of the worker over those of the machine that calls.
    """

    here: float
    divided: tuple[tuple[float, int], ...]
    longest: float = 0.0
    light: tuple[tuple[float, int], ...] = ()
    size: float = 1.0

    def seconds(self, workers: int = 1) -> float:
        """Return what it takes so many workers, each of them as the one that was measured."""
        here, divided = self.here, self.divided
        if light_workers(workers, self.size) == 1:
            here += sum(seconds for seconds, _ in self.light)
        else:
            divided += self.light
        shared = sum(seconds * -(-units // workers) / units for seconds, units in divided)
        return self.size * here + max(shared, self.longest)


def estimate_work(
    config: ModelConfig,
    plan: Plan,
    recipe: Recipe,
    n_tokens: int,
    backend: Backend,
    held_out_tokens: int = 0,
    size: float = 1.0,
) -> Work:
    """Time the stages on a small matrix and scale them up; good to about a factor of 1.5 on a quiet machine.

    Args:
        config: of the model.
        plan: what becomes of its matrices.
        recipe: how.
        n_tokens: to calibrate on.
        backend: a worker's.
        held_out_tokens: beside those.
        size: its threads over those of the machine that will call.
    """
    recipe = recipe.resolved(n_tokens > 0)
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((PROBE_ROWS, PROBE_COLUMNS), dtype=np.float32)
    shapes = plan_shapes(config, plan)
    probed: dict[int, float] = {}

    def alone(entry: MatrixPlan) -> float:
        layout = entry.layout
        if layout is None or entry.kept:
            return 0.0
        if layout.bits not in probed:
            probed[layout.bits] = _seconds(lambda: fit(weights, None, layout, backend)) / weights.size
        return probed[layout.bits] * math.prod(shapes[entry.name])

    if n_tokens == 0:
        cuts = ((alone(entry), len(runs_alone(entry, shapes[entry.name][0])) or 1) for entry in plan.matrices())
        times = [seconds / n_units for seconds, n_units in cuts for _ in range(n_units)]
        return Work(0.0, ((sum(times), len(times)),), max(times), size=size)
    x = backend.arrays.place(rng.standard_normal((PROBE_COLUMNS, PROBE_COLUMNS), dtype=np.float32))

    def multiply() -> None:
        backend.arrays.fetch(x @ x)  # a device is waited for

    multiply()  # a device's first product takes its time
    product = _seconds(multiply) / PROBE_COLUMNS**3 / (backend.crew.threads if isinstance(x, np.ndarray) else 1)
    hessian = x.T @ x / len(x)
    layout = recipe.layout(recipe.expected_bits)
    treatment = Treatment(recipe.stages, recipe.damping, LinearInputs(hessian, hessian if recipe.factors else None))

    def run_stages() -> None:
        quantize_rows(treatment, backend, (layout, FREE16, backend.arrays.place(weights)))

    stages = _seconds(run_stages) / weights.size
    squares = 0.0
    if recipe.factors:
        squares = _seconds(lambda: inverse_factor(hessian, recipe.damping, backend)) / len(x) ** 3
    tensor = fit(weights, None, recipe.layout(recipe.expected_bits), backend)
    finish = _seconds(lambda: (backend.loops.pack(tensor), dequantize(tensor, backend.crew))) / weights.size
    calibrated = 2 if plan.head_is_embedding else 1
    here, divided = 0.0, [(calibrated * alone(plan.embedding), _pieces(config.vocab_size, ROWS_AT_ONCE))]
    beside = stream_tokens(recipe, n_tokens, held_out_tokens) - (2 if recipe.keeps_exact else 1) * n_tokens
    in_batch = max(1, TOKENS_AT_ONCE // recipe.sequence_length) * recipe.sequence_length
    layers = [config.layer(layer) for layer in range(config.num_hidden_layers)]
    corrected = tuple(
        branch.writer
        for layer in layers
        for branch in layer.branches
        if branch.after is None and branch.mixer != "experts"
    )
    first_of = {linear: linears[0] for layer in layers for linears in layer.shared_inputs for linear in linears}
    light: list[tuple[float, int]] = []
    staged: dict[str, tuple[float, int]] = {}  # what goes through the stages together, by the first of each input
    for entry in (entry for block in plan.blocks for entry in block):
        *stack, rows, columns = shapes[entry.name]
        share, n_experts = (config.n_experts_used, stack[0]) if stack else (1, 1)
        linear, n_tiles = entry.name.removesuffix(".weight"), _pieces(columns, MOMENT_TILES * PIECE_ROWS)
        own = linear.split(".", 3)[3]  # behind model.layers.N
        first = linear.removesuffix(own) + first_of[own]
        of_rows, of_moments = _pieces(rows, PIECE_ROWS), n_tiles * (n_tiles + 1) // 2
        # Passes over the tokens with this linear, and moments of its input; products grow with the columns.
        parts = [
            (share * 3 * rows * columns * n_tokens * product, _pieces(n_tokens, in_batch)),
            (share * rows * columns * beside * product, _pieces(beside, in_batch)),
            (share * 0.5 * columns**2 * n_tokens * product, of_moments),
        ]
        if recipe.corrects and linear.endswith(corrected):  # what the stream lacks, and what makes up for it
            parts.append((rows * columns * n_tokens * product, n_tiles * _pieces(rows, MOMENT_TILES * PIECE_ROWS)))
            parts.append((2 * rows * columns**2 * product, of_rows))
        if stack:
            here, parts = here + sum(seconds for seconds, _ in parts), []
        factor = n_experts * squares * columns**3 if linear == first else 0.0
        stays = 1.0 if stack else undivided_share(columns)
        here += n_experts * rows * columns * finish + stays * factor
        parts.append(((1.0 - stays) * factor, _pieces(columns // 2, PIECE_ROWS)))
        light += parts
        seconds, units = staged.get(first, (0.0, 0))
        seconds += n_experts * stages * rows * columns * max(1.0, columns / PROBE_COLUMNS)
        staged[first] = seconds, units + of_rows
    divided += staged.values()
    n_weights = sum(_weights_of_a_token(config, shapes[entry.name]) for block in plan.blocks for entry in block)
    if plan.head_is_embedding:
        few = min(SEQUENCES * recipe.sequence_length, n_tokens)
        light.append((n_weights * few * product, _pieces(few, in_batch)))
    if recipe.allocates:
        # Forwards, forwards again and back, with the head; Hessians and errors cost about one block's stages.
        few = min(SEQUENCES * recipe.sequence_length, n_tokens)
        errors = 0.3 * (here + sum(seconds for seconds, _ in (*divided, *light)))
        divided += [(3 * n_weights * few * product, SEQUENCES), (errors, 2 * len(layers))]
        here += 2 * config.vocab_size * config.hidden_size * few * product
    here += tuning_seconds(config, recipe, product)
    compared = compared_tokens(recipe, n_tokens) + held_out_tokens
    logits = 2 * config.vocab_size * compared * (config.hidden_size + EXPONENTIAL) * product
    light.append((logits, _pieces(compared, TOKENS_AT_HEAD)))
    if plan.head is not None:
        divided.append((alone(plan.head) * 2, _pieces(config.vocab_size, ROWS_AT_ONCE)))
    return Work(here, tuple(divided), light=tuple(light), size=size)


def _pieces(n: int, size: int) -> int:
    """Return into how many units so many rows or tokens are cut."""
    return max(1, -(-n // size))


def undivided_share(columns: int) -> float:
    """Return which part of a factor's products is of halves too small to be divided: see ``invert_to_factor``."""
    half = columns // 2
    return 1.0 if half < DIVIDED_ROWS else undivided_share(half) / 4


def _seconds(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin
