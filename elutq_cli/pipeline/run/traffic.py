"""What travels between the machine that calls and the workers of a cluster: for a block, and for a whole run.

Numbers of workers are those of ``Backend.light``: where they are 1, only what the stages take of linears travels.

Every array is counted as the stages send it; what is smaller than ``shipping.LARGE`` goes with the text of a unit, and
is not.
"""

import math
from dataclasses import dataclass

from elutq_cli.pipeline.compute import divided
from elutq_cli.pipeline.compute.divided import UNITS_EACH, band_rows, panel_columns
from elutq_cli.pipeline.compute.products import MOMENT_TILES, pieces, unit_rows
from elutq_cli.pipeline.recipe import MatrixPlan, Plan, Recipe
from elutq_cli.pipeline.run.forecast import plan_shapes
from elutq_cli.pipeline.stages.allocate import SEQUENCES, head_to_choose
from elutq_cli.pipeline.stages.alone import runs_alone
from elutq_cli.pipeline.stages.streams import compared_tokens, stream_tokens
from elutq_formats.block import Branch
from elutq_formats.config import ModelConfig

TILE = 512
"""Of numpy's products: ``NumpyArrays.tile``."""

RESULT = 1.25
"""Bytes of a weight that has been quantized, about: its code, and its part of half scales and centers."""


@dataclass(frozen=True)
class Traffic:
    """Bytes that travel.

    Attributes:
        to_all: of arrays that every worker may need.
        to_one: of arrays that one unit needs.
        panels: of inputs of linears, for the sums of their moments.
        panel_takers: workers that need a panel.
        returned: of the units' results.
    """

    to_all: float = 0.0
    to_one: float = 0.0
    panels: float = 0.0
    panel_takers: int = 1
    returned: float = 0.0

    @property
    def sent(self) -> float:
        """What the machine that calls puts into the object store, each array once."""
        return self.to_all + self.to_one + self.panels

    def carried(self, workers: int) -> float:
        """Return what travels at most, where each of so many workers is a node of its own."""
        return workers * self.to_all + self.to_one + min(workers, self.panel_takers) * self.panels + self.returned

    def __add__(self, other: "Traffic") -> "Traffic":
        """Return both together."""
        return Traffic(
            self.to_all + other.to_all,
            self.to_one + other.to_one,
            self.panels + other.panels,
            max(self.panel_takers, other.panel_takers),
            self.returned + other.returned,
        )


def block_traffic(
    config: ModelConfig, layer: int, recipe: Recipe, n_tokens: int, workers: int, held_out_tokens: int = 0
) -> Traffic:
    """Return what travels for a block.

    Args:
        config: of the model.
        layer: the block.
        recipe: how it is quantized.
        n_tokens: to calibrate on.
        workers: that light units are divided among.
        held_out_tokens: beside them.
    """
    return sum(branch_traffics(config, layer, recipe, n_tokens, workers, held_out_tokens), Traffic())


def branch_traffics(
    config: ModelConfig, layer: int, recipe: Recipe, n_tokens: int, workers: int, held_out_tokens: int = 0
) -> list[Traffic]:
    """Return what travels for each branch of a block, nothing of which is in the object store when the next begins."""
    beside = stream_tokens(recipe, n_tokens, held_out_tokens) - (2 if recipe.keeps_exact else 1) * n_tokens
    shapes, found = config.linear_shapes(layer), []
    for branch in config.layer(layer).branches:
        readers = [shapes[f"model.layers.{layer}.{linear}.weight"] for linear in branch.readers]
        writer = shapes[f"model.layers.{layer}.{branch.writer}.weight"]
        if branch.mixer == "experts":
            found.append(_experts(config, readers, writer, recipe, n_tokens, workers))
        else:
            found.append(_branch(config, branch, readers, writer, recipe, (n_tokens, beside), workers))
    return found


