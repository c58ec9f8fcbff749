"""How much tuning computes, and what it holds in memory: told before a run, without torch."""

import math

from elutq_cli.pipeline.recipe import Recipe, bits_per_weight
from elutq_formats.config import ModelConfig

BLOCK_STEPS, BLOCK_TOKENS = 64, 2048
END_TO_END_STEPS, END_TO_END_TOKENS = 120, 2048
"""Steps, and tokens of calibration text in each."""

TORCH_BYTES = 400_000_000
"""Torch itself."""

LEARNED_WEIGHT = 56.0
"""Bytes for a weight whose bits are learned: itself, how far it was pulled, gradient and two moments, 4 each; its value
and the gradient of that; what dequantizing holds at its worst moment. Measured: 53 on a processor, 48 on a GPU."""

FROZEN_WEIGHT = 30.0
"""Bytes for a weight of the block that runs, when its bits are frozen: value, gradient, and the worst moment."""

LEVEL = 28.0
"""Bytes for each half scale or center: start, shift, gradient, two moments, the best and a copy of it."""


def tuning_bytes(config: ModelConfig, recipe: Recipe) -> int:
    """Return the memory that tuning takes on its device, at its worst moment."""
    shapes = config.tensor_shapes()
    block = sum(math.prod(shapes[name]) for name in config.linear_names(0))
    n_weights = block * config.num_hidden_layers
    found = [0.0]
    if "block" in recipe.tune:
        found.append(LEARNED_WEIGHT * block + BLOCK_TOKENS * _activation_bytes(config, recipe.sequence_length))
    if "e2e" in recipe.tune:
        bits = bits_per_weight(recipe.bits, recipe.group_size) if recipe.target_bpw is None else recipe.target_bpw
        planes, levels = recipe.bits / 8, max(0.0, bits - recipe.bits) / 16
        stream = 4.0 * config.hidden_size * END_TO_END_TOKENS * (config.num_hidden_layers + 2)
        heads = 2 * 4.0 * config.vocab_size * config.hidden_size
        logits = 6 * 4.0 * config.vocab_size * recipe.sequence_length
        own = (planes + levels * LEVEL) * n_weights + FROZEN_WEIGHT * block
        found.append(
            own + stream + heads + logits + END_TO_END_TOKENS * _activation_bytes(config, recipe.sequence_length)
        )
    return TORCH_BYTES + int(max(found)) if recipe.tune else 0


def tuning_products(config: ModelConfig, recipe: Recipe) -> float:
    """Return the multiplications of weights and activations in all steps, forwards and back."""
    shapes = config.tensor_shapes()
    n_weights = config.num_hidden_layers * sum(math.prod(shapes[name]) for name in config.linear_names(0))
    head = config.vocab_size * config.hidden_size
    block = 3.0 * BLOCK_STEPS * BLOCK_TOKENS * n_weights if "block" in recipe.tune else 0.0
    whole = END_TO_END_STEPS * END_TO_END_TOKENS * (4.0 * n_weights + 5.0 * head) if "e2e" in recipe.tune else 0.0
    return block + whole


def _activation_bytes(config: ModelConfig, n_tokens: int) -> float:
    """Return what a block's forward pass keeps of each token for its gradient."""
    heads = config.num_attention_heads * config.head_dim
    scores = 2 * config.num_attention_heads * n_tokens
    return 4.0 * (7 * config.hidden_size + 4 * heads + 4 * config.intermediate_size + scores)
