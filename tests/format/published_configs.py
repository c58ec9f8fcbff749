"""What config.json says in checkpoints of every supported family, and what is read in it."""

import math

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
