"""OLMo 2: norms of what is added to the residual stream, none of what is read; queries and keys normed whole."""

from elutq_formats.config import ModelConfig
from elutq_formats.family import Family, InGGUF, Parts, Settings, renamed
from elutq_formats.fields import Fields
from elutq_formats.gguf_keys import Keys

NAMES = {
    "post_self_attn_layernorm": "post_attention_layernorm",
    "post_mlp_layernorm": "post_feedforward_layernorm",
}

NORMS: Settings = {"norm_before": False, "norm_after": True, "qk_norm": True, "qk_norm_spans_heads": True}

DEFAULTS = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "eos_token_id": 50279}


def read(fields: Fields) -> Settings:
    """Read the biases that attention may have."""
    biased = fields.boolean("attention_bias", False)
    return {**NORMS, "attention_bias": biased, "attention_output_bias": biased}


def parts(fields: Fields, config: ModelConfig) -> Parts:
    """Its norms have the names that a Llama has for others."""
    return renamed(config, NAMES)


GGUF_KEYS = "attention.sliding_window", "attention.sliding_window_pattern", "rope.freq_base_swa"


def read_gguf(keys: Keys) -> Settings:
    """Read the window that makes an OLMo 3 of it, in all but every fourth layer unless the file says."""
    window, layers = keys.integer("attention.sliding_window", 0, minimum=0), keys.integer("block_count", 1)
    if not window:
        return NORMS
    return {
        **NORMS,
        "model_type": "olmo3",
        "sliding_window": window,
        "sliding_layers": keys.flags(GGUF_KEYS[1], tuple((layer + 1) % 4 != 0 for layer in range(layers))),
        "local_rope_theta": keys.number(GGUF_KEYS[2], keys.number("rope.freq_base", 10000.0)),
    }


FAMILY = Family("olmo2", read, DEFAULTS, parts, InGGUF(read_gguf, GGUF_KEYS))