def run_traffic(
    config: ModelConfig, plan: Plan, recipe: Recipe, n_tokens: int, workers: int, held_out_tokens: int = 0
) -> Traffic:
    """Return what travels for all of a run.

    Args:
        config: of the model.
        plan: what becomes of its matrices.
        recipe: how they are quantized.
        n_tokens: to calibrate on; 0 for weights alone, which are read where they are quantized.
        workers: that light units are divided among.
        held_out_tokens: of the text, beside those to calibrate on.
    """
    recipe, shapes = recipe.resolved(n_tokens > 0), plan_shapes(config, plan)
    if n_tokens == 0:
        return Traffic(returned=sum(_returned_alone(entry, shapes[entry.name]) for entry in plan.matrices()))
    vocabulary, hidden = float(config.vocab_size * config.hidden_size), config.hidden_size
    total = embedding_traffic(config, plan, recipe, n_tokens, workers)
    for layer in range(config.num_hidden_layers):
        total += block_traffic(config, layer, recipe, n_tokens, workers, held_out_tokens)
    if plan.head is not None and plan.head.layout is not None:
        total += Traffic(to_one=4.0 * vocabulary, returned=RESULT * vocabulary)
        total += _moments_of_head(config, n_tokens, workers) + _inputs(hidden, recipe, workers)
    if workers > 1:  # both heads, for all predictions
        compared = compared_tokens(recipe, n_tokens) + held_out_tokens
        total += Traffic(to_all=8.0 * vocabulary, to_one=8.0 * compared * hidden)
    if recipe.allocates:
        few = min(SEQUENCES * recipe.sequence_length, n_tokens)
        for layer in range(config.num_hidden_layers):
            total += _measured(config, layer, few, workers)
        if head_to_choose(config, recipe) is not None:
            total += _moments_of_head(config, few, workers) + _factor(hidden, workers)
    return total


def embedding_traffic(config: ModelConfig, plan: Plan, recipe: Recipe, n_tokens: int, workers: int) -> Traffic:
    """Return what travels for the embedding, as ``run_traffic``: where it is the head, too, with its inputs."""
    vocabulary, hidden = float(config.vocab_size * config.hidden_size), config.hidden_size
    total = Traffic(to_one=4.0 * vocabulary, returned=RESULT * vocabulary)
    if not plan.head_is_embedding:
        return total
    few = min(SEQUENCES * recipe.sequence_length, n_tokens)
    if workers > 1:
        for layer in range(config.num_hidden_layers):
            total += _forwards(config, layer, few)
    return total + _moments_of_head(config, few, workers) + _inputs(hidden, recipe, workers)


def _moments_of_head(config: ModelConfig, n_tokens: int, workers: int) -> Traffic:
    """Return what travels for the moments of the head's input: the stream through the last norm, and X^T X."""
    stream = 4.0 * n_tokens * config.hidden_size if workers > 1 else 0.0
    return Traffic(to_one=stream, returned=stream) + _moments(config.hidden_size, 0, n_tokens, workers)


def _forwards(config: ModelConfig, layer: int, n_tokens: int) -> Traffic:
    """Return what travels to take tokens through a block: its weights, and the stream for each of its branches."""
    total, shapes, stream = Traffic(), config.linear_shapes(layer), 4.0 * n_tokens * config.hidden_size
    for branch in config.layer(layer).branches:
        linears = () if branch.mixer == "experts" else (*branch.readers, branch.writer)
        weights = 4.0 * sum(math.prod(shapes[f"model.layers.{layer}.{linear}.weight"]) for linear in linears)
        total += Traffic(to_all=weights, to_one=stream, returned=stream)
    return total


def _returned_alone(entry: MatrixPlan, shape: tuple[int, ...]) -> float:
    """Return what comes back of a matrix that is quantized by its weights alone: packed where it is one unit."""
    return math.prod(shape) * (RESULT if runs_alone(entry, shape[0]) else entry.bits_per_weight / 8)


def _measured(config: ModelConfig, layer: int, n_tokens: int, workers: int) -> Traffic:
    """Return what travels to measure a block's errors and gradients: its weights twice, and Hessians once each."""
    total, shapes, hidden = Traffic(), config.linear_shapes(layer), config.hidden_size
    for branch in config.layer(layer).branches:
        columns = shapes[f"model.layers.{layer}.{branch.writer}.weight"][-1]
        if branch.mixer == "experts":
            continue
        linears = (*branch.readers, branch.writer)
        weights = 4.0 * sum(math.prod(shapes[f"model.layers.{layer}.{linear}.weight"]) for linear in linears)
        streams = 4.0 * n_tokens * (hidden + columns)
        back = 8.0 * n_tokens * hidden / len(config.layer(layer).branches)
        if workers > 1:
            total += Traffic(to_all=weights, to_one=streams, returned=streams + 4.0 * n_tokens * hidden)
        total += Traffic(to_all=weights, to_one=back, returned=back) + Traffic(to_one=4.0 * (hidden**2 + columns**2))
        total += _moments(hidden, 0, n_tokens, workers) + _moments(columns, 0, n_tokens, workers)
    return total


