"""Configurations of every supported family, as they are published."""

import pytest
from published_configs import FAMILIES, LLAMA, LLAMA3, QWEN3

from elutq_formats.config import ModelConfig


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_read(name):
    config, expected = FAMILIES[name]
    read = ModelConfig.from_huggingface(config)
    assert {field: getattr(read, field) for field in expected} == expected


def test_special_tokens_of_both_files_are_united():
    config = {**LLAMA3, "eos_token_id": [128009, 128001]}
    generation = {"bos_token_id": 128000, "eos_token_id": [128001, 128008]}
    assert ModelConfig.from_huggingface(config, generation).eos_token_ids == (128009, 128001, 128008)
    only_generation = ModelConfig.from_huggingface(LLAMA, {"bos_token_id": 1, "eos_token_id": 2})
    assert (only_generation.bos_token_id, only_generation.eos_token_ids) == (1, (2,))


def test_token_ids_outside_the_vocabulary_are_none():
    config = ModelConfig.from_huggingface({**LLAMA, "bos_token_id": -1, "eos_token_id": [32000, 2]})
    assert (config.bos_token_id, config.eos_token_ids) == (None, (2,))


def test_tensor_shapes_of_a_small_model():
    config = ModelConfig.from_huggingface(
        {**QWEN3, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 10, "head_dim": 8}
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": True}
    )
    shapes = config.tensor_shapes()
    assert len(shapes) == 3 + 2 * (7 + 2 + 2 + 4)
    assert shapes["model.layers.1.self_attn.q_proj.weight"] == (32, 64)
    assert shapes["model.layers.1.self_attn.v_proj.bias"] == (16,)
    assert shapes["model.layers.1.self_attn.o_proj.weight"] == (64, 32)
    assert shapes["model.layers.0.self_attn.k_norm.weight"] == (8,)
    assert shapes["model.layers.0.mlp.down_proj.weight"] == (64, 96)
    assert shapes["lm_head.weight"] == (10, 64)
    assert config.linear_names(1) == tuple(name for name in shapes if ".1." in name and "_proj.weight" in name)


def test_no_scaling_divides_nothing():
    assert ModelConfig.from_huggingface(LLAMA).rope_divisors() == {}
