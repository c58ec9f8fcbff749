"""Llama 1 to 3.3, and all that call themselves so: TinyLlama, SmolLM, Yi and many others."""

from elutq_formats.family import Family, InGGUF, Settings
from elutq_formats.fields import Fields
from elutq_formats.gguf_keys import Keys


def read(fields: Fields) -> Settings:
    """Read the biases: one key for all projections of attention, one for those of the MLP."""
    biased = fields.boolean("attention_bias", False)
    return {
        "attention_bias": biased,
        "attention_output_bias": biased,
        "mlp_bias": fields.boolean("mlp_bias", False),
    }


def read_gguf(keys: Keys) -> Settings:
    """Read what makes a Mixtral of it, or a Mistral: experts, or a window; without one nothing tells the two apart."""
    window = keys.integer("attention.sliding_window", 0, minimum=0)
    if keys.integer("expert_count", 0, minimum=0):
        return {"model_type": "mixtral", "sliding_window": window or None, "normalize_expert_weights": True}
    return {"model_type": "mistral", "sliding_window": window} if window else {}


FAMILY = Family(
    "llama",
    read,
    {"max_position_embeddings": 2048},
    gguf=InGGUF(read_gguf, ("attention.sliding_window",), permuted=True),
)
