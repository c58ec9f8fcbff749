"""Gemma 3, the text model: norms before and after each branch, five layers of six with a window, a GELU gate."""

from elutq_formats.config import ModelConfig
from elutq_formats.errors import UnsupportedModelError
from elutq_formats.family import (
    Family,
    InGGUF,
    Parts,
    Settings,
    layers_of_kind,
    multiplied,
    one_more,
    read_ropes,
    renamed,
)
from elutq_formats.fields import Fields
from elutq_formats.gguf_keys import Keys

NAMES = {
    "post_self_attn_layernorm": "post_attention_layernorm",
    "post_attention_layernorm": "pre_feedforward_layernorm",
    "post_mlp_layernorm": "post_feedforward_layernorm",
}

DEFAULTS = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
    "bos_token_id": 2,
    "eos_token_id": 1,
}


def read(fields: Fields) -> Settings:
    """Read which layers slide, and the two ways in which heads turn."""
    if fields["hidden_activation"] not in (None, "gelu_pytorch_tanh"):
        raise UnsupportedModelError(f"hidden_activation {fields['hidden_activation']!r:.60} is not supported in gemma3")
    for name in ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention"):
        if fields[name]:
            raise UnsupportedModelError(f"{name} is not supported in gemma3")
    biased = fields.boolean("attention_bias", False)
    return {
        "hidden_act": "gelu_pytorch_tanh",
        "norm_after": True,
        "qk_norm": True,
        "attention_bias": biased,
        "attention_output_bias": biased,
        **layers_of_kind(fields, fields.integer("sliding_window_pattern", 6)),
        **read_ropes(fields, 1000000.0, fields.number("rope_local_base_freq", 10000.0)),
    }


def parts(fields: Fields, config: ModelConfig) -> Parts:
    """Norms are stored less one; the embedding is multiplied by the root of its width, and queries by a scale."""
    queries = (config.head_dim / fields.number("query_pre_attn_scalar")) ** 0.5
    stored = one_more(config, renamed(config, NAMES))
    return multiplied(config, stored, embedding=config.hidden_size**0.5, queries=queries)


GGUF_KEYS = (
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "attention.scale",
    "rope.freq_base_swa",
)


def read_gguf(keys: Keys) -> Settings:
    """Read which layers slide: all but every sixth, unless the file says."""
    layers = keys.integer("block_count", 1)
    slides = keys.flags("attention.sliding_window_pattern", tuple((layer + 1) % 6 != 0 for layer in range(layers)))
    return {
        "hidden_act": "gelu_pytorch_tanh",
        "norm_after": True,
        "qk_norm": True,
        "sliding_window": keys.integer("attention.sliding_window", 1024),
        "sliding_layers": slides,
        "local_rope_theta": keys.number("rope.freq_base_swa", 10000.0),
    }


def gguf_parts(keys: Keys, config: ModelConfig) -> Parts:
    """The norms are whole there; of the scales of scores llama.cpp knows that of the largest model by its layers."""
    return scaled(keys, config, config.num_hidden_layers == 62)


def scaled(keys: Keys, config: ModelConfig, is_largest: bool) -> Parts:
    """Return the embedding and queries, multiplied; in the largest model by a head's share of the stream."""
    usual = config.hidden_size / config.num_attention_heads if is_largest else config.head_dim
    queries = keys.number("attention.scale", usual**-0.5) * config.head_dim**0.5
    return multiplied(config, {}, embedding=config.hidden_size**0.5, queries=queries)


FAMILY = Family("gemma3", read, DEFAULTS, parts, InGGUF(read_gguf, GGUF_KEYS, gguf_parts))
