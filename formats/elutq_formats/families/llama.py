"""Llama 1 to 3.3, and all that call themselves so: TinyLlama, SmolLM, Yi and many others."""

from elutq_formats.family import Family, Settings
from elutq_formats.fields import Fields


def read(fields: Fields) -> Settings:
    """Read the biases: one key for all projections of attention, one for those of the MLP."""
    biased = fields.boolean("attention_bias", False)
    return {
        "attention_bias": biased,
        "attention_output_bias": biased,
        "mlp_bias": fields.boolean("mlp_bias", False),
    }


FAMILY = Family("llama", read, {"max_position_embeddings": 2048})
