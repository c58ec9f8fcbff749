"""The checkpoints that make_golden.py makes: every supported family with every feature of it switched on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from golden_mixtures import MIXTURES

VOCAB_SIZE = 128


@dataclass(frozen=True)
class Variant:
    """One checkpoint: what its config.json says beyond `BASE` (None removes a key) and how its tensors are stored."""

    name: str
    config: dict[str, Any]
    dtype: torch.dtype = torch.bfloat16
    n_shards: int = 1
    generation_config: dict[str, Any] | None = None
    extra_tensors: dict[str, tuple[int, ...]] = field(default_factory=dict)


BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}

LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,  # wavelengths of head_dim 16 fall below, inside and above the blended band
}

LONGROPE = {"type": "longrope", "short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [1.5, 4.0, 6.0, 9.0]}

VARIANTS = (
    # Llama 1 as first published: no key for KV heads, RoPE or tying, fp16, and inv_freq buffers that must be ignored.
    Variant(
        "llama1-mha",
        {"num_key_value_heads": None, "rope_theta": None, "tie_word_embeddings": None, "rms_norm_eps": 1e-6},
        dtype=torch.float16,
        extra_tensors={f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": (4,) for layer in range(2)},
    ),
    # Llama 2 70B, TinyLlama: grouped-query attention; two shards with an index.
    Variant("llama2-gqa-sharded", {"hidden_size": 64, "max_position_embeddings": 256}, n_shards=2),
    # Llama 3.1: rope_scaling, several ends of sequence.
    Variant(
        "llama31-rope-scaling",
        {
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_theta": 500000.0,
            "rope_scaling": LLAMA3_SCALING,
            "max_position_embeddings": 512,
            "eos_token_id": [1, 2],
        },
        generation_config={"bos_token_id": 0, "eos_token_id": [1, 3], "do_sample": True},
    ),
    # Llama 3.2: the same in the key of transformers 5, tied head, explicit head_dim that is not hidden / heads.
    Variant(
        "llama32-tied-head-dim",
        {
            "head_dim": 16,
            "tie_word_embeddings": True,
            "max_position_embeddings": 512,
            "rope_theta": None,
            "rope_parameters": {"rope_theta": 500000.0, **LLAMA3_SCALING},
        },
    ),
    # Linear RoPE scaling under the old key `type`; fp32 tensors.
    Variant(
        "llama-linear-rope",
        {"rope_scaling": {"type": "linear", "factor": 4.0}, "num_hidden_layers": 1},
        dtype=torch.float32,
    ),
    # Biases everywhere Llama can have them.
    Variant("llama-biases", {"attention_bias": True, "mlp_bias": True, "num_hidden_layers": 1}),
    # SmolLM's shape: tied, three heads to one KV head, sizes that no large group divides.
    Variant(
        "smollm-tied",
        {
            "hidden_size": 96,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
        },
    ),
    # Mistral 7B v0.1: a sliding window shorter than the text.
    Variant("mistral-sliding-window", {"model_type": "mistral", "sliding_window": 7}),
    # Mistral Nemo: no window, query rows narrower than the hidden size.
    Variant(
        "mistral-nemo",
        {
            "model_type": "mistral",
            "sliding_window": None,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
        },
    ),
    # Qwen2.5: q, k and v biases that no key announces, no BOS, a window that is switched off.
    Variant(
        "qwen2",
        {
            "model_type": "qwen2",
            "rope_theta": 1000000.0,
            "rms_norm_eps": 1e-6,
            "use_sliding_window": False,
            "sliding_window": 8,
            "max_window_layers": 1,
            "bos_token_id": None,
        },
    ),
    # Qwen3: norms of each query and key head, explicit head_dim, tied.
    Variant(
        "qwen3",
        {
            "model_type": "qwen3",
            "rope_theta": 1000000.0,
            "rms_norm_eps": 1e-6,
            "head_dim": 16,
            "attention_bias": False,
            "use_sliding_window": False,
            "sliding_window": None,
            "max_window_layers": 2,
            "tie_word_embeddings": True,
        },
    ),
    # Qwen3 with attention_bias: q, k, v and o biases.
    Variant(
        "qwen3-biases",
        {"model_type": "qwen3", "num_hidden_layers": 1, "head_dim": 8, "attention_bias": True},
    ),
    # Qwen2.5 with a window in its last layer alone.
    Variant(
        "qwen2-some-windows",
        {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    # Qwen3 with yarn, as its page says for long contexts: frequencies kept, blended and divided; an attention factor.
    Variant(
        "qwen3-yarn",
        {
            "model_type": "qwen3",
            "num_hidden_layers": 1,
            "head_dim": 16,
            "max_position_embeddings": 256,
            "rope_theta": None,
            "rope_parameters": {
                "rope_theta": 10000.0,
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "beta_fast": 4.0,
            },
        },
    ),
    # Gemma 3: everything that it has, each number far from what would do nothing.
    Variant(
        "gemma3",
        {
            "model_type": "gemma3_text",
            "hidden_act": None,
            "hidden_activation": "gelu_pytorch_tanh",
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            "rope_theta": None,
            "rope_parameters": {
                "full_attention": {"rope_theta": 1000000.0, "rope_type": "linear", "factor": 8.0},
                "sliding_attention": {"rope_theta": 100.0, "rope_type": "default"},
            },
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "query_pre_attn_scalar": 40,
        },
    ),
    # Gemma 1: the same gate, embedding and norms, and one key.
    Variant(
        "gemma",
        {
            "model_type": "gemma",
            "hidden_act": "gelu_pytorch_tanh",
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "tie_word_embeddings": True,
            "pad_token_id": 0,
        },
    ),
    # Gemma 2: softcaps that both bite.
    Variant(
        "gemma2",
        {
            "model_type": "gemma2",
            "hidden_act": None,
            "hidden_activation": "gelu_pytorch_tanh",
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "tie_word_embeddings": True,
            "pad_token_id": 0,
            "sliding_window": 6,
            "query_pre_attn_scalar": 40,
            "attn_logit_softcapping": 1.5,
            "final_logit_softcapping": 3.0,
        },
    ),
    # OLMo 2: grouped queries, so that the two norms of heads are of two widths.
    Variant("olmo2", {"model_type": "olmo2", "num_hidden_layers": 2}),
    # OLMo 3: yarn in the layers without a window alone.
    Variant(
        "olmo3",
        {
            "model_type": "olmo3",
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 256,
            "rope_theta": None,
            "rope_parameters": {
                "full_attention": {
                    "rope_theta": 500000.0,
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 64,
                    "beta_fast": 4.0,
                },
                "sliding_attention": {"rope_theta": 500000.0, "rope_type": "default"},
            },
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    # SmolLM3: the last layer without RoPE, and with a window.
    Variant(
        "smollm3",
        {
            "model_type": "smollm3",
            "pad_token_id": 0,
            "rope_theta": 2000000.0,
            "no_rope_layer_interval": 2,
            "use_sliding_window": True,
            "sliding_window": 6,
            "tie_word_embeddings": True,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    # Granite 3: four multipliers, on a tied head.
    Variant(
        "granite",
        {
            "model_type": "granite",
            "tie_word_embeddings": True,
            "embedding_multiplier": 12.0,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.22,
            "logits_scaling": 3.0,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    # Granite 4, dense: the same of another name, gate and up in one tensor.
    Variant(
        "granite4",
        {
            "model_type": "granitemoehybrid",
            "tie_word_embeddings": True,
            "embedding_multiplier": 12.0,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.22,
            "logits_scaling": 3.0,
            "layer_types": ["attention", "attention"],
            "position_embedding_type": "rope",
            "intermediate_size": 96,
            "shared_intermediate_size": 96,
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "mamba_n_heads": 8,
            "mamba_expand": 2,
        },
    ),
    # Phi-3.5 and Phi-4-mini: fused tensors, half of each head turns, longrope beyond its original context.
    Variant(
        "phi3-long",
        {
            "model_type": "phi3",
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "pad_token_id": 0,
            "partial_rotary_factor": 0.5,
            "max_position_embeddings": 64,
            "original_max_position_embeddings": 16,
            "sliding_window": 7,
            "rope_scaling": LONGROPE,
        },
    ),
    # The same within it; Phi-3-mini's head, whole.
    Variant(
        "phi3-short",
        {
            "model_type": "phi3",
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "pad_token_id": 0,
            "max_position_embeddings": 256,
            "original_max_position_embeddings": 64,
            "sliding_window": None,
            "rope_scaling": LONGROPE,
        },
    ),
    # GLM-4-0414: four norms, neighbours turn in half of each head.
    Variant(
        "glm4",
        {
            "model_type": "glm4",
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "pad_token_id": 0,
            "attention_bias": True,
            "partial_rotary_factor": 0.5,
        },
    ),
    # EXAONE 4 32B: a window and RoPE in one layer, neither in the other.
    Variant(
        "exaone4",
        {
            "model_type": "exaone4",
            "pad_token_id": 0,
            "sliding_window": 6,
            "sliding_window_pattern": 2,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    # Ministral 8B: a window in its first layer alone.
    Variant(
        "ministral",
        {
            "model_type": "ministral",
            "head_dim": 8,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    # Ministral 3: yarn whose attention factor DeepSeek's numbers say, within the context where scores do not grow.
    Variant(
        "ministral3",
        {
            "model_type": "ministral3",
            "num_hidden_layers": 1,
            "head_dim": 16,
            "pad_token_id": 0,
            "max_position_embeddings": 256,
            "rope_theta": None,
            "rope_parameters": {
                "rope_theta": 10000.0,
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "beta_fast": 4.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 0.5,
                "llama_4_scaling_beta": 0.1,
            },
        },
    ),
    # Seed-OSS: biases of two kinds.
    Variant(
        "seed-oss",
        {
            "model_type": "seed_oss",
            "pad_token_id": 0,
            "num_hidden_layers": 1,
            "head_dim": 8,
            "attention_bias": True,
            "attention_out_bias": False,
            "mlp_bias": True,
        },
    ),
    *(Variant(name, config) for name, config in MIXTURES.items()),
)
