"""The allocate stage: bits, group size and kind of blocks of each linear, so that a budget of bits does the least harm.

The head takes part, and the embedding where it is that. The harm that a matrix does in some layout is what its errors
there do to the model's predictions, to second order: half the sum over rows of their squared error under H times the
mean square of the loss's gradient. Harms are added up over matrices, and the budget is spent where a bit takes away
most.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from elutq_cli.pipeline.compute.backend import Backend
from elutq_cli.pipeline.compute.levels import FloatArray
from elutq_cli.pipeline.layout import EVEN8C, FREE8, Layout, Sizes
from elutq_cli.pipeline.recipe import OUTER_BITS, Plan, Recipe
from elutq_cli.pipeline.stages.by_rows import embed
from elutq_cli.pipeline.stages.calibrate import block_statistics
from elutq_cli.pipeline.stages.head_errors import head_harms
from elutq_cli.pipeline.stages.moments import MakeRoom, head_statistics, in_memory
from elutq_cli.pipeline.stages.row_errors import SAMPLED_ROWS, RowErrors, Sample, ToRound, round_all
from elutq_cli.pipeline.stages.sensitivity import Squares, gradient_squares
from elutq_cli.pipeline.stages.streams import exact_model, spread
from elutq_cli.reference import Array, Block, Transformer, WeightSource
from elutq_formats.config import ModelConfig
from elutq_formats.constants import HLQ_MAX_BITS, HLQ_MIN_BITS
from elutq_formats.errors import ElutqError
from elutq_formats.expert_names import expert_names, split_expert
from elutq_formats.model_tensors import EMBEDDING, FINAL_NORM, HEAD
from elutq_formats.names import called
from elutq_formats.tensor_record import STACK_DIMENSIONS

GROUP_SIZES = (128, 64, 32)
"""Group sizes that a linear may be given where its columns allow, beside the recipe's own."""

EVEN_BITS = 3
"""Bits from which evenly spaced levels are compared, too, and what the budget must be for that. On rows of five
matrices of Qwen2.5-Coder-0.5B, with random correlated inputs, refine leaves them in groups of 32 12 % less error at
3 bits than free bytes in groups of 64, which take as much, and 11 % less at 4 bits, where those take 0.125 more. The
fewer the levels, the more their places matter."""

SEQUENCES = 16
"""Calibration sequences that go through the model, forwards and back. On SmolLM2-135M the mean squares of gradients are
those of 64 others to 5 %."""

SAMPLED_EXPERTS = 8
"""Experts of a layer, about, that stand for all of it: each costs a factor of its own Hessian."""

ROUNDING = 1 + 1e-9
"""A budget counts as kept when it is exceeded by no more than the rounding of sums."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A matrix to which bits are to be given: a linear, or the head.

    Attributes:
        name: in the checkpoint.
        n_weights: number of weights.
        harms: KL divergence of the model's predictions when this matrix alone is quantized, nats a token, by layout.
    """

    name: str
    n_weights: int
    harms: Mapping[Layout, float]

    @property
    def least_bits(self) -> float:
        """Of the matrix in the smallest layout that it can have."""
        return self.n_weights * min(layout.bits_per_weight for layout in self.harms)


def allocate(
    source: WeightSource,
    recipe: Recipe,
    tokens: npt.NDArray[np.int64],
    backend: Backend,
    make_room: MakeRoom = in_memory,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Layout]:
    """Choose the layouts of all the blocks' linears, and the head's, by what their errors do to the predictions.

    Args:
        source: the checkpoint.
        recipe: has the budget. Linears that its tensor_types fix are left out, and take nothing from the others, unless
            it names a total.
        tokens: (sequences, n) calibration sequences.
        backend: runs the stages.
        make_room: for activations.
        note: is told how far it is.

    Returns:
        Those of each matrix that is not fixed, the head's under both names where the embedding is that; nothing is
        measured where all linears are.

    Raises:
        ElutqError: as ``check_target`` and ``measure_candidates``.
    """
    config = source.config
    check_target(config, recipe)
    free, fixed = _split_linears(config, recipe)
    if not free:
        return {}
    head = head_to_choose(config, recipe)
    names = free if head is None else free | {head}
    found = measure_candidates(source, recipe, names, tokens, backend, make_room, note)
    bits = sum(_brought(recipe, candidate.name) * candidate.n_weights for candidate in found)
    n_weights = sum(candidate.n_weights for candidate in found)
    if recipe.target_bpw is None:  # nobody has asked for less than outliers leave
        bits = max(bits, sum(candidate.least_bits for candidate in found))
    mean = bits / n_weights
    chosen = spend(found, mean, NONE_FIXED if recipe.target_bpw is None else fixed)
    for candidate in found:
        layout = chosen[candidate.name]
        log.info("%s: %s, harm %.5f", candidate.name, layout, candidate.harms[layout])
    return chosen if head != EMBEDDING else chosen | {HEAD: chosen[EMBEDDING]}


