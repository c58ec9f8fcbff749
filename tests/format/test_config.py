"""Configurations of every supported family, and everything that must be refused by name."""

import math

import pytest

from elutq_formats import unsupported_families
from elutq_formats.config import ModelConfig
from elutq_formats.errors import CheckpointError, UnsupportedModelError
from elutq_formats.families import MODEL_TYPES
from elutq_formats.rope import RopeScaling

LLAMA = {
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LLAMA3 = {
    **LLAMA,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}
SMOLLM = {
    **LLAMA,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
MISTRAL = {**LLAMA3, "model_type": "mistral", "vocab_size": 32000, "bos_token_id": 1, "eos_token_id": 2}
QWEN2 = {
    **LLAMA,
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "use_sliding_window": False,
    "max_window_layers": 21,
    "eos_token_id": 151645,
}
QWEN3 = {**QWEN2, "model_type": "qwen3", "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}

GEMMA = {
    "model_type": "gemma3_text",
    "hidden_activation": "gelu_pytorch_tanh",
    "num_hidden_layers": 34,
    "sliding_window": 512,
    "query_pre_attn_scalar": 256,
}
PHI = {
    **LLAMA,
    "model_type": "phi3",
    "hidden_size": 3072,
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
}
LONG = {
    "attention_factor": math.sqrt(1 + math.log(32) / math.log(4096)),
    "short_factor": (1.0,) * 48,
    "long_factor": (2.0,) * 48,
}
YARN_OF_4 = 0.1 * math.log(4) + 1

FAMILIES = {
    "llama 1": (
        LLAMA,
        {"num_key_value_heads": 32, "rope_theta": 10000.0, "tie_word_embeddings": False, "head_dim": 128},
    ),
    "llama 2 70B": (
        {**LLAMA, "hidden_size": 8192, "num_attention_heads": 64, "num_key_value_heads": 8},
        {"num_key_value_heads": 8, "head_dim": 128},
    ),
    "tinyllama": (
        {**LLAMA, "hidden_size": 2048, "num_key_value_heads": 4, "torch_dtype": "float32"},
        {"head_dim": 64, "num_key_value_heads": 4},
    ),
    "yi": (
        {**LLAMA, "vocab_size": 64000, "rope_theta": 5e6, "num_key_value_heads": 4, "max_position_embeddings": 4096},
        {"vocab_size": 64000, "rope_theta": 5e6, "max_position_embeddings": 4096},
    ),
    "llama 3": (LLAMA3, {"vocab_size": 128256, "rope_theta": 5e5, "rope_scaling": None, "eos_token_ids": (128001,)}),
    "llama 3.1": (
        {**LLAMA3, "rope_scaling": LLAMA3_ROPE, "eos_token_id": [128001, 128008, 128009], "mlp_bias": False},
        {"rope_scaling": RopeScaling("llama3", 8, 1, 4, 8192), "eos_token_ids": (128001, 128008, 128009)},
    ),
    "llama 3.2 1B": (
        {**LLAMA3, "hidden_size": 2048, "head_dim": 64, "tie_word_embeddings": True}
        | {"rope_scaling": {**LLAMA3_ROPE, "factor": 32.0}},
        {"head_dim": 64, "tie_word_embeddings": True, "rope_scaling": RopeScaling("llama3", 32, 1, 4, 8192)},
    ),
    "llama, biased": (
        {**LLAMA, "attention_bias": True, "mlp_bias": True},
        {"attention_bias": True, "attention_output_bias": True, "mlp_bias": True},
    ),
    "llama, linear rope": (
        {**LLAMA, "rope_scaling": {"type": "linear", "factor": 4}},
        {"rope_scaling": RopeScaling("linear", 4.0)},
    ),
    "llama, default rope": ({**LLAMA, "rope_scaling": {"rope_type": "default"}}, {"rope_scaling": None}),
    "smollm 135M": (SMOLLM, {"hidden_size": 576, "head_dim": 64, "tie_word_embeddings": True}),
    "smollm2 360M": (
        {**SMOLLM, "hidden_size": 960, "num_attention_heads": 15, "num_key_value_heads": 5},
        {"hidden_size": 960, "head_dim": 64},
    ),
    "mistral 0.1": (
        {**MISTRAL, "sliding_window": 4096},
        {"sliding_window": 4096, "attention_bias": False, "model_type": "mistral"},
    ),
    "mistral 0.3": ({**MISTRAL, "sliding_window": None}, {"sliding_window": None}),
    "mistral, as transformers defaults": (MISTRAL, {"sliding_window": 4096}),
    "nemo": (
        {**MISTRAL, "hidden_size": 5120, "head_dim": 128, "sliding_window": None, "vocab_size": 131072},
        {"hidden_size": 5120, "head_dim": 128},
    ),
    "qwen2.5 0.5B": (
        {**QWEN2, "tie_word_embeddings": True},
        {"attention_bias": True, "attention_output_bias": False, "sliding_window": None, "qk_norm": False}
        | {"bos_token_id": None, "tie_word_embeddings": True, "head_dim": 64},
    ),
    "qwen2.5, window in every layer": (
        {**QWEN2, "use_sliding_window": True, "max_window_layers": 0},
        {"sliding_window": 32768},
    ),
    "qwen2.5, window in no layer": (
        {**QWEN2, "use_sliding_window": True, "max_window_layers": 24},
        {"sliding_window": None},
    ),
    "qwen2.5, layer types": (
        {**QWEN2, "use_sliding_window": True, "layer_types": ["sliding_attention"] * 24},
        {"sliding_window": 32768},
    ),
    "qwen3": (
        {**QWEN3, "hidden_size": 1024, "attention_bias": False},
        {"head_dim": 128, "qk_norm": True, "attention_bias": False},
    ),
    "qwen3, biased": (
        {**QWEN3, "attention_bias": True},
        {"attention_bias": True, "attention_output_bias": True, "mlp_bias": False},
    ),
    "qwen2.5, window in the last layers": (
        {**QWEN2, "use_sliding_window": True},
        {"sliding_window": 32768, "sliding_layers": (False,) * 21 + (True,) * 3},
    ),
    "qwen2.5, yarn": (
        {**QWEN2, "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
        {"rope_scaling": RopeScaling("yarn", 4, original_max_position_embeddings=32768, attention_factor=YARN_OF_4)},
    ),
    "llama, dynamic rope": ({**LLAMA, "rope_scaling": {"type": "dynamic", "factor": 4.0}}, {"rope_scaling": None}),
    "gemma 3 270M": (
        {**GEMMA, "hidden_size": 640, "num_hidden_layers": 18, "rope_theta": 1e6, "rope_local_base_freq": 1e4},
        {"head_dim": 256, "tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh", "sliding_window": 512}
        | {"sliding_layers": ((True,) * 5 + (False,)) * 3, "rope_theta": 1e6, "local_rope_theta": 1e4}
        | {"norm_before": True, "norm_after": True, "qk_norm": True, "qk_norm_spans_heads": False},
    ),
    "gemma 3 4B, its text": (
        {**GEMMA, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
        {"rope_scaling": RopeScaling("linear", 8.0), "rope_theta": 1e6, "local_rope_theta": 1e4},
    ),
    "phi 3 mini": (
        {**PHI, "max_position_embeddings": 4096, "sliding_window": 2047, "rope_scaling": None},
        {"rope_scaling": None, "sliding_window": 2047, "rotary_dim": None, "rope_theta": 10000.0},
    ),
    "phi 3.5 mini": (
        {**PHI, "rope_scaling": {"type": "su", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}},
        {"rope_scaling": RopeScaling("longrope", 32.0, original_max_position_embeddings=4096, **LONG)},
    ),
    "phi 4 mini": (
        {**PHI, "num_attention_heads": 24, "num_key_value_heads": 8, "partial_rotary_factor": 0.75}
        | {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}},
        {"rotary_dim": 96, "head_dim": 128},
    ),
    "olmo 2": (
        {**LLAMA, "model_type": "olmo2", "rope_theta": 500000},
        {"norm_before": False, "norm_after": True, "qk_norm": True, "qk_norm_spans_heads": True, "rope_theta": 5e5},
    ),
    "olmo 3": (
        {**LLAMA, "model_type": "olmo3", "rope_theta": 500000, "sliding_window": 4096},
        {"sliding_layers": (True, True, True, False) * 8, "local_rope_theta": 5e5, "rope_scaling": None},
    ),
    "smollm3": (
        {**LLAMA, "model_type": "smollm3", "num_hidden_layers": 36, "no_rope_layers": [1, 1, 1, 0] * 9},
        {"rope_layers": (True, True, True, False) * 9, "rope_theta": 2e6, "tie_word_embeddings": True},
    ),
    "exaone 4 1.2B": (
        {**LLAMA, "model_type": "exaone4", "sliding_window": None},
        {"sliding_window": None, "rope_layers": None},
    ),
    "exaone 4 32B": (
        {**LLAMA, "model_type": "exaone4", "sliding_window": 4096},
        {"sliding_layers": (True, True, True, False) * 8, "rope_layers": (True, True, True, False) * 8},
    ),
    "glm 4": ({**LLAMA, "model_type": "glm4"}, {"rotary_dim": 64, "attention_bias": True, "norm_after": True}),
    "seed oss": (
        {**LLAMA, "model_type": "seed_oss", "num_attention_heads": 80, "hidden_size": 5120},
        {"head_dim": 128, "attention_bias": True, "attention_output_bias": False},
    ),
    "ministral 3": (
        {**LLAMA, "model_type": "ministral3", "max_position_embeddings": 262144},
        {"max_position_embeddings": 16384, "head_dim": 128, "rope_theta": 1e6}
        | {"rope_scaling": RopeScaling("yarn", 16, original_max_position_embeddings=16384)},
    ),
    "granite": ({**LLAMA, "model_type": "granite", "attention_multiplier": 0.015625}, {"rope_theta": 1e4}),
    "transformers 5": (
        {**LLAMA3, "rope_theta": None, "rope_parameters": {**LLAMA3_ROPE, "rope_theta": 250000.0}},
        {"rope_theta": 250000.0, "rope_scaling": RopeScaling("llama3", 8, 1, 4, 8192)},
    ),
    "transformers 5, with an older base beside it": (
        {**LLAMA3, "rope_theta": 1.0, "rope_parameters": {**LLAMA3_ROPE, "rope_theta": 250000.0}},
        {"rope_theta": 250000.0, "rope_scaling": RopeScaling("llama3", 8, 1, 4, 8192)},
    ),
}


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


REFUSED = {
    "no model type": ({"model_type": None}, "model type None is not supported: supported are "),
    "model type of another kind": ({"model_type": ["llama"]}, "is not supported"),
    "gpt2": ({"model_type": "gpt2"}, "it needs LayerNorm with biases; .* is llama$"),
    "multimodal": (
        {"model_type": "llava", "text_config": {"model_type": "qwen2"}},
        r"'llava' is not supported: it needs more than text \(text_config\); the nearest that is supported is qwen2$",
    ),
    "unknown": ({"model_type": "exaone5"}, "which nobody has written; the nearest that is supported is exaone4$"),
    "unknown and near nothing": ({"model_type": "xyz"}, "the nearest that is supported is llama$"),
    "activation": ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
    "RoPE scaling": ({"rope_scaling": {"rope_type": "proportional", "factor": 4.0}}, "scaling 'proportional' is not"),
    "longrope of another kind": (
        {"model_type": "phi3", "rope_scaling": {"type": "linear"}},
        "'linear' is not supported",
    ),
    "softcap": ({"model_type": "gemma3_text", "final_logit_softcapping": 30.0}, "final_logit_softcapping is not"),
    "bidirectional": ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "bidirectional_attention is"),
    "another GELU": ({"model_type": "gemma3_text", "hidden_activation": "gelu"}, "hidden_activation 'gelu' is not"),
    "layers of a third kind": (
        {"model_type": "olmo3", "layer_types": ["chunked_attention"] * 32},
        "layers of type 'chunked_attention' are not supported",
    ),
    "layers with a state": (
        {"model_type": "granitemoehybrid", "layer_types": [*["mamba"] * 31, "attention"]},
        "granitemoehybrid is supported where all layers are attention's",
    ),
    "experts among them": (
        {"model_type": "granitemoehybrid", "layer_types": ["attention"] * 32, "num_local_experts": 8},
        "granitemoehybrid is supported where it is dense",
    ),
    "no positions": (
        {"model_type": "granitemoehybrid", "layer_types": ["attention"] * 32, "position_embedding_type": "nope"},
        "position_embedding_type 'nope' is not supported in granitemoehybrid: rope is",
    ),
    "scaled layers that are not told": (
        {
            "model_type": "olmo3",
            "rope_parameters": {"rope_type": "yarn", "factor": 8, "original_max_position_embeddings": 8192},
        },
        "rope_parameters do not say which layers of olmo3 are scaled",
    ),
    "scaled layers with a window": (
        {"model_type": "gemma3_text", "rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2}}},
        "RoPE scaling in layers with a window",
    ),
    "pattern of letters": (
        {"model_type": "exaone4", "sliding_window_pattern": "LLLG"},
        "sliding_window_pattern 'LLLG'",
    ),
    "RoPE per layer": ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "differ between layers"),
    "partial RoPE": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    "partial RoPE, transformers 5": ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    "too many layers": ({"num_hidden_layers": 2**31 - 1}, "num_hidden_layers 2147483647 is more than"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_implemented_is_refused_by_name(name):
    changes, message = REFUSED[name]
    with pytest.raises(UnsupportedModelError, match=message) as refusal:
        ModelConfig.from_huggingface({**LLAMA, **changes})
    assert str(refusal.value).isprintable()


def test_families_that_are_known_to_be_unsupported_are_and_the_nearest_is_supported():
    for model_type, (_, nearest) in unsupported_families._MISSING.items():
        assert model_type not in MODEL_TYPES
        assert nearest in MODEL_TYPES


IMPOSSIBLE = {
    "absent": ({"hidden_size": None}, r"config\.json has no hidden_size"),
    "text": ({"hidden_size": "4096"}, "hidden_size must be an integer from 1, found '4096'"),
    "boolean": ({"vocab_size": True}, "vocab_size must be an integer"),
    "zero": ({"num_hidden_layers": 0}, "num_hidden_layers must be an integer from 1, found 0"),
    "huge": ({"vocab_size": 2**31}, "vocab_size must be"),
    "negative epsilon": ({"rms_norm_eps": -1e-6}, "rms_norm_eps must be a positive number"),
    "NaN": ({"rms_norm_eps": math.nan}, "rms_norm_eps must be a positive number, found nan"),
    "past float32": ({"rope_theta": 10**400}, "rope_theta must be a positive number"),
    "flag": ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
    "eos": ({"eos_token_id": "</s>"}, "eos_token_id must be a token id"),
    "rope_scaling": ({"rope_scaling": "linear"}, "rope_scaling must be an object"),
    "heads": ({"num_attention_heads": 30}, "hidden_size 4096 is not a multiple of 30 heads"),
    "key value heads": (
        {"num_key_value_heads": 5},
        "num_attention_heads 32 is not a multiple of num_key_value_heads 5",
    ),
    "odd head": ({"head_dim": 63}, "head_dim 63 is odd"),
    "linear without factor": ({"rope_scaling": {"type": "linear"}}, "RoPE scaling has no factor"),
    "llama3 without context": (
        {"rope_scaling": {**LLAMA3_ROPE, "original_max_position_embeddings": None}},
        "RoPE scaling has no original_max_position_embeddings",
    ),
    "llama3 upside down": (
        {"rope_scaling": {**LLAMA3_ROPE, "low_freq_factor": 4.0}},
        "high_freq_factor 4.0 is not above",
    ),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_fields_are_refused(name):
    changes, message = IMPOSSIBLE[name]
    with pytest.raises(CheckpointError, match=message):
        ModelConfig.from_huggingface({**LLAMA, **changes})


@pytest.mark.parametrize("family", ["llama 3.1", "mistral 0.1", "qwen2.5 0.5B", "qwen3", "transformers 5"])
def test_any_value_in_any_field_is_read_or_refused(family):
    config, _ = FAMILIES[family]
    values = [
        None,
        "x\n",
        -1,
        0,
        1,
        1.5,
        10**400,
        math.nan,
        math.inf,
        True,
        [],
        [1],
        ["a"],
        {},
        {"a": {}},
        {"factor": 2},
    ]
    for field in {*config, "rope_scaling", "rope_parameters", "layer_types", "partial_rotary_factor", "num_experts"}:
        for value in values:
            try:
                ModelConfig.from_huggingface({**config, field: value}, {"eos_token_id": value})
            except CheckpointError as error:
                assert str(error).isprintable()


@pytest.mark.parametrize("added", [{"type": "linear", "factor": 2.0}, {"rope_type": "yarn", "factor": 4.0}])
def test_rope_scaling_beside_other_rope_parameters_is_not_passed_over(added):
    """Where a user adds what a model's page says of long contexts to a file of transformers 5."""
    parameters = {"rope_theta": 10000.0, "rope_type": "default"}
    config = {**LLAMA3, "rope_scaling": added, "rope_parameters": parameters}
    with pytest.raises(CheckpointError, match=r"and they differ|has no original_max_position_embeddings"):
        ModelConfig.from_huggingface(config)
    assert ModelConfig.from_huggingface({**config, "rope_scaling": {"rope_type": "default"}}).rope_scaling is None


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
