"""Gemma 3, the text model: norms before and after each branch, five layers of six with a window, a GELU gate."""

from elutq_formats.config import ModelConfig
from elutq_formats.errors import UnsupportedModelError
from elutq_formats.family import Family, Parts, Settings, layers_of_kind, multiplied, one_more, read_ropes, renamed
from elutq_formats.fields import Fields

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


FAMILY = Family("gemma3", read, DEFAULTS, parts)
