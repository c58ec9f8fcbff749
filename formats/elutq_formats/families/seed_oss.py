"""Seed-OSS: a Llama whose queries, keys and values have biases, apart from the output projection's."""

from elutq_formats.config import ModelConfig
from elutq_formats.family import Family, InGGUF, Parts, Settings, renamed
from elutq_formats.fields import Fields
from elutq_formats.gguf_keys import Keys

DEFAULTS = {
    "max_position_embeddings": 524288,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


def read(fields: Fields) -> Settings:
    """Read the biases."""
    return {
        "attention_bias": fields.boolean("attention_bias", True),
        "attention_output_bias": fields.boolean("attention_out_bias", False),
        "mlp_bias": fields.boolean("mlp_bias", False),
    }


def gguf_parts(keys: Keys, config: ModelConfig) -> Parts:
    """What llama.cpp calls the norm after attention is the one before the MLP."""
    return renamed(config, {"post_attention_layernorm": "post_self_attn_layernorm"})


FAMILY = Family("seed_oss", read, DEFAULTS, gguf=InGGUF(lambda keys: {}, parts=gguf_parts))
