"""Phi-3, Phi-3.5, Phi-4 and Phi-4-mini: queries, keys and values in one tensor, gate and up in another, longrope."""

from elutq_formats.config import ModelConfig
from elutq_formats.errors import UnsupportedModelError
from elutq_formats.family import Family, InGGUF, Parts, Settings, fused, fused_queries, read_rope
from elutq_formats.fields import Fields
from elutq_formats.gguf_keys import Keys

LINEARS = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}

CONTEXT = "original_max_position_embeddings"

DEFAULTS = {
    "max_position_embeddings": 4096,
    CONTEXT: 4096,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 32000,
}


def read(fields: Fields) -> Settings:
    """Read the window, which all layers share, and RoPE, whose original context is said outside of its settings."""
    settings = fields.mapping("rope_scaling") or fields.mapping("rope_parameters")
    kind = settings.get("rope_type") or settings.get("type") or "default"
    if kind not in ("default", "longrope", "su", "yarn"):
        raise UnsupportedModelError(f"RoPE scaling {kind!r:.60} is not supported in phi3: longrope is")
    if kind != "default":  # in early files of the family longrope is called su, or yarn
        settings = {CONTEXT: fields.integer(CONTEXT), **settings, "rope_type": "longrope"}
    return {
        "sliding_window": None if fields["sliding_window"] is None else fields.integer("sliding_window"),
        **read_rope(fields.replaced({"rope_scaling": None, "rope_parameters": settings}), partial=1.0),
    }


def parts(fields: Fields, config: ModelConfig) -> Parts:
    """The fused tensors' rows."""
    return fused(config, LINEARS)


GGUF_KEYS = "attention.sliding_window", "rope.dimension_count"


def read_gguf(keys: Keys) -> Settings:
    """Read the window, which all layers share."""
    return {"sliding_window": keys.integer("attention.sliding_window", 0, minimum=0) or None}


def gguf_parts(keys: Keys, config: ModelConfig) -> Parts:
    """The fused tensors' rows; what llama.cpp calls up is gate and up."""
    return fused(config, {"mlp.up_proj": LINEARS["mlp.gate_up_proj"]}) | fused_queries(config)


FAMILY = Family("phi3", read, DEFAULTS, parts, InGGUF(read_gguf, GGUF_KEYS, gguf_parts))
