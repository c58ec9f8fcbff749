"""OLMoE: experts in the place of each MLP, and norms of all heads of queries or keys together."""

from elutq_formats.errors import UnsupportedModelError
from elutq_formats.families.llama import read as read_llama
from elutq_formats.family import Family, InGGUF, Settings, read_experts
from elutq_formats.fields import Fields
from elutq_formats.gguf_keys import Keys

NORMS = {"qk_norm": True, "qk_norm_spans_heads": True}


def read(fields: Fields) -> Settings:
    """Read the biases and the experts."""
    if fields["clip_qkv"] is not None:
        raise UnsupportedModelError("clip_qkv is not supported in olmoe: queries, keys and values are not clipped")
    experts = read_experts(fields, 64, 8, "intermediate_size", fields.boolean("norm_topk_prob", False))
    return {**read_llama(fields), **NORMS, **experts}


def read_gguf(keys: Keys) -> Settings:
    """Read nothing: no key says anything of its own."""
    return {**NORMS, "normalize_expert_weights": False}


FAMILY = Family(
    "olmoe",
    read,
    {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "eos_token_id": 50279},
    gguf=InGGUF(read_gguf),
)
