"""Gemma 2: norms before and after each branch, a window in every other layer, softcaps of scores and logits."""

from elutq_formats.config import ModelConfig
from elutq_formats.errors import UnsupportedModelError
from elutq_formats.families.gemma3_text import parts, scaled
from elutq_formats.family import Family, InGGUF, Parts, Settings, layers_of_kind
from elutq_formats.fields import Fields
from elutq_formats.gguf_keys import Keys

DEFAULTS = {
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "bos_token_id": 2,
    "eos_token_id": 1,
}


def read(fields: Fields) -> Settings:
    """Read which layers slide, and the softcaps."""
    if fields["hidden_activation"] not in (None, "gelu_pytorch_tanh"):
        raise UnsupportedModelError(f"hidden_activation {fields['hidden_activation']!r:.60} is not supported in gemma2")
    if fields["use_bidirectional_attention"]:
        raise UnsupportedModelError("use_bidirectional_attention is not supported in gemma2")
    biased = fields.boolean("attention_bias", False)
    caps = {"attention_softcap": "attn_logit_softcapping", "logit_softcap": "final_logit_softcapping"}
    return {
        "hidden_act": "gelu_pytorch_tanh",
        "norm_after": True,
        "attention_bias": biased,
        "attention_output_bias": biased,
        **layers_of_kind(fields, tuple(at % 2 == 0 for at in range(fields.integer("num_hidden_layers")))),
        **{ours: None if fields[theirs] is None else fields.number(theirs) for ours, theirs in caps.items()},
    }


GGUF_KEYS = (
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "attention.scale",
    "attn_logit_softcapping",
    "final_logit_softcapping",
)


def read_gguf(keys: Keys) -> Settings:
    """Read which layers slide, every other unless the file says, and the softcaps."""
    layers = range(keys.integer("block_count", 1))
    return {
        "hidden_act": "gelu_pytorch_tanh",
        "norm_after": True,
        "sliding_window": keys.integer("attention.sliding_window", 4096),
        "sliding_layers": keys.flags("attention.sliding_window_pattern", tuple(at % 2 == 0 for at in layers)),
        "attention_softcap": keys.number("attn_logit_softcapping", 50.0),
        "logit_softcap": keys.number("final_logit_softcapping", 30.0),
    }


def gguf_parts(keys: Keys, config: ModelConfig) -> Parts:
    """The norms are whole there; of the scales of scores llama.cpp knows that of the largest model by its layers."""
    return scaled(keys, config, config.num_hidden_layers == 46)


FAMILY = Family("gemma2", read, DEFAULTS, parts, InGGUF(read_gguf, GGUF_KEYS, gguf_parts))
