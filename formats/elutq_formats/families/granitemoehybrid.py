"""Granite 4, dense: a Granite 3 whose MLP is called shared, gate and up in one tensor, as its mixtures have theirs."""

from elutq_formats.config import ModelConfig
from elutq_formats.errors import UnsupportedModelError
from elutq_formats.families import granite
from elutq_formats.families.llama import read as read_llama
from elutq_formats.family import Family, Parts, Settings, fused, multiplied, renamed
from elutq_formats.fields import Fields

LINEARS = {"shared_mlp.input_linear": ("mlp.gate_proj", "mlp.up_proj")}
NAMES = {"mlp.down_proj": "shared_mlp.output_linear"}


def read(fields: Fields) -> Settings:
    """Read the width of the MLP; mixtures, and models with layers of another kind, are refused by name."""
    layers, kinds = fields.integer("num_hidden_layers"), fields["layer_types"]
    if kinds != ["attention"] * layers:
        raise UnsupportedModelError(
            "granitemoehybrid is supported where all layers are attention's: others have a state in the place of keys "
            "and values"
        )
    if fields["num_local_experts"]:
        raise UnsupportedModelError("granitemoehybrid is supported where it is dense: num_local_experts is above 0")
    for name, usual in (("position_embedding_type", "rope"), ("normalization_function", "rmsnorm")):
        if (value := fields[name]) != usual:
            raise UnsupportedModelError(f"{name} {value!r:.60} is not supported in granitemoehybrid: {usual} is")
    return {**read_llama(fields), "intermediate_size": fields.integer("shared_intermediate_size")}


def parts(fields: Fields, config: ModelConfig) -> Parts:
    """The fused tensor's rows, the other's name, and the multipliers of a Granite 3."""
    return multiplied(config, fused(config, LINEARS) | renamed(config, NAMES), **granite.multipliers(fields, config))


FAMILY = Family(
    "granite",
    read,
    {
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "shared_intermediate_size": 1024,
        "normalization_function": "rmsnorm",
    },
    parts,
)
