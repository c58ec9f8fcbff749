"""EXAONE 4: norms of what is added to the stream; where some layers have a window, the others know no positions."""

from elutq_formats.config import ModelConfig
from elutq_formats.errors import UnsupportedModelError
from elutq_formats.families.olmo2 import NAMES
from elutq_formats.family import Family, InGGUF, Parts, Settings, layers_of_kind, renamed
from elutq_formats.fields import Fields
from elutq_formats.gguf_keys import Keys

DEFAULTS = {
    "max_position_embeddings": 2048,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-5,
    "sliding_window": 4096,
    "sliding_window_pattern": 4,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


def read(fields: Fields) -> Settings:
    """Read which layers slide: all but every fourth, or as ``layer_types`` says."""
    found: Settings = {"norm_before": False, "norm_after": True, "qk_norm": True}
    if fields["sliding_window"] is None:
        return found
    pattern = fields["sliding_window_pattern"]
    if fields["layer_types"] is None and not isinstance(pattern, int):
        raise UnsupportedModelError(f"sliding_window_pattern {pattern!r:.60} is not supported: layer_types is read")
    found |= layers_of_kind(fields, 1 if fields["layer_types"] else fields.integer("sliding_window_pattern"))
    layers = fields.integer("num_hidden_layers")
    slides = found.get("sliding_layers", ("sliding_window" in found,) * layers)
    return found if all(slides) else {**found, "rope_layers": slides}


def parts(fields: Fields, config: ModelConfig) -> Parts:
    """Its norms have the names that a Llama has for others."""
    return renamed(config, NAMES)


GGUF_KEYS = "attention.sliding_window", "attention.sliding_window_pattern"


def read_gguf(keys: Keys) -> Settings:
    """Read which layers slide: where there is a window, all but every fourth unless the file says."""
    found: Settings = {"norm_before": False, "norm_after": True, "qk_norm": True}
    window, layers = keys.integer(GGUF_KEYS[0], 0, minimum=0), keys.integer("block_count", 1)
    if not window:
        return found
    slides = keys.flags(GGUF_KEYS[1], tuple((layer + 1) % 4 != 0 for layer in range(layers)))
    return {**found, "sliding_window": window, "sliding_layers": slides, "rope_layers": slides}


FAMILY = Family("exaone4", read, DEFAULTS, parts, InGGUF(read_gguf, GGUF_KEYS))
