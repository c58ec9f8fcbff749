"""The stored tensors that are the model: found under their names, or refused by what they are.

A wrapper around a model puts its own name before those of all tensors: ``language_model.`` a multimodal model,
``base_model.model.`` PEFT, ``_orig_mod.`` a compiler; and a base model, saved alone, leaves ``model.`` out. Where
nothing but the prefix differs, the tensors are the model's.
"""

import re
from collections.abc import Collection, Mapping

from elutq_formats.config import ModelConfig
from elutq_formats.errors import CheckpointError, UnsupportedModelError
from elutq_formats.safetensors_file import DTYPES
from elutq_formats.stored_weights import Tensor

EMBEDDING, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
_MODEL = "model."

# Old Llama checkpoints store the RoPE frequencies, which follow from the configuration.
_IGNORED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")

_QUANTIZED = re.compile(r".*\.(qweight|qzeros|g_idx|scales|biases|weight_(packed|scale|scale_2|scale_inv)|input_scale)")
"""Parts of a matrix as other tools quantize it."""

_ADAPTER = re.compile(r"\.(lora_|base_layer\.|modules_to_save\.)")


def name_prefix(names: Collection[str]) -> str:
    """Return what stands before ``embed_tokens.weight``: ``model.`` in a checkpoint of its own."""
    found = [name for name in names if f".{name}".endswith(".embed_tokens.weight")]
    return found[0].removesuffix("embed_tokens.weight") if len(found) == 1 else _MODEL


def model_names(names: Collection[str], prefix: str) -> dict[str, str]:
    """Return the model's name of each stored one; those that are not under the prefix keep theirs.

    Should two get the same, all keep theirs.
    """
    heads = {HEAD, prefix + HEAD, prefix.removesuffix(_MODEL) + HEAD} & set(names)
    found = {name: _MODEL + name.removeprefix(prefix) if name.startswith(prefix) else name for name in names}
    found |= dict.fromkeys(heads, HEAD) if len(heads) == 1 else {}
    return found if len(set(found.values())) == len(found) else {name: name for name in names}


def check_tensors(tensors: Mapping[str, Tensor], config: ModelConfig, place: object) -> None:
    """Check that these are the tensors of this model.

    Args:
        tensors: by the model's names.
        config: of the model.
        place: where they are.

    Raises:
        UnsupportedModelError: one is of another type, or of another model.
        CheckpointError: one is missing, or has another shape.
    """
    expected = config.tensor_shapes()
    for name in sorted(tensors.keys() - expected.keys()):
        if _ADAPTER.search(name):
            raise UnsupportedModelError(
                f"{place} holds an adapter beside the model, such as {name!r:.80}: merge it into the model first, with "
                "merge_and_unload of PEFT"
            )
        if _QUANTIZED.fullmatch(name):
            raise UnsupportedModelError(
                f"{place}: tensor {name!r:.80} is part of a quantized matrix, and the configuration does not say how "
                "it is quantized: use the original (unquantized) checkpoint"
            )
        if name != HEAD and not _IGNORED.fullmatch(name):
            raise UnsupportedModelError(
                f"{place}: tensor {name!r:.80} is not part of a {config.model_type} model as its configuration "
                "describes it: leaving it out would change what the model says"
            )
    for name, shape in expected.items():
        if name not in tensors:
            raise CheckpointError(f"{place} has no tensor {name}")
        if tensors[name].shape != shape:
            raise CheckpointError(
                f"{place}: tensor {name} has shape {list(tensors[name].shape)}, the configuration says {list(shape)}"
            )
        dtype, known = tensors[name].dtype, tensors[name].dtypes
        if dtype not in known:
            raise UnsupportedModelError(
                f"{place}: tensor {name} is {dtype!r:.20}: only {', '.join(known)} are supported"
            )


def are_plain(tensors: Mapping[str, Tensor], config: ModelConfig) -> bool:
    """Whether these are all tensors of the model and no others, as numbers: nothing of them is quantized."""
    names = {name for name in tensors if not _IGNORED.fullmatch(name)}
    same = names | {HEAD} == config.tensor_shapes().keys() | {HEAD}
    return same and all(tensors[name].dtype in DTYPES for name in names)