def _brought(recipe: Recipe, name: str) -> float:
    """Return the bits a weight that a matrix brings to the budget."""
    return recipe.layout(OUTER_BITS).bits_per_weight if name in (EMBEDDING, HEAD) else recipe.budget


def most_of_linears(config: ModelConfig, recipe: Recipe) -> float:
    """Return the most bits a weight that the blocks' linears can have together: where the head takes its fewest."""
    if not recipe.allocates or head_to_choose(config, recipe) is None:
        return recipe.budget
    n_linears = sum(math.prod(shape) for layer in range(config.num_hidden_layers) for shape in _shapes(config, layer))
    least = min(layout.bits_per_weight for layout in _options(config.hidden_size, recipe))
    given_up = (_brought(recipe, HEAD) - least) * config.vocab_size * config.hidden_size
    most = max(layout.bits_per_weight for layout in _options(min(GROUP_SIZES), recipe))
    return min(recipe.budget + given_up / n_linears, most)


def _shapes(config: ModelConfig, layer: int) -> list[tuple[int, ...]]:
    """Return those of a block's linears."""
    return [config.tensor_shapes()[name] for name in config.linear_names(layer)]


def head_to_choose(config: ModelConfig, recipe: Recipe) -> str | None:
    """Return the name of the head, or of the embedding that it is, where its layout is chosen; None where it is not."""
    given = [recipe.output_bits, recipe.target_bpw]  # a target is of the blocks, and kept there
    given += [recipe.embedding_bits] if config.tie_word_embeddings else []
    if any(value is not None for value in given):
        return None
    plan = Plan.make(config, recipe, dict.fromkeys((EMBEDDING, HEAD), UNDECIDED))
    head = plan.head or plan.embedding
    is_free = head.layout == UNDECIDED and config.tie_word_embeddings == (plan.head is None)
    return head.name if is_free else None


@dataclass(frozen=True)
class Fixed:
    """Linears that count towards a budget, and about which there is nothing to choose: their bits and weights."""

    bits: float
    n_weights: int


NONE_FIXED = Fixed(0.0, 0)

UNDECIDED = Layout(0, 1)
"""One that no recipe has: what still has it in a plan is free."""


def check_target(config: ModelConfig, recipe: Recipe) -> None:
    """Refuse a total of bits per weight that no choice of layouts makes; nothing is measured for that.

    Raises:
        ElutqError: it is below or above what the linears can have.
    """
    if recipe.target_bpw is None:
        return
    free, fixed = _split_linears(config, recipe)
    least = most = fixed.bits
    n_weights = fixed.n_weights
    for shape in (config.tensor_shapes()[name] for name in free):
        sizes, n_own = [layout.bits_per_weight for layout in _options(shape[-1], recipe)], math.prod(shape)
        least, most = least + min(sizes) * n_own, most + max(sizes) * n_own
        n_weights += n_own
    if not free:
        raise ElutqError(
            f"tensor types fix every linear, at {fixed.bits / n_weights:.3f} bits per weight: "
            f"leave out the target of {recipe.target_bpw:g}"
        )
    if not least <= recipe.target_bpw * n_weights * ROUNDING or not recipe.target_bpw * n_weights <= most * ROUNDING:
        raise ElutqError(
            f"{recipe.target_bpw:g} bits per weight cannot be reached: this model's linears can have "
            f"{least / n_weights:.3f} to {most / n_weights:.3f}"
        )


def _split_linears(config: ModelConfig, recipe: Recipe) -> tuple[set[str], Fixed]:
    """Return the linears that no tensor type fixes, and the others."""
    shapes = config.tensor_shapes()
    names = [name for layer in range(config.num_hidden_layers) for name in config.linear_names(layer)]
    plan = Plan.make(config, recipe, dict.fromkeys(names, UNDECIDED))
    free, fixed_bits, n_fixed = set(), 0.0, 0
    for entry in (entry for block in plan.blocks for entry in block):
        n_weights = math.prod(shapes[entry.name])
        if entry.layout == UNDECIDED:
            free.add(entry.name)
        else:
            fixed_bits += entry.bits_per_weight * n_weights
            n_fixed += n_weights
    return free, Fixed(fixed_bits, n_fixed)


