"""Configurations that must be refused by name: what is not implemented, and what cannot be."""

import math

import pytest
from published_configs import FAMILIES, LLAMA, LLAMA3, LLAMA3_ROPE

from elutq_formats import unsupported_families
from elutq_formats.config import ModelConfig
from elutq_formats.errors import CheckpointError, UnsupportedModelError
from elutq_formats.families import MODEL_TYPES

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
