"""How long a run takes, by a short probe of its stages: on one worker, and on several."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from elutq_cli.pipeline.compute.backend import Backend
from elutq_cli.pipeline.compute.divided import DIVIDED_ROWS
from elutq_cli.pipeline.compute.products import dequantize
from elutq_cli.pipeline.recipe import MatrixPlan, Plan, Recipe
from elutq_cli.pipeline.run.forecast import plan_shapes
from elutq_cli.pipeline.stages.allocate import SEQUENCES
from elutq_cli.pipeline.stages.feedback import feedback, inverse_factor
from elutq_cli.pipeline.stages.fit import fit
from elutq_cli.pipeline.stages.refine import refine
from elutq_cli.pipeline.stages.streams import compared_tokens, stream_tokens
from elutq_cli.pipeline.stages.tune.budget import tuning_seconds
from elutq_cli.reference import Array
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
        here: of these, those of the machine that calls, whatever the number of workers.
        divided: the others, of which N workers have an Nth each.
        longest: of the divided ones, what is one unit.
    """

    here: float
    divided: float
    longest: float = 0.0

    def seconds(self, workers: int = 1) -> float:
        """Return what it takes so many workers, each of them as the one that was measured."""
        return self.here + max(self.divided / workers, self.longest)


def estimate_work(
    config: ModelConfig, plan: Plan, recipe: Recipe, n_tokens: int, backend: Backend, held_out_tokens: int = 0
) -> Work:
    """Time the stages on a small matrix and scale them up; good to about a factor of 1.5 on a quiet machine."""
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
        times = list(map(alone, plan.matrices()))
        return Work(0.0, sum(times), max(times))
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
    tensor = fit(weights, None, recipe.layout(recipe.bits), backend)
    finish = _seconds(lambda: (backend.loops.pack(tensor), dequantize(tensor, backend.crew))) / weights.size
    here, divided = 0.0, alone(plan.embedding)
    beside = stream_tokens(recipe, n_tokens, held_out_tokens) - (2 if recipe.keeps_exact else 1) * n_tokens
    layers = [config.layer(layer) for layer in range(config.num_hidden_layers)]
    corrected = tuple(
        branch.writer
        for layer in layers
        for branch in layer.branches
        if branch.after is None and branch.mixer != "experts"
    )
    firsts = tuple({linears[0] for layer in layers for linears in layer.shared_inputs})
    for entry in (entry for block in plan.blocks for entry in block):
        *stack, rows, columns = shapes[entry.name]
        share, n_experts = (config.n_experts_used, stack[0]) if stack else (1, 1)
        linear = entry.name.removesuffix(".weight")
        # Passes over the tokens with this linear, and moments of its input; products grow with the columns.
        products = share * ((3 * rows + 0.5 * columns) * columns * n_tokens + rows * columns * beside)
        if recipe.corrects and linear.endswith(corrected):
            products += rows * columns * (n_tokens + 2 * columns)  # what the stream lacks, and what makes up for it
        factor = n_experts * squares * columns**3 if linear.endswith(firsts) else 0.0
        stays = 1.0 if stack else undivided_share(columns)
        here += n_experts * rows * columns * finish + stays * factor
        divided += n_experts * stages * rows * columns * max(1.0, columns / PROBE_COLUMNS) + (1.0 - stays) * factor
        if stack:
            here += products * product
        else:
            divided += products * product
    if recipe.method == "allocate":
        # Forwards, forwards again and back, with the head; Hessians and errors cost about one block's stages.
        n_weights = sum(_weights_of_a_token(config, shapes[entry.name]) for block in plan.blocks for entry in block)
        few = min(SEQUENCES * recipe.sequence_length, n_tokens)
        divided += 3 * n_weights * few * product + 0.3 * (here + divided)
        here += 2 * config.vocab_size * config.hidden_size * few * product
    here += tuning_seconds(config, recipe, product)
    logits = 2 * config.vocab_size * (compared_tokens(recipe, n_tokens) + held_out_tokens)
    divided += logits * (config.hidden_size + EXPONENTIAL) * product
    return Work(here, divided + (alone(plan.head) * 2 if plan.head is not None else 0.0))


def undivided_share(columns: int) -> float:
    """Return which part of a factor's products is of halves too small to be divided: see ``invert_to_factor``."""
    half = columns // 2
    return 1.0 if half < DIVIDED_ROWS else undivided_share(half) / 4


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
