"""The mixtures of experts among the checkpoints that make_golden.py makes: what config.json says beyond `BASE`."""

from __future__ import annotations

from typing import Any

MIXTURES: dict[str, dict[str, Any]] = {
    # Qwen3 with experts: a dense layer before one with experts, of which two have all to say.
    "qwen3-moe": {
        "model_type": "qwen3_moe",
        "head_dim": 8,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [0],
    },
    # Mixtral: experts under names of their own, and a window.
    "mixtral": {
        "model_type": "mixtral",
        "num_hidden_layers": 1,
        "intermediate_size": 32,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 7,
        "router_jitter_noise": 0.1,
    },
    # OLMoE: experts whose weights do not come to one, norms of all heads together, biases.
    "olmoe": {
        "model_type": "olmoe",
        "num_hidden_layers": 1,
        "intermediate_size": 32,
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "norm_topk_prob": False,
        "attention_bias": True,
        "clip_qkv": None,
    },
    # Qwen2 with experts: one of them for all tokens, behind a gate; a window in the first layer alone.
    "qwen2-moe": {
        "model_type": "qwen2_moe",
        "num_experts": 5,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 64,
        "norm_topk_prob": False,
        "use_sliding_window": True,
        "sliding_window": 6,
        "max_window_layers": 1,
    },
}
