"""The allocate stage: bits and group size of each linear, so that a budget of bits does the least harm.

The harm that a linear does at some bits and group size is taken as its sensitivity times its squared relative error
under H there. The sensitivity is measured once: how far the model's predictions move when that linear alone is
quantized. Harms are added up over linears, and the budget is spent where a bit takes away most.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from elutq_cli.evaluation import log_softmax
from elutq_cli.pipeline.calibrate import block_statistics, token_batches
from elutq_cli.pipeline.feedback import feedback
from elutq_cli.pipeline.levels import FloatArray
from elutq_cli.pipeline.products import quiet
from elutq_cli.pipeline.recipe import Plan, Recipe, bits_per_weight
from elutq_cli.pipeline.stage import Backend
from elutq_cli.reference import Block, Positions, Transformer
from elutq_cli.reference.transformer import WeightSource
from elutq_formats.constants import HLQ_MAX_BITS, HLQ_MIN_BITS
from elutq_formats.errors import ElutqError

Choice = tuple[int, int]
"""Bits and group size."""

GROUP_SIZES = (128, 64)
"""Group sizes that a linear may be given where its columns allow, beside the recipe's own."""

HESSIAN_SEQUENCES = 16
PROBE_SEQUENCES = 2
SAMPLED_ROWS = 32
"""Calibration sequences for the Hessians and for the measured predictions, and rows on which errors are measured."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A linear to which bits are to be given.

    Attributes:
        name: in the checkpoint.
        n_weights: number of weights.
        sensitivity: KL divergence of the model's predictions per squared relative error of this linear.
        errors: squared relative error under H, by choice.
    """

    name: str
    n_weights: int
    sensitivity: float
    errors: Mapping[Choice, float]


def allocate(
    source: WeightSource,
    recipe: Recipe,
    tokens: npt.NDArray[np.int64],
    backend: Backend,
    advance: Callable[[int], None] = lambda n_weights: None,
) -> dict[str, Choice]:
    """Choose bits and group size of all the blocks' linears by what their errors do to the model's predictions.

    Args:
        source: the checkpoint.
        recipe: has the budget; linears that its tensor_types fix are left out but count towards it.
        tokens: (sequences, n) calibration sequences.
        backend: runs the stages.
        advance: called with the number of weights just measured.

    Raises:
        ElutqError: the target is below or above what the choices reach.
    """
    free, fixed_bits, n_weights = _free_linears(source, recipe)
    found = measure_candidates(source, recipe, free, tokens, backend, advance)
    budget = recipe.budget * n_weights - fixed_bits
    chosen = spend(found, budget, recipe.budget)
    for candidate in found:
        bits, group_size = chosen[candidate.name]
        log.info(
            "%s: %d bits, groups of %d (sensitivity %.4f)", candidate.name, bits, group_size, candidate.sensitivity
        )
    return chosen


def _free_linears(source: WeightSource, recipe: Recipe) -> tuple[set[str], float, int]:
    """Return the linears that no tensor type fixes, the bits of the others, and the number of weights of all."""
    shapes = source.config.tensor_shapes()
    impossible = (0, 1)  # a choice that no recipe makes: what still has it afterwards is free
    names = [name for layer in range(source.config.num_hidden_layers) for name in source.config.linear_names(layer)]
    plan = Plan.make(source.config, recipe, dict.fromkeys(names, impossible))
    free, fixed_bits = set(), 0.0
    for entry in (entry for block in plan.blocks for entry in block):
        if (entry.bits, entry.group_size) == impossible:
            free.add(entry.name)
        else:
            size = 16.0 if entry.group_size is None else bits_per_weight(entry.bits, entry.group_size)
            fixed_bits += size * float(np.prod(shapes[entry.name]))
    return free, fixed_bits, sum(int(np.prod(shapes[name])) for name in names)


def spend(candidates: Sequence[Candidate], budget: float, target: float) -> dict[str, Choice]:
    """Give each linear a choice so that the sum of harms is small and the sum of bits within the budget.

    All start with the smallest choice. Along the lower convex hull of each linear's harms over bits, the steps are
    taken in the order of the harm they take away per bit, as far as the budget goes.

    Args:
        candidates: the linears.
        budget: bits for all of them.
        target: bits per weight that the user asked for, for the message.

    Raises:
        ElutqError: the budget is below the smallest choices, or above what the largest can use.
    """
    steps: list[tuple[float, float, str, Choice]] = []
    chosen: dict[str, Choice] = {}
    spent = most = 0.0
    for candidate in candidates:
        hull = _lower_hull(
            [
                (bits_per_weight(*choice) * candidate.n_weights, candidate.sensitivity * error, choice)
                for choice, error in candidate.errors.items()
            ]
        )
        chosen[candidate.name] = hull[0][2]
        spent += hull[0][0]
        most += max(bits_per_weight(*choice) for choice in candidate.errors) * candidate.n_weights
        for (bits, harm, _), (next_bits, next_harm, choice) in pairwise(hull):
            steps.append(((harm - next_harm) / (next_bits - bits), next_bits - bits, candidate.name, choice))
    if not spent <= budget * (1 + 1e-9) or not budget <= most * (1 + 1e-9):
        raise ElutqError(
            f"{target:g} bits per weight cannot be reached: this model's linears can have "
            f"{spent / sum(candidate.n_weights for candidate in candidates):.3f} to "
            f"{most / sum(candidate.n_weights for candidate in candidates):.3f}"
        )
    stopped: set[str] = set()
    for _, bits, name, choice in sorted(steps, key=lambda step: -step[0]):
        if name not in stopped and spent + bits <= budget * (1 + 1e-9):
            spent += bits
            chosen[name] = choice
        else:
            stopped.add(name)
    return chosen