def spend(candidates: Sequence[Candidate], target: float, fixed: Fixed = NONE_FIXED) -> dict[str, Layout]:
    """Give each matrix a layout so that the sum of harms is small and the sum of bits within the budget.

    All start with the smallest. Along the lower convex hull of each linear's harms over bits, the steps are taken in
    the order of the harm they take away per bit, as far as the budget goes.

    Args:
        candidates: the matrices.
        target: bits per weight of all of them, and of those that are fixed; see ``check_target``.
        fixed: the latter.

    Raises:
        ElutqError: not even the smallest keep the budget, since outliers leave some matrices no bytes for scales.
    """
    steps: list[tuple[float, float, str, Layout]] = []
    chosen: dict[str, Layout] = {}
    n_weights = fixed.n_weights + sum(candidate.n_weights for candidate in candidates)
    budget, spent = target * n_weights * ROUNDING, fixed.bits
    for candidate in candidates:
        hull = _lower_hull(
            [(layout.bits_per_weight * candidate.n_weights, harm, layout) for layout, harm in candidate.harms.items()]
        )
        chosen[candidate.name] = hull[0][2]
        spent += hull[0][0]
        for (bits, harm, _), (next_bits, next_harm, layout) in pairwise(hull):
            steps.append(((harm - next_harm) / (next_bits - bits), next_bits - bits, candidate.name, layout))
    if spent > budget:
        raise ElutqError(
            f"{target:g} bits per weight cannot be reached: outliers leave matrices of this model float16 scales, "
            f"and the least is {spent / n_weights:.3f}"
        )
    stopped: set[str] = set()
    for _, bits, name, layout in sorted(steps, key=lambda step: -step[0]):
        if name not in stopped and spent + bits <= budget:
            spent += bits
            chosen[name] = layout
        else:
            stopped.add(name)
    return chosen


def _lower_hull(points: Iterable[tuple[float, float, Layout]]) -> list[tuple[float, float, Layout]]:
    """Return the points (bits, harm, layout) that minimise harm + price * bits at some price, by bits."""
    hull: list[tuple[float, float, Layout]] = []
    for point in sorted(points):
        if hull and point[1] >= hull[-1][1]:
            continue
        while len(hull) > 1 and _slope(hull[-2], point) >= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(point)
    return hull


def _slope(left: tuple[float, float, Layout], right: tuple[float, float, Layout]) -> float:
    return (left[1] - right[1]) / (right[0] - left[0])


def measure_candidates(
    source: WeightSource,
    recipe: Recipe,
    names: set[str],
    tokens: npt.NDArray[np.int64],
    backend: Backend,
    make_room: MakeRoom = in_memory,
    note: Callable[[str], None] = lambda text: None,
) -> list[Candidate]:
    """Measure the harms of matrices with these names, one block in memory at a time.

    Errors on the way forwards through the exact model, gradients on the way back.

    Raises:
        ElutqError: activations or gradients overflow.
    """
    model = exact_model(source, backend)
    hidden = embed(source, tokens[spread(len(tokens), SEQUENCES)])
    inputs = make_room((source.config.num_hidden_layers, *hidden.shape))
    found = _measure_errors(model, inputs, hidden, recipe, names, backend, make_room, note)
    squares = gradient_squares(model, inputs, hidden, recipe.seed, backend, note)
    shapes = source.config.tensor_shapes()
    candidates = [
        Candidate(name, math.prod(shapes[name]), of.harms(_squares_of(squares, name, shapes[name])))
        for name, of in found.items()
    ]
    for name in names & {EMBEDDING, HEAD}:  # one of them, if any
        norm, columns = source.load(FINAL_NORM), source.config.hidden_size
        hessian = head_statistics(source.config, norm, hidden, backend, make_room).hessian
        options = _options(columns, recipe, _brought(recipe, name))
        harms = head_harms(source, hessian, squares, recipe.damping, options, backend)
        candidates.append(Candidate(name, source.config.vocab_size * columns, harms))
    return candidates


