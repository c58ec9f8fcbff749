"""Families that are known and not supported: what each needs that is missing, and the nearest that is supported."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from elutq_formats.errors import UnsupportedModelError
from elutq_formats.families import MODEL_TYPES, find_family

_EXPERTS = "a mixture of experts of its own"
_LAYER_NORM = "LayerNorm with biases"
_STATES = "layers with a state in the place of keys and values"
_PARALLEL = "attention and MLP side by side, after one LayerNorm"
_LATENT = "latent attention"
_IMAGES = "images, and positions in three dimensions"
_NO_DECODER = "anything but a decoder of text"

_MISSING: dict[str, tuple[str, str]] = {
    "gpt_oss": ("attention sinks, and experts with biases in MXFP4", "mixtral"),
    "phimoe": ("LayerNorm with biases, and a router of its own", "mixtral"),
    "dbrx": ("LayerNorm, and queries, keys and values that are clipped", "mixtral"),
    "ernie4_5_moe": ("a router whose choice is corrected", "qwen2_moe"),
    **dict.fromkeys(("llama4", "llama4_text"), ("a router that multiplies what experts read", "mixtral")),
    **dict.fromkeys(("granitemoe", "granitemoeshared"), ("the fused tensors of its experts", "granite")),
    **dict.fromkeys(("glm4_moe", "glm4v_moe"), ("a router of sigmoids, whose choice is corrected", "qwen2_moe")),
    "flex_olmo": ("experts between norms of what they add", "olmoe"),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "kimi_k2", "longcat_flash"), (_LATENT, "llama")),
    **dict.fromkeys(("qwen3_next", "qwen3_5", "qwen3_5_moe", "qwen3_5_text"), (_STATES, "qwen3")),
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba", "jamba", "zamba2", "bamba", "rwkv"), (_STATES, "llama")),
    **dict.fromkeys(("nemotron_h", "falcon_h1", "lfm2", "lfm2_moe", "recurrent_gemma"), (_STATES, "llama")),
    **dict.fromkeys(("gemma3n", "gemma3n_text"), ("embeddings for each layer", "gemma3_text")),
    **dict.fromkeys(("gemma4", "gemma4_text"), ("keys that layers share", "gemma3_text")),
    **dict.fromkeys(("cohere", "cohere2", "falcon", "gpt_neox", "gptj", "phi", "stablelm"), (_PARALLEL, "llama")),
    **dict.fromkeys(("gpt2", "gpt_bigcode", "opt", "bloom", "mpt", "starcoder2"), (_LAYER_NORM, "llama")),
    "olmo": ("LayerNorm without weights", "olmo2"),
    **dict.fromkeys(("nemotron", "arcee", "apertus"), ("an MLP without a gate", "llama")),
    "glm": ("its order of norms", "glm4"),
    **dict.fromkeys(("internlm2", "baichuan", "qwen"), ("code of its own", "llama")),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), (_IMAGES, "qwen2")),
    **dict.fromkeys(("qwen3_vl", "qwen3_vl_moe"), (_IMAGES, "qwen3")),
    **dict.fromkeys(("bert", "roberta", "t5", "whisper", "vit", "clip", "modernbert"), (_NO_DECODER, "llama")),
}
"""By ``model_type``: what is missing, and the nearest family."""


def refuse_family(config: Mapping[str, Any]) -> UnsupportedModelError:
    """Return the error for a ``config.json`` of a family that is not supported, in one line."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        supported = f"supported are {', '.join(MODEL_TYPES[:-1])} and {MODEL_TYPES[-1]}"
        return UnsupportedModelError(f"model type {model_type!r:.60} is not supported: {supported}")
    missing, nearest = _MISSING.get(model_type) or _guess(model_type, config)
    return UnsupportedModelError(
        f"model type {model_type!r:.60} is not supported: it needs {missing}; "
        f"the nearest that is supported is {nearest}"
    )


def _guess(model_type: str, config: Mapping[str, Any]) -> tuple[str, str]:
    """Return what a family needs that nobody has looked at, as far as its configuration shows."""
    inner = config.get("text_config")
    if isinstance(inner, dict):
        text = inner.get("model_type")
        known = isinstance(text, str) and find_family(text) is not None
        return "more than text (text_config)", str(text) if known else _nearest(str(text))
    for key in ("num_experts", "num_local_experts", "n_routed_experts"):
        if config.get(key):
            return f"{_EXPERTS} ({key})", _nearest(model_type)
    return "a description of its own, which nobody has written", _nearest(model_type)


def _nearest(model_type: str) -> str:
    return next(iter(get_close_matches(model_type, MODEL_TYPES, 1, 0.5)), "llama")