def _lower_hull(points: Iterable[tuple[float, float, Choice]]) -> list[tuple[float, float, Choice]]:
    """Return the points (bits, harm, choice) that minimise harm + price * bits at some price, by bits."""
    hull: list[tuple[float, float, Choice]] = []
    for point in sorted(points):
        if hull and point[1] >= hull[-1][1]:
            continue
        while len(hull) > 1 and _slope(hull[-2], point) >= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(point)
    return hull


def _slope(left: tuple[float, float, Choice], right: tuple[float, float, Choice]) -> float:
    return (left[1] - right[1]) / (right[0] - left[0])


def measure_candidates(
    source: WeightSource,
    recipe: Recipe,
    names: set[str],
    tokens: npt.NDArray[np.int64],
    backend: Backend,
    advance: Callable[[int], None],
) -> list[Candidate]:
    """Measure the errors and the sensitivity of linears, one block in memory at a time.

    Every linear's variant of the residual stream, in which it alone is quantized, is carried through the blocks after
    it, beside the exact stream.
    """
    model = Transformer(source)
    hidden = np.asarray(model.embed(tokens[:HESSIAN_SEQUENCES]))
    exact = hidden[:PROBE_SEQUENCES].copy()
    variants: dict[str, FloatArray] = {}
    measured: dict[str, dict[Choice, float]] = {}
    for layer in range(source.config.num_hidden_layers):
        block = model.block(layer)
        changed: dict[str, FloatArray] = {}
        for linears, statistics in block_statistics(block, hidden, None, backend):
            for linear in linears:
                name = f"model.layers.{layer}.{linear}.weight"
                weights = block.weights[f"{linear}.weight"]
                if name in names:
                    options = _options(weights.shape[1], recipe.group_size)
                    errors = measure_errors(weights, statistics.hessian, options, recipe.damping, backend)
                    reference = min(options, key=lambda choice: abs(choice[0] - 2))
                    whole = feedback(weights, statistics.hessian, *reference, recipe.damping, backend)
                    errors[reference] = whole.error**2
                    measured[name], changed[linear] = errors, whole.tensor.dequantize()
                advance(weights.size)
        for name, stream in variants.items():
            variants[name] = _run_block(block, stream, backend)
        for linear, restored in changed.items():
            weights = {**block.weights, f"{linear}.weight": restored}
            other = Block(block.config, layer, weights)
            variants[f"model.layers.{layer}.{linear}.weight"] = _run_block(other, exact, backend)
        exact = _run_block(block, exact, backend)
    head = model.load_head()
    expected = [log_softmax(head(x)) for x in exact]
    shapes = source.config.tensor_shapes()
    candidates = []
    for name, stream in variants.items():
        divergence = float(np.mean([_divergence(p, head(x)) for p, x in zip(expected, stream, strict=True)]))
        error = measured[name][min(measured[name], key=lambda choice: abs(choice[0] - 2))]
        sensitivity = divergence / error if error > 0.0 else 0.0
        candidates.append(Candidate(name, int(np.prod(shapes[name])), sensitivity, measured[name]))
    return candidates


def measure_errors(
    weights: FloatArray, hessian: FloatArray, options: Iterable[Choice], damping: float, backend: Backend
) -> dict[Choice, float]:
    """Return the squared relative error under H at each choice, measured on rows spread over the matrix."""
    step = max(1, len(weights) // SAMPLED_ROWS)
    rows = np.ascontiguousarray(weights[step // 2 :: step][:SAMPLED_ROWS])
    return {choice: feedback(rows, hessian, *choice, damping, backend).error ** 2 for choice in options}


def _options(columns: int, group_size: int) -> list[Choice]:
    sizes = [size for size in sorted({*GROUP_SIZES, group_size}, reverse=True) if columns % size == 0]
    return [(bits, size) for bits in range(HLQ_MIN_BITS, HLQ_MAX_BITS + 1) for size in sizes]


def _run_block(block: Block, stream: FloatArray, backend: Backend) -> FloatArray:
    positions = Positions.of(block.config, stream.shape[1])
    return np.concatenate(backend.map(quiet(lambda x: np.asarray(block(x, positions))), token_batches(stream)))


def _divergence(expected: npt.NDArray[np.float64], logits: FloatArray) -> float:
    """Return the mean KL divergence of predictions from expected: (n, vocab_size) log-probabilities."""
    found = log_softmax(logits)
    return float((np.exp(expected) * (expected - found)).sum(axis=-1).mean())
