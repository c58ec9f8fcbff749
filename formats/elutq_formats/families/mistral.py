"""Mistral 7B, Nemo and Small: a Llama without biases, whatever its file says, that may have a sliding window."""

from elutq_formats.family import Family, Settings
from elutq_formats.fields import Fields


def read(fields: Fields) -> Settings:
    """Read the window, which all layers share."""
    return {"sliding_window": None if fields["sliding_window"] is None else fields.integer("sliding_window")}


FAMILY = Family("llama", read, {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096})