def _branch(
    config: ModelConfig,
    branch: Branch,
    readers: list[tuple[int, ...]],
    writer: tuple[int, ...],
    recipe: Recipe,
    tokens: tuple[int, int],
    workers: int,
) -> Traffic:
    """Return what travels for a branch: its readers, of hidden_size columns, then its writer.

    Args:
        config: of the model.
        branch: of a block.
        readers: their shapes (rows, columns).
        writer: its shape.
        recipe: how they are quantized.
        tokens: to calibrate on, and beside them.
        workers: that light units are divided among.
    """
    (n, beside), hidden, columns = tokens, config.hidden_size, writer[1]
    read, written = sum(map(math.prod, readers)), math.prod(writer)
    staged = _inputs(hidden, recipe, workers) + _inputs(columns, recipe, workers)
    staged += Traffic(returned=RESULT * (read + written))
    if workers == 1:
        return staged + Traffic(to_one=4.0 * (read + written))
    keeps, corrects = recipe.keeps_exact, recipe.corrects and branch.after is None
    streams = n * (2 if keeps else 1) * hidden
    weights = (2 if keeps or beside else 1) * (read + written)  # as they are now, and the exact ones
    forward = Traffic(
        to_all=4.0 * weights,
        to_one=4.0 * (streams + n * columns + beside * hidden),
        # What the readers take, what the writer takes, and what it adds; the exact stream; those beside.
        returned=4.0 * (n * (2 * hidden + columns + keeps * hidden + corrects * hidden) + beside * hidden),
    )
    total = staged + forward + _moments(hidden, 0, n, workers) + _moments(columns, corrects * hidden, n, workers)
    if corrects:
        # What the stream lacks goes to have what the linear adds taken off, comes back and goes again; what it makes of
        # the weights comes back and goes again.
        total += Traffic(to_one=12.0 * written, returned=8.0 * written)
    return total


def _experts(
    config: ModelConfig,
    readers: list[tuple[int, ...]],
    writer: tuple[int, ...],
    recipe: Recipe,
    n_tokens: int,
    workers: int,
) -> Traffic:
    """Return what travels for a branch with experts: for their layer's Hessian, and what each is quantized by."""
    n_experts, hidden = writer[0], config.hidden_size
    total = _moments(hidden, 0, n_tokens, workers)
    if workers > 1:
        total += Traffic(to_one=4.0 * n_tokens * hidden, returned=4.0 * n_tokens * hidden)
    for columns, shapes in ((hidden, readers), (writer[2], [writer])):
        n_weights = sum(math.prod(shape[1:]) for shape in shapes)
        own = _inputs(columns, recipe, workers) + Traffic(to_one=4.0 * n_weights, returned=RESULT * n_weights)
        for _ in range(n_experts):
            total += own
    return total


def _moments(columns: int, others: int, n_tokens: int, workers: int) -> Traffic:
    """Return what travels for X^T X, and for Y^T X where there are others: columns of Y."""
    if workers == 1:  # the machine that calls adds them up
        return Traffic()
    size = MOMENT_TILES * TILE
    squares = pieces(columns, panel_columns(columns, workers, size))
    lengths = [part.stop - part.start for part in squares]
    upper = sum(length * (columns - part.start) for length, part in zip(lengths, squares, strict=True))
    n_bands = len(pieces(others, band_rows(others, len(squares), workers, size))) if others else 0
    return Traffic(
        panels=4.0 * n_tokens * (columns + others),
        panel_takers=len(squares) + n_bands,
        returned=4.0 * (upper + others * columns),
    )


def _inputs(columns: int, recipe: Recipe, workers: int) -> Traffic:
    """Return what travels of an input's Hessian and its factor: both, and the products of the factor's halves."""
    if not recipe.factors:
        return Traffic(to_all=4.0 * columns**2)
    return Traffic(to_all=8.0 * columns**2) + _factor(columns, workers)


def _factor(n: int, workers: int) -> Traffic:
    half = n // 2
    if workers == 1 or half < divided.DIVIDED_ROWS:
        return Traffic()
    rest = n - half
    cut = unit_rows(half, UNITS_EACH * workers)
    triangle = sum((part.stop - part.start) * (half - part.start) for part in cut)
    products = Traffic(
        to_all=4.0 * (rest**2 + half * rest + half**2),
        to_one=4.0 * (2 * half * rest + triangle),
        returned=4.0 * (3 * half * rest + triangle),
    )
    return products + _factor(half, workers) + _factor(rest, workers)
