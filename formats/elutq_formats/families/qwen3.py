"""Qwen3, dense: each head's queries and keys pass an RMSNorm before they turn."""

from elutq_formats.families.qwen2 import DEFAULTS, read_window
from elutq_formats.family import Family, InGGUF, Settings
from elutq_formats.fields import Fields
from elutq_formats.gguf_keys import Keys


def read(fields: Fields) -> Settings:
    """Read the window, and the biases that attention may have."""
    biased = fields.boolean("attention_bias", False)
    return {
        "qk_norm": True,
        "attention_bias": biased,
        "attention_output_bias": biased,
        **read_window(fields),
    }


def read_gguf(keys: Keys) -> Settings:
    """Read the window, which all layers share."""
    return {"qk_norm": True, "sliding_window": keys.integer("attention.sliding_window", 0, minimum=0) or None}


FAMILY = Family("qwen3", read, {**DEFAULTS, "head_dim": 128}, gguf=InGGUF(read_gguf, ("attention.sliding_window",)))
