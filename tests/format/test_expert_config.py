"""Configurations of mixtures of experts, and what their routers may not do."""

import pytest
from published_configs import LLAMA

from elutq_formats.config import ModelConfig
from elutq_formats.errors import CheckpointError, UnsupportedModelError
from elutq_formats.family import OTHER_ROUTERS

MOE = {**LLAMA, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 96}

FAMILIES = {
    "qwen3 with experts": (
        {**MOE, "model_type": "qwen3_moe", "norm_topk_prob": True, "mlp_only_layers": [1], "decoder_sparse_step": 2},
        {"n_experts": 8, "n_experts_used": 2, "expert_intermediate_size": 96, "normalize_expert_weights": True}
        | {"expert_layers": tuple(layer % 2 == 1 and layer != 1 for layer in range(32)), "qk_norm": True},
    ),
    "qwen3 with experts, transformers 5": (
        {**MOE, "model_type": "qwen3_moe", "num_experts": None, "num_local_experts": 16},
        {"n_experts": 16, "expert_layers": None, "normalize_expert_weights": False},
    ),
    "qwen3 whose layers are all dense": (
        {**MOE, "model_type": "qwen3_moe", "mlp_only_layers": list(range(32))},
        {"n_experts": 0, "expert_layers": None},
    ),
    "mixtral": (
        {**LLAMA, "model_type": "mixtral", "num_local_experts": 8, "router_jitter_noise": 0.1, "sliding_window": 64},
        {"n_experts": 8, "n_experts_used": 2, "expert_intermediate_size": 11008, "normalize_expert_weights": True}
        | {"shared_expert_intermediate_size": 0, "sliding_window": 64},
    ),
    "olmoe": (
        {**LLAMA, "model_type": "olmoe", "num_experts": 16, "clip_qkv": None},
        {"n_experts": 16, "n_experts_used": 8, "qk_norm_spans_heads": True, "normalize_expert_weights": False},
    ),
    "qwen2 with experts": (
        {**MOE, "model_type": "qwen2_moe", "shared_expert_intermediate_size": 160, "use_sliding_window": True}
        | {"max_window_layers": 3, "sliding_window": 64},
        {"shared_expert_intermediate_size": 160, "attention_bias": True, "attention_output_bias": False}
        | {"sliding_layers": tuple(layer in (0, 2) for layer in range(32))},
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_mixture_is_read(name):
    config, expected = FAMILIES[name]
    read = ModelConfig.from_huggingface(config)
    assert {field: getattr(read, field) for field in expected} == expected


REFUSED = {
    "experts": ({"num_local_experts": 8}, "mixtures of experts .* are not supported in llama"),
    "gpt_oss": (
        {"model_type": "gpt_oss", "num_local_experts": 32},
        "'gpt_oss' is not supported: it needs attention sinks, and experts with biases in MXFP4; .* is mixtral$",
    ),
    "clipped queries": ({"model_type": "olmoe", "clip_qkv": 8.0}, "clip_qkv is not supported in olmoe"),
    "weights of experts that do not come to one": (
        {"model_type": "mixtral", "norm_topk_prob": False},
        "norm_topk_prob false is not supported in mixtral",
    ),
    "unknown experts": (
        {"model_type": "qwen9_moe", "num_experts": 8},
        r"needs a mixture of experts of its own \(num_experts\); the nearest that is supported is qwen",
    ),
    "too many experts": ({"model_type": "mixtral", "num_local_experts": 1025}, "n_experts 1025 is more than 1024"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_experts_that_are_not_implemented_are_refused_by_name(name):
    changes, message = REFUSED[name]
    with pytest.raises(UnsupportedModelError, match=message) as refusal:
        ModelConfig.from_huggingface({**LLAMA, **changes})
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("routed_scaling_factor", 2.5),
        ("scoring_func", "sigmoid"),
        ("topk_method", "noaux_tc"),
        ("n_group", 8),
        ("topk_group", 4),
        ("n_shared_experts", 1),
        ("first_k_dense_replace", 3),
        ("moe_layer_freq", [0, 1]),
    ],
)
@pytest.mark.parametrize("model_type", ["qwen3_moe", "qwen2_moe", "mixtral", "olmoe"])
def test_what_routers_of_other_families_do_is_refused_where_it_changes_anything(model_type, name, value):
    config = {**MOE, "model_type": model_type}
    read = ModelConfig.from_huggingface(config)
    assert ModelConfig.from_huggingface(config | dict(OTHER_ROUTERS)) == read
    with pytest.raises(UnsupportedModelError, match=f"{name} .* is not supported in {model_type}"):
        ModelConfig.from_huggingface(config | {name: value})


def test_what_routers_do_in_training_alone_is_passed_over():
    config = {**MOE, "model_type": "qwen3_moe"}
    training = {"router_aux_loss_coef": 0.5, "output_router_logits": True}
    assert ModelConfig.from_huggingface(config | training) == ModelConfig.from_huggingface(config)


IMPOSSIBLE = {
    "two numbers of experts": (
        {"model_type": "qwen3_moe", "num_experts": 8, "num_local_experts": 16},
        "num_experts and num_local_experts differ",
    ),
    "more experts used than there are": ({"model_type": "mixtral", "num_experts_per_tok": 9}, "of 8 experts 9 are"),
    "dense layers of another kind": (
        {"model_type": "qwen3_moe", "mlp_only_layers": [True]},
        "mlp_only_layers must be a list of layers",
    ),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_numbers_of_experts_are_refused(name):
    changes, message = IMPOSSIBLE[name]
    with pytest.raises(CheckpointError, match=message):
        ModelConfig.from_huggingface({**LLAMA, **changes})
