"""Seed-OSS: a Llama whose queries, keys and values have biases, apart from the output projection's."""

from elutq_formats.family import Family, Settings
from elutq_formats.fields import Fields

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


FAMILY = Family("seed_oss", read, DEFAULTS)
