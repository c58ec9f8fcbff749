"""An upper bound of the memory that a run takes, without the page cache: every phase of it in bytes.

Arrays are counted at the worst moment of a phase. What lies on disk (activations, finished tensors) is mapped, and not
counted. Nothing grows with the number of threads but what each of them holds by itself.
"""

import math

from elutq_cli.pipeline.compute.products import AT_ONCE, ROWS_AT_ONCE
from elutq_cli.pipeline.recipe import MatrixPlan, Plan, Recipe
from elutq_cli.pipeline.stages.allocate import SEQUENCES
from elutq_cli.pipeline.stages.by_rows import runs_of_rows
from elutq_cli.pipeline.stages.divergence import TOKENS_AT_ONCE as TOKENS_AT_HEAD
from elutq_cli.pipeline.stages.experts import EXPERT_TOKENS
from elutq_cli.pipeline.stages.moments import TOKENS_AT_ONCE
from elutq_cli.pipeline.stages.rotate import WEIGHTS_AT_ONCE
from elutq_cli.pipeline.stages.sensitivity import BACK_AT_ONCE, EXPERT_SEQUENCES
from elutq_cli.reference.attention import QUERY_ROWS
from elutq_cli.reference.backward import LOGIT_ROWS
from elutq_cli.reference.transformer import STACK_BYTES
from elutq_formats.block import Branch
from elutq_formats.config import ModelConfig
from elutq_formats.tensor_record import STACK_DIMENSIONS

PROCESS_BYTES = 100_000_000
"""Python, numpy and the rest, with what the C library keeps of freed memory."""

TOKEN_BYTES = 1100
"""What a tokenizer takes for each of its tokens while it is read and checked, and the C library keeps; measured."""

THREAD_BYTES = 12_000_000
"""A thread's tile of a product, and BLAS's buffers for it."""

MARGIN = 1.1
"""What fragments of freed memory, and what is not counted, add."""

# Bytes for each weight of a matrix, or each element of its Hessian, at the worst moment of a stage; measured.
ALONE, HALF = 7.5, 6.0
CODES, STAGE_WEIGHT, STAGE_SQUARE = 2.5, 10.5, 9.0
FACTOR_SQUARE = 10.0
ROTATED = 40.0
LOGIT = 20.0
COMPARED_LOGIT = 24.0
BACKWARDS = 2.0
"""What a sequence takes on its way back through a block, over what it takes on its way forwards."""

Shapes = dict[str, tuple[int, ...]]


