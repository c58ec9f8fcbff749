"""Ministral 8B: a Mistral in which only some layers have the window."""

from elutq_formats.family import Family, Settings, layers_of_kind
from elutq_formats.fields import Fields

DEFAULTS = {
    "max_position_embeddings": 131072,
    "num_key_value_heads": 8,
    "sliding_window": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def read(fields: Fields) -> Settings:
    """Read which layers have the window: those that ``layer_types`` names, or all."""
    every_layer = (True,) * fields.integer("num_hidden_layers")
    return {} if fields["sliding_window"] is None else layers_of_kind(fields, every_layer)


FAMILY = Family("llama", read, DEFAULTS)