def _squares_of(squares: Squares, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Return the mean squares of a linear's gradient, of a stack its experts' in turn: 0 where no token was sent."""
    if len(shape) < STACK_DIMENSIONS:
        return squares[name]
    unused = np.zeros(shape[1])
    return np.concatenate([squares.get(own, unused) for own in expert_names(name, shape[0])])


def _measure_errors(
    model: Transformer,
    inputs: FloatArray,
    hidden: FloatArray,
    recipe: Recipe,
    names: set[str],
    backend: Backend,
    make_room: MakeRoom,
    note: Callable[[str], None],
) -> dict[str, RowErrors]:
    """Measure the errors of the blocks' linears, those with these names, an input's Hessian a unit.

    Args:
        model: the exact one; one block of it is in memory at a time.
        inputs: (layers, ...), becomes the stream before every block.
        hidden: (sequences, n, hidden_size) float32, the first block's input; becomes the last one's output.
        recipe: has the damping and the group size.
        names: those of the linears.
        backend: runs the units.
        make_room: for activations.
        note: is told how far it is.
    """
    begun: deque[list[tuple[str, bool, Sample]]] = deque()
    of_stacks: dict[str, Sizes] = {}

    def units() -> Iterator[tuple[Array | None, str, tuple[ToRound, ...]]]:
        for layer in range(len(inputs)):
            note(f"forwards through block {layer}")
            inputs[layer] = hidden
            block = model.block(layer)
            for linears, statistics in block_statistics(block, hidden, None, backend, make_room):
                samples, hessian = _samples(block, linears, recipe, names, backend, of_stacks), statistics.hessian
                del statistics
                begun.append(samples)
                to_round = tuple((sample.rows, sample.layouts) for _, _, sample in samples)
                is_wanted = any(layouts for _, layouts in to_round)
                yield hessian if is_wanted else None, called(f"model.layers.{layer}.{linears[0]}.weight"), to_round
                del samples, hessian, to_round
            del block  # before the next is read

    found: dict[str, RowErrors] = {}
    stacks: dict[str, list[RowErrors]] = {}
    for several in backend.executor.map(partial(round_all, recipe.damping, backend), units()):
        for (name, is_stack, sample), errors in zip(begun.popleft(), several, strict=True):
            if is_stack:
                stacks.setdefault(name, []).append(sample.measured(errors))
            else:
                found[name] = sample.measured(errors)
    return found | {name: RowErrors.of_stack(errors) for name, errors in stacks.items()}


def _samples(
    block: Block,
    linears: tuple[str, ...],
    recipe: Recipe,
    names: set[str],
    backend: Backend,
    of_stacks: dict[str, Sizes],
) -> list[tuple[str, bool, Sample]]:
    """Choose rows of linears that share an input, with the tensors they are of, and whether those are stacks.

    An expert has the layouts that its stack can have; how large a stack's weights are is kept in ``of_stacks``.
    """
    found, step = [], max(1, block.config.n_experts // SAMPLED_EXPERTS)
    for linear in linears:
        name = f"model.layers.{block.layer}.{linear}.weight"
        stack, number = split_expert(name) or (None, 0)
        if (stack or name) not in names:
            continue
        weights = block.weight(linear)
        rows = SAMPLED_ROWS if stack is None else max(1, SAMPLED_ROWS // SAMPLED_EXPERTS)
        options = _options(weights.shape[1], recipe)
        if number % step:
            sample = Sample.of_none(weights, backend)
        else:
            if stack is not None and stack not in of_stacks:
                of_stacks[stack] = Sizes.of(_experts(block, stack))
            sample = Sample.of(weights, options, backend, rows, None if stack is None else of_stacks[stack])
        found.append((stack or name, stack is not None, sample))
    return found


def _experts(block: Block, stack: str) -> Iterator[Array]:
    """Yield the weights of a stack's experts, one after the other."""
    prefix = f"model.layers.{block.layer}."
    for name in expert_names(stack, block.config.n_experts):
        yield block.weight(name.removeprefix(prefix).removesuffix(".weight"))


def _options(columns: int, recipe: Recipe, budget: float | None = None) -> list[Layout]:
    """Return what a matrix can have, where the bits that it brings to the budget are not the recipe's, by those."""
    budget = recipe.budget if budget is None else budget
    sizes = [size for size in sorted({*GROUP_SIZES, recipe.group_size}, reverse=True) if columns % size == 0]
    layouts = list(map(recipe.layout, range(HLQ_MIN_BITS, HLQ_MAX_BITS + 1)))
    # Tuning moves each half scale by itself, and 16 bits are asked for where bytes lose too much.
    if budget >= EVEN_BITS and layouts[0].kind == FREE8 and not recipe.tune:
        layouts += [replace(layout, kind=EVEN8C) for layout in layouts if layout.bits >= EVEN_BITS]
    return [replace(layout, group_size=size) for layout in layouts for size in sizes]
