"""GLM-4 (0414): norms before and after each branch, gate and up in one tensor; half a head turns, in neighbours."""

from elutq_formats.config import ModelConfig
from elutq_formats.family import Family, InGGUF, Parts, Settings, fused, read_rope
from elutq_formats.fields import Fields
from elutq_formats.gguf_keys import Keys
from elutq_formats.part import Part

DEFAULTS = {
    "max_position_embeddings": 131072,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "rms_norm_eps": 0.00000015625,
    "attention_bias": True,
    "eos_token_id": [151329, 151336, 151338],
}


def read(fields: Fields) -> Settings:
    """Read the biases that queries, keys and values have, and how much of a head turns."""
    biased = fields.boolean("attention_bias", True)
    return {"norm_after": True, "attention_bias": biased, **read_rope(fields, partial=0.5)}


def parts(fields: Fields, config: ModelConfig) -> Parts:
    """The fused tensor's rows, and the rows of queries and keys in the order in which heads turn here."""
    return in_neighbours(config) | fused(config, {"mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj")})


def in_neighbours(config: ModelConfig) -> Parts:
    """Return the rows of queries and keys."""
    names = [name for name in config.tensor_shapes() if ".q_proj." in name or ".k_proj." in name]
    return {name: Part(name, neighbours=(config.head_dim, config.rope_dimensions)) for name in names}


def read_gguf(keys: Keys) -> Settings:
    """What follows from the family alone."""
    return {"norm_after": True}


def gguf_parts(keys: Keys, config: ModelConfig) -> Parts:
    """The same; what llama.cpp calls up is gate and up."""
    return in_neighbours(config) | fused(config, {"mlp.up_proj": ("mlp.gate_proj", "mlp.up_proj")})


FAMILY = Family("glm4", read, DEFAULTS, parts, InGGUF(read_gguf, ("rope.dimension_count",), gguf_parts))
