"""SmolLM3: a Llama whose every fourth layer knows no positions."""

from elutq_formats.families.llama import read as read_biases
from elutq_formats.family import Family, InGGUF, Settings, flags, layers_of_kind
from elutq_formats.fields import Fields
from elutq_formats.gguf_keys import Keys

DEFAULTS = {
    "max_position_embeddings": 32768,
    "num_key_value_heads": 4,
    "rope_theta": 2000000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}


def read(fields: Fields) -> Settings:
    """Read which layers turn, and which have a window where there is one."""
    layers, every = fields.integer("num_hidden_layers"), fields.integer("no_rope_layer_interval", 4)
    turns = flags(fields, "no_rope_layers", tuple((layer + 1) % every != 0 for layer in range(layers)))
    slides = fields.boolean("use_sliding_window", False) and fields["sliding_window"] is not None
    window = layers_of_kind(fields, tuple(not turn for turn in turns)) if slides else {}
    return {"rope_layers": turns, **read_biases(fields), **window}


def read_gguf(keys: Keys) -> Settings:
    """Every fourth layer does not turn: no key says so."""
    return {"rope_layers": tuple((layer + 1) % 4 != 0 for layer in range(keys.integer("block_count", 1)))}


FAMILY = Family("smollm3", read, DEFAULTS, gguf=InGGUF(read_gguf, permuted=True))
