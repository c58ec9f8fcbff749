"""Mixtral 8x7B and 8x22B: a Mistral with experts in the place of each MLP."""

from elutq_formats.config import ModelConfig
from elutq_formats.errors import UnsupportedModelError
from elutq_formats.families.mistral import read as read_mistral
from elutq_formats.family import Family, Parts, Settings, read_experts, renamed
from elutq_formats.fields import Fields

NAMES = {
    "mlp.gate": "block_sparse_moe.gate",
    "mlp.experts.gate_proj": "block_sparse_moe.experts.w1",
    "mlp.experts.up_proj": "block_sparse_moe.experts.w3",
    "mlp.experts.down_proj": "block_sparse_moe.experts.w2",
}

DEFAULTS = {
    "max_position_embeddings": 131072,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def read(fields: Fields) -> Settings:
    """Read the window and the experts; what jitters its router does so in training alone."""
    if not fields.boolean("norm_topk_prob", True):
        raise UnsupportedModelError("norm_topk_prob false is not supported in mixtral: experts' weights come to one")
    return {**read_mistral(fields), **read_experts(fields, 8, 2, "intermediate_size", normalized=True)}


def parts(fields: Fields, config: ModelConfig) -> Parts:
    """Experts and router have names of their own."""
    return renamed(config, NAMES)


FAMILY = Family("llama", read, DEFAULTS, parts)
