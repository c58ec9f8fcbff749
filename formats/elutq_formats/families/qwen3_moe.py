"""Qwen3, mixtures of experts: a Qwen3 that sends each token to some of the experts of a layer."""

from elutq_formats.families.qwen3 import read as read_qwen3
from elutq_formats.families.qwen3 import read_gguf as read_qwen3_gguf
from elutq_formats.family import Family, InGGUF, Settings, read_experts
from elutq_formats.fields import Fields
from elutq_formats.gguf_keys import Keys

DEFAULTS = {
    "max_position_embeddings": 32768,
    "num_key_value_heads": 4,
    "sliding_window": 4096,
    "max_window_layers": 0,
    "moe_intermediate_size": 768,
}


def read(fields: Fields) -> Settings:
    """Read attention, whose window all layers share, and the experts."""
    attention = read_qwen3(fields.replaced({"max_window_layers": 0}))
    normalized = fields.boolean("norm_topk_prob", False)
    return {**attention, **read_experts(fields, 128, 8, "moe_intermediate_size", normalized)}


def read_gguf(keys: Keys) -> Settings:
    """Read the window; weights are normalized, whatever the checkpoint said."""
    return {**read_qwen3_gguf(keys), "normalize_expert_weights": True}


FAMILY = Family("qwen3moe", read, DEFAULTS, gguf=InGGUF(read_gguf, ("attention.sliding_window",)))
