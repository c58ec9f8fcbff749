"""Qwen2 and Qwen2.5: queries, keys and values have biases that no key announces."""

from elutq_formats.family import Family, InGGUF, Settings, layers_of_kind
from elutq_formats.fields import Fields
from elutq_formats.gguf_keys import Keys

DEFAULTS = {
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def read(fields: Fields) -> Settings:
    """Read the window."""
    return {"attention_bias": True, **read_window(fields)}


def read_window(fields: Fields) -> Settings:
    """Read the window, which the first ``max_window_layers`` layers do not have."""
    if fields["sliding_window"] is None or not fields.boolean("use_sliding_window", False):
        return {}
    first = fields.integer("max_window_layers", minimum=0)
    return layers_of_kind(fields, tuple(layer >= first for layer in range(fields.integer("num_hidden_layers"))))


def read_gguf(keys: Keys) -> Settings:
    """Read the window, which all layers share."""
    return {"attention_bias": True, "sliding_window": keys.integer("attention.sliding_window", 0, minimum=0) or None}


FAMILY = Family("qwen2", read, DEFAULTS, gguf=InGGUF(read_gguf, ("attention.sliding_window",)))
