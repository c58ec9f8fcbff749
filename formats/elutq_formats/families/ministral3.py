"""Ministral 3: a Llama with yarn, whose scores grow beyond the original context: contexts end there."""

from elutq_formats.family import Family, InGGUF, Settings, read_rope
from elutq_formats.fields import Fields
from elutq_formats.gguf_keys import Keys

YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}

DEFAULTS = {
    "max_position_embeddings": 262144,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-5,
    "rope_parameters": YARN,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def read(fields: Fields) -> Settings:
    """Read the window, which all layers share, and the context within which scores do not grow."""
    found = read_rope(fields)
    if fields["sliding_window"] is not None:
        found["sliding_window"] = fields.integer("sliding_window")
    rope = Fields(fields.mapping("rope_parameters"), "config.json: rope_parameters")
    if rope["llama_4_scaling_beta"]:
        context = fields.integer("max_position_embeddings")
        found["max_position_embeddings"] = min(context, rope.integer("original_max_position_embeddings"))
    return found


TEMPERATURE, WINDOW, CONTEXT = "attention.temperature_scale", "attention.sliding_window", "context_length"
GGUF_KEYS = TEMPERATURE, WINDOW, "rope.scaling.yarn_log_multiplier"


def read_gguf(keys: Keys) -> Settings:
    """Read the same; llama.cpp's converter calls Mistral Small 3.1 and later mistral3 too, whose scores do not grow."""
    context = keys.integer(CONTEXT, 1)
    if keys.number_or_zero(TEMPERATURE):
        context = min(context, keys.integer("rope.scaling.original_context_length", context))
    return {"max_position_embeddings": context, "sliding_window": keys.integer(WINDOW, 0, minimum=0) or None}


FAMILY = Family("mistral3", read, DEFAULTS, gguf=InGGUF(read_gguf, GGUF_KEYS, permuted=True))
