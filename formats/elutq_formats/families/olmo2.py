"""OLMo 2: norms of what is added to the residual stream, none of what is read; queries and keys normed whole."""

from elutq_formats.config import ModelConfig
from elutq_formats.family import Family, Parts, Settings, renamed
from elutq_formats.fields import Fields

NAMES = {
    "post_self_attn_layernorm": "post_attention_layernorm",
    "post_mlp_layernorm": "post_feedforward_layernorm",
}

DEFAULTS = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "eos_token_id": 50279}


def read(fields: Fields) -> Settings:
    """Read the biases that attention may have."""
    biased = fields.boolean("attention_bias", False)
    return {
        "norm_before": False,
        "norm_after": True,
        "qk_norm": True,
        "qk_norm_spans_heads": True,
        "attention_bias": biased,
        "attention_output_bias": biased,
    }


def parts(fields: Fields, config: ModelConfig) -> Parts:
    """Its norms have the names that a Llama has for others."""
    return renamed(config, NAMES)


FAMILY = Family("olmo2", read, DEFAULTS, parts)
