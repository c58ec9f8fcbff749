"""How much tuning computes, and what it holds in memory: told before a run, without torch."""

import math

from elutq_cli.pipeline.recipe import TUNE_TOKENS, Recipe
from elutq_cli.pipeline.stages import allocate
from elutq_formats.config import ModelConfig

BLOCK_STEPS, BLOCK_TOKENS = 256, 512
"""Steps of block reconstruction, and tokens of calibration text in each: fewer steps where a sequence is longer, more
where all sequences together are more text than that."""

STEP_TOKENS = 512
"""Tokens of a step of end-to-end tuning."""

EXACT_TOKENS = 8192
"""Tokens that the exact model looks at for each reading of the checkpoint."""

KEPT_BYTES = 5_000_000_000
"""What the blocks compute is kept for their gradients up to this size, and computed again above it."""

BLOCK_OVERHEAD, END_TO_END_OVERHEAD = 1.5, 1.2
"""Time of a step over that of its products alone, measured on SmolLM2-135M."""

TORCH_BYTES = 400_000_000
"""Torch itself."""

LEARNED_WEIGHT = 32.0
"""Bytes for a weight whose bits are learned: itself, its gradient and two moments, 4 each; its value and the gradient
of that; what an update holds at its worst moment. Measured on a processor: 24 to 28, beside the levels'."""

FROZEN_WEIGHT = 24.0
"""Bytes for a weight of the block that runs, when its bits are frozen: value, gradient, signs and a product."""

LEVEL = 40.0
"""Bytes for each half scale or center: start, shift, gradient, two moments, the best and copies for the work folder."""

LOGIT_ROWS = 512
"""Positions whose logits are in memory at a time."""


def tuning_bytes(config: ModelConfig, recipe: Recipe) -> int:
    """Return the memory that tuning takes on its device, at its worst moment."""
    of = {"block": _block_bytes, "e2e": _end_to_end_bytes}
    return TORCH_BYTES + int(max(of[stage](config, recipe) for stage in recipe.tune)) if recipe.tune else 0


def tuning_scratch(config: ModelConfig, recipe: Recipe) -> int:
    """Return the bytes in the work folder that a state of end-to-end tuning takes, and one before it."""
    n_levels = _levels_per_weight(config, recipe) * _block_weights(config) * config.num_hidden_layers
    return int(2 * 4 * 4.0 * n_levels) if "e2e" in recipe.tune else 0


def keeps_activations(config: ModelConfig, sequence_length: int) -> bool:
    """Whether end-to-end tuning keeps what all blocks compute until their gradients are taken."""
    return _kept_bytes(config, sequence_length) <= KEPT_BYTES


def tuning_seconds(config: ModelConfig, recipe: Recipe, product: float) -> float:
    """Return how long tuning takes, where a multiplication of large products takes so many seconds."""
    block = BLOCK_OVERHEAD * product * block_products(config, recipe) if "block" in recipe.tune else 0.0
    if "e2e" not in recipe.tune:
        return block
    limit = math.inf if recipe.tune_minutes is None else 60.0 * recipe.tune_minutes
    whole = END_TO_END_OVERHEAD * product * end_to_end_products(config, recipe)
    return block + (limit if recipe.tune_tokens is None else min(whole, limit))


def block_products(config: ModelConfig, recipe: Recipe) -> float:
    """Return the multiplications of weights and activations in block reconstruction, forwards and back."""
    n_tokens = max(BLOCK_STEPS * BLOCK_TOKENS, recipe.num_samples * recipe.sequence_length)
    return 3.0 * n_tokens * config.num_hidden_layers * _block_weights(config)


def end_to_end_products(config: ModelConfig, recipe: Recipe) -> float:
    """Return those of end-to-end tuning: with the exact model, forwards, and back by weights and by inputs."""
    n_tokens = TUNE_TOKENS if recipe.tune_tokens is None else recipe.tune_tokens
    passes = 4.0 if keeps_activations(config, recipe.sequence_length) else 5.0
    n_weights, head = config.num_hidden_layers * _block_weights(config), config.vocab_size * config.hidden_size
    return n_tokens * (passes * n_weights + 3.0 * head)


def _block_weights(config: ModelConfig) -> int:
    shapes = config.tensor_shapes()
    return sum(math.prod(shapes[name]) for name in config.linear_names(0))


def _block_bytes(config: ModelConfig, recipe: Recipe) -> float:
    of_weight = LEARNED_WEIGHT + LEVEL * _levels_per_weight(config, recipe)
    kept = max(BLOCK_TOKENS, recipe.sequence_length) * _activation_bytes(config, recipe.sequence_length)
    return of_weight * _block_weights(config) + kept


def _end_to_end_bytes(config: ModelConfig, recipe: Recipe) -> float:
    planes, levels = allocate.most_of_linears(config, recipe) / 8, _levels_per_weight(config, recipe)
    block, tokens = _block_weights(config), max(STEP_TOKENS, recipe.sequence_length)
    own = (planes + levels * LEVEL) * block * config.num_hidden_layers + FROZEN_WEIGHT * block
    kept = _kept_bytes(config, recipe.sequence_length)
    if kept > KEPT_BYTES:
        of_block = _activation_bytes(config, recipe.sequence_length)
        kept = tokens * (of_block + 4.0 * config.hidden_size * config.num_hidden_layers)
    heads = 2 * 4.0 * config.vocab_size * config.hidden_size
    logits = 5 * 4.0 * config.vocab_size * min(LOGIT_ROWS, tokens)
    exact = 4.0 * config.hidden_size * (EXACT_TOKENS + tokens)
    return own + kept + heads + logits + exact


def _levels_per_weight(config: ModelConfig, recipe: Recipe) -> float:
    """Return the half scales and centers of a weight, the most that ``allocate`` can choose within the budget."""
    if not recipe.allocates:
        return (recipe.bits + 1) / recipe.group_size
    # In groups of g, L = (bits + 1) / g of them and the bits take L (g + scale_bits) - 1.
    smallest = min(*allocate.GROUP_SIZES, recipe.group_size)
    return (allocate.most_of_linears(config, recipe) + 1.0) / (smallest + recipe.scale_bits)


def _kept_bytes(config: ModelConfig, sequence_length: int) -> float:
    """Return what all blocks hold between a pass forwards and back, their weights' values included."""
    activations = max(STEP_TOKENS, sequence_length) * _activation_bytes(config, sequence_length)
    of_block = 6.0 * _block_weights(config) + activations
    return config.num_hidden_layers * of_block


def _activation_bytes(config: ModelConfig, sequence_length: int) -> float:
    """Return what a block's forward pass keeps of each token for its gradient, by fused operations.

    Where scores are softened there is no fused attention, and they are kept.
    """
    heads = config.num_attention_heads * config.head_dim
    scores = 0 if config.attention_softcap is None else 4 * config.num_attention_heads * sequence_length
    return 4.0 * (5 * config.hidden_size + 8 * heads + 4 * config.intermediate_size + scores)
