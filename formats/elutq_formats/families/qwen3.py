"""Qwen3, dense: each head's queries and keys pass an RMSNorm before they turn."""

from elutq_formats.families.qwen2 import DEFAULTS, read_window
from elutq_formats.family import Family, Settings
from elutq_formats.fields import Fields


def read(fields: Fields) -> Settings:
    """Read the window, and the biases that attention may have."""
    biased = fields.boolean("attention_bias", False)
    return {
        "qk_norm": True,
        "attention_bias": biased,
        "attention_output_bias": biased,
        **read_window(fields),
    }


FAMILY = Family("qwen3", read, {**DEFAULTS, "head_dim": 128})
