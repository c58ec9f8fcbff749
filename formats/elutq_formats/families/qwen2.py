"""Qwen2 and Qwen2.5: queries, keys and values have biases that no key announces."""

from elutq_formats.errors import UnsupportedModelError
from elutq_formats.family import Family, Settings
from elutq_formats.fields import Fields

DEFAULTS = {
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def read(fields: Fields) -> Settings:
    """Read the window."""
    return {"attention_bias": True, "sliding_window": read_window(fields)}


def read_window(fields: Fields) -> int | None:
    """Return the window that every layer shares.

    Raises:
        UnsupportedModelError: some layers have a window and others have none.
    """
    if fields["sliding_window"] is None or not fields.boolean("use_sliding_window", False):
        return None
    window, layers = fields.integer("sliding_window"), fields.integer("num_hidden_layers")
    first = fields.integer("max_window_layers", minimum=0)
    kinds = fields["layer_types"] or ["full_attention"] * min(first, layers) + ["sliding_attention"] * (layers - first)
    if kinds == ["full_attention"] * layers:
        return None
    if kinds == ["sliding_attention"] * layers:
        return window
    raise UnsupportedModelError("a sliding window in some layers only is not supported")


FAMILY = Family("qwen2", read, DEFAULTS)
