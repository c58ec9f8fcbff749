"""Granite 3, dense: a Llama that multiplies embedding, scores, what a branch adds, and logits."""

from elutq_formats.config import ModelConfig
from elutq_formats.errors import UnsupportedModelError
from elutq_formats.families.llama import read
from elutq_formats.family import Family, InGGUF, Parts, Settings, multiplied
from elutq_formats.fields import Fields
from elutq_formats.gguf_keys import Keys


def multipliers(fields: Fields, config: ModelConfig) -> dict[str, float]:
    """Return all four as ``multiplied`` takes them."""
    return {
        "embedding": fields.number("embedding_multiplier", 1.0),
        "queries": fields.number("attention_multiplier", 1.0) * config.head_dim**0.5,
        "added": fields.number("residual_multiplier", 1.0),
        "logits": 1.0 / fields.number("logits_scaling", 1.0),
    }


def parts(fields: Fields, config: ModelConfig) -> Parts:
    """All four multipliers go into the weights."""
    return multiplied(config, {}, **multipliers(fields, config))


GGUF_KEYS = (
    *("embedding_scale", "attention.scale", "residual_scale", "logit_scale"),
    # Of layers with a state, which the converter writes for those of Granite 4 that have none, too.
    *("ssm.conv_kernel", "ssm.state_size", "ssm.group_count", "ssm.inner_size", "ssm.time_step_rank"),
)


def read_gguf(keys: Keys) -> Settings:
    """Refuse a file without positions: llama.cpp takes this key for their switch, in this architecture alone."""
    if not keys.metadata.boolean(keys.full("rope.scaling.finetuned"), True):
        raise UnsupportedModelError(
            f"{keys.full('rope.scaling.finetuned')} is false: no RoPE is not supported in granite"
        )
    return {}


def gguf_parts(keys: Keys, config: ModelConfig) -> Parts:
    """The same, under llama.cpp's names."""
    return multiplied(
        config,
        {},
        embedding=keys.number("embedding_scale", 1.0),
        queries=keys.number("attention.scale", config.head_dim**-0.5) * config.head_dim**0.5,
        added=keys.number("residual_scale", 1.0),
        logits=1.0 / keys.number("logit_scale", 1.0),
    )


FAMILY = Family(
    "granite",
    read,
    {"max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2},
    parts,
    InGGUF(read_gguf, GGUF_KEYS, gguf_parts, permuted=True),
)
