"""Qwen1.5 and Qwen2, mixtures of experts: beside those that are chosen one expert that all tokens are sent to."""

from elutq_formats.config import ModelConfig
from elutq_formats.families.qwen2 import read_gguf as read_qwen2_gguf
from elutq_formats.family import Family, InGGUF, Parts, Settings, layers_of_kind, read_experts
from elutq_formats.fields import Fields
from elutq_formats.gguf_keys import Keys
from elutq_formats.part import Part

DEFAULTS = {
    "max_position_embeddings": 32768,
    "num_key_value_heads": 16,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
}


def read(fields: Fields) -> Settings:
    """Read the window, that of every other of the first ``max_window_layers`` layers, and the experts."""
    found = read_experts(fields, 60, 4, "moe_intermediate_size", fields.boolean("norm_topk_prob", False))
    if found["n_experts"]:
        found["shared_expert_intermediate_size"] = fields.integer("shared_expert_intermediate_size")
    found["attention_bias"] = fields.boolean("qkv_bias", True)
    if fields["sliding_window"] is None or not fields.boolean("use_sliding_window", False):
        return found
    first = fields.integer("max_window_layers", minimum=0)
    slides = tuple(layer % 2 == 0 and layer < first for layer in range(fields.integer("num_hidden_layers")))
    return {**found, **layers_of_kind(fields, slides)}


def parts(fields: Fields, config: ModelConfig) -> Parts:
    """The gate of the shared expert is stored as a matrix of one row."""
    return flat_gates(config)


def read_gguf(keys: Keys) -> Settings:
    """Read the window."""
    return {**read_qwen2_gguf(keys), "normalize_expert_weights": False}


def gguf_parts(keys: Keys, config: ModelConfig) -> Parts:
    """The gate of the shared expert may be a matrix there, too."""
    return flat_gates(config)


def flat_gates(config: ModelConfig) -> Parts:
    """Return the gates of shared experts as vectors."""
    names = [name for name in config.tensor_shapes() if name.endswith(".mlp.shared_expert_gate.weight")]
    return {name: Part(name, flat=True) for name in names}


FAMILY = Family("qwen2moe", read, DEFAULTS, parts, InGGUF(read_gguf, ("attention.sliding_window",), gguf_parts))