def peak_memory(config: ModelConfig, plan: Plan, shapes: Shapes, recipe: Recipe, n_tokens: int, threads: int) -> int:
    """Return the most bytes that a run takes.

    Args:
        config: of the model.
        plan: what becomes of its matrices.
        shapes: of all tensors, by name.
        recipe: how to quantize.
        n_tokens: of the calibration text; 0 without.
        threads: of the run.
    """
    rotation = ROTATED * max(WEIGHTS_AT_ONCE, config.head_dim * config.hidden_size) if recipe.rotate else 0.0
    outer = [plan.embedding, *([] if plan.head is None else [plan.head])]
    if n_tokens == 0:
        peaks = [_alone(entry, shapes[entry.name], True) for entry in outer]
        peaks += [_alone(entry, shapes[entry.name][-2:], False) for block in plan.blocks for entry in block]
    else:
        batch = _batch_bytes(config, recipe.sequence_length, 2 if recipe.keeps_exact else 1)
        flight = batch * min(AT_ONCE, -(-n_tokens // TOKENS_AT_ONCE))
        embedding, outer_shape = plan.embedding, shapes[plan.embedding.name]
        alone = (
            _head(embedding, outer_shape, flight) if plan.head_is_embedding else _alone(embedding, outer_shape, True)
        )
        peaks = [alone + 4.0 * _run(outer_shape)]  # and what it makes of some rows again
        peaks += [_block(config, plan, layer, shapes, flight, n_tokens) for layer in range(len(plan.blocks))]
        if recipe.allocates:
            peaks += _allocate(config, plan, shapes, recipe, flight)
        peaks.append(_compare(shapes[(plan.head or plan.embedding).name]))
        if plan.head is not None:
            peaks.append(_head(plan.head, shapes[plan.head.name], flight))
    return process_bytes(config) + THREAD_BYTES * threads + int(MARGIN * (max(peaks) + rotation))


def process_bytes(config: ModelConfig) -> int:
    """Return what a run takes beside its weights, activations and threads."""
    return PROCESS_BYTES + TOKEN_BYTES * config.vocab_size


def _run(shape: tuple[int, ...]) -> int:
    """Return the weights of the rows of a matrix that go through the stages together."""
    first: slice = runs_of_rows(shape[0])[0]
    return int(first.stop) * shape[1]


def _stored(entry: MatrixPlan, shape: tuple[int, ...]) -> float:
    """Return the bytes of a matrix as the file holds it, with what fills up its tiles."""
    return entry.bits_per_weight / 8 * (math.prod(shape) + 32 * shape[1])


def _alone(entry: MatrixPlan, shape: tuple[int, ...], by_rows: bool) -> float:
    """Return what a matrix takes that is fitted by itself, read by rows or as a whole."""
    run = _run(shape)
    read = 0.0 if by_rows else 4.0 * (math.prod(shape) - run)
    return read + (HALF if entry.layout is None else ALONE) * run + _stored(entry, shape)


def _block(config: ModelConfig, plan: Plan, layer: int, shapes: Shapes, flight: float, n_tokens: int) -> float:
    """Return what a block takes with its stages: its weights, and the inputs of its linears one after the other."""
    own = 4.0 * sum(math.prod(shapes[entry.name]) for entry in plan.blocks[layer] if not _is_stack(shapes[entry.name]))
    exact = 0.0  # weights of the exact block, kept until its stream has passed the half that they belong to
    peaks = []
    for branch in config.layer(layer).branches:
        if branch.mixer == "experts":
            peaks.append(_experts(config, branch, n_tokens))
            continue
        for linears in (branch.readers, (branch.writer,)):
            sharing = [shapes[f"model.layers.{layer}.{linear}.weight"] for linear in linears]
            writes = branch.writer in linears
            peaks.append(_calibrated(sharing, writes and branch.after is None, exact + flight))
            exact = 0.0 if writes else 4.0 * sum(map(math.prod, sharing))
    return own + max(peaks)


def _experts(config: ModelConfig, branch: Branch, n_tokens: int) -> float:
    """Return what a branch with experts takes beside its block: one of them, its tokens some at a time, and routes."""
    hidden, width = config.hidden_size, config.expert_intermediate_size
    routes = n_tokens * (8.0 * config.n_experts + 24.0 * config.n_experts_used)
    some = 4.0 * min(n_tokens, EXPERT_TOKENS) * (3 * hidden + 5 * max(width, config.shared_expert_intermediate_size))
    weights = 4.0 * 3 * hidden * width
    of_inputs, of_layer = 4.0 * hidden**2, 4.0 * width**2  # moments of all tokens, which stay to the end
    peaks = [
        of_inputs + weights + _calibrated([(width, hidden)] * 2, False, some),
        of_inputs + of_layer + weights + _calibrated([(hidden, width)], False, some),
    ]
    if branch.shared is not None:
        shared, kept = config.shared_expert_intermediate_size, of_inputs + of_layer
        peaks.append(kept + _calibrated([(shared, hidden)] * 2, False, some))
        peaks.append(kept + _calibrated([(hidden, shared)], False, some))
    return routes + max(peaks)


def _is_stack(shape: tuple[int, ...]) -> bool:
    return len(shape) == STACK_DIMENSIONS


def _head(entry: MatrixPlan, shape: tuple[int, ...], flight: float) -> float:
    if entry.layout is None:
        return _alone(entry, shape, True)
    run = _run(shape)
    return _stored(entry, shape) + 4.0 * run + _calibrated([(run // shape[1], shape[1])], False, flight)


def _compare(shape: tuple[int, ...]) -> float:
    """Return what comparing predictions takes: some rows of both heads, and their logits."""
    run = _run(shape)
    return ALONE * run + 4.0 * run + AT_ONCE * COMPARED_LOGIT * TOKENS_AT_HEAD * (run // shape[1])


def _calibrated(sharing: list[tuple[int, ...]], adds_to_stream: bool, forward: float) -> float:
    """Return the bytes that the stages take for matrices (rows, columns) that share an input, beside their block.

    Args:
        sharing: their shapes.
        adds_to_stream: whether their output joins the residual stream.
        forward: bytes in memory until the input's moments are known.
    """
    rows, columns = sharing[0]
    square, targets = columns**2, sum(map(math.prod, sharing))
    largest = max(rows for rows, _ in sharing)
    stages = (CODES * largest + STAGE_WEIGHT * min(largest, ROWS_AT_ONCE)) * columns
    second = 4.0 * rows * columns if adds_to_stream else 0.0  # the moment beside the Hessian
    return max(
        forward + 4.0 * square + second,
        FACTOR_SQUARE * square + second,
        8.0 * square + 3.0 * second + 4.0 * targets,  # two products of the correction beside it
        STAGE_SQUARE * square + 4.0 * targets + stages,
    )


def _batch_bytes(config: ModelConfig, sequence_length: int, streams: int, n_sequences: int | None = None) -> float:
    """Return what a batch of sequences takes on its way through half a block, its results included.

    Args:
        config: of the model.
        sequence_length: tokens of a sequence.
        streams: 2 where the exact model's runs beside it.
        n_sequences: of the batch; None: a calibration batch's.
    """
    n_sequences = n_sequences or max(1, TOKENS_AT_ONCE // sequence_length)
    tokens = n_sequences * sequence_length
    heads, kv_heads = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    scores = 5 * n_sequences * config.num_attention_heads * min(QUERY_ROWS, sequence_length) * sequence_length
    mlp = (3 + streams) * config.intermediate_size
    attention = (7 + streams) * heads + 4 * kv_heads
    return 4.0 * (tokens * (max(mlp, attention) + (2 + 2 * streams) * config.hidden_size) + scores)


def _allocate(config: ModelConfig, plan: Plan, shapes: Shapes, recipe: Recipe, flight: float) -> list[float]:
    """Return what the phases of choosing bits take: forwards with the stages of some rows, the head, and back."""
    tokens, hidden = recipe.sequence_length, config.hidden_size
    streams = 3 * 4.0 * SEQUENCES * tokens * hidden
    layer = next((layer for layer in range(len(plan.blocks)) if config.has_experts(layer)), 0)
    whole = [shapes[entry.name] for entry in plan.blocks[layer]]
    block = [shape[-2:] for shape in whole]  # of experts, one after the other
    own = streams + sum(min(4.0 * math.prod(shape), STACK_BYTES if _is_stack(shape) else math.inf) for shape in whole)
    at_once = max(BACK_AT_ONCE, EXPERT_SEQUENCES if config.n_experts else 0)
    back = at_once * BACKWARDS * _batch_bytes(config, tokens, 1, 1)
    if config.n_experts:
        few = min(SEQUENCES * tokens, EXPERT_TOKENS)
        flight += 4.0 * few * (3 * hidden + 5 * config.expert_intermediate_size)
    return [
        own + 4.0 * max(columns for _, columns in block) ** 2 + flight,
        own + max(FACTOR_SQUARE * columns**2 + 8.0 * rows * columns for rows, columns in block),
        own + back,
        streams + (4.0 * hidden + 8.0 * SEQUENCES + AT_ONCE * LOGIT * min(LOGIT_ROWS, tokens)) * config.vocab_size,
    ]
