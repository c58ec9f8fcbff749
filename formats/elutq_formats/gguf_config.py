"""The configuration of a model in a GGUF file that other tools made: llama.cpp's keys, and what its tensors show.

Source: the keys that llama.cpp's convert_hf_to_gguf.py writes for these architectures, and their defaults in its
loader (src/llama-model.cpp).
"""

import math
import re
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from elutq_formats.config import ModelConfig, check_limits
from elutq_formats.errors import CheckpointError, UnsupportedModelError
from elutq_formats.families import MODEL_TYPES, find_family
from elutq_formats.family import InGGUF, Settings
from elutq_formats.gguf import TensorInfo
from elutq_formats.gguf_keys import Keys
from elutq_formats.metadata import Metadata
from elutq_formats.model_metadata import (
    ARCHITECTURE,
    ATTENTION_FACTOR,
    EXPERT_NORM,
    EXPERT_WIDTH,
    EXPERTS,
    EXPERTS_USED,
    OF_EXPERTS,
    SHARED_WIDTH,
    SLIDING_LAYERS,
    expert_layers,
)
from elutq_formats.names import ROPE_FREQUENCIES, ROPE_LONG, ROPE_SHORT, TOKEN_EMBEDDING
from elutq_formats.rope import BETA_FAST, BETA_SLOW, KINDS, RopeScaling

Divisors: TypeAlias = npt.NDArray[np.float32]

PARTIAL = "rope.dimension_count"
"""What a family lists among its own keys if part of a head may turn."""

HEADS, KV_HEADS, MLP_WIDTH = "attention.head_count", "attention.head_count_kv", "feed_forward_length"
"""What a file may have for each layer, and must have alike."""

YARN_LOG_MULTIPLIER = "rope.scaling.yarn_log_multiplier"
"""What a family lists among its own keys whose attention factor is divided by another."""

YARN_ATTENTION_FACTOR, YARN_EXTRAPOLATION = "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_ext_factor"
"""What llama.cpp's converter copies from a config, and llama.cpp computes itself, whatever the first says."""

EXPERT_WEIGHTS = "normalize_expert_weights"
"""What a family settles that may have experts: llama.cpp has it in its code."""

OLD_EXPERT = re.compile(r"blk\.\d+\.ffn_(?:gate|up|down)\.\d+\.weight")
"""What llama.cpp's converter called an expert's own tensor until March 2024."""

SOFTMAX = 1
"""llama.cpp's number of the function that turns a router's outputs into weights."""

READERS: Mapping[str, str] = {
    family.architecture: model_type
    for model_type in MODEL_TYPES
    if (family := find_family(model_type)) is not None and family.gguf is not None
}
"""The family that reads each architecture."""

_KNOWN = (
    *("block_count", "context_length", "embedding_length", MLP_WIDTH, "vocab_size"),
    *(*OF_EXPERTS, "expert_gating_func", "tensor_data_layout"),
    *(HEADS, KV_HEADS, "attention.key_length", "attention.value_length"),
    *("attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.dimension_count"),
    *("rope.scaling.type", "rope.scaling.factor", "rope.scale_linear"),
    *("rope.scaling.original_context_length", "rope.scaling.finetuned"),
    *(ATTENTION_FACTOR, "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"),
    *(YARN_ATTENTION_FACTOR, YARN_EXTRAPOLATION),
)
"""Keys that are read or may be passed over in every architecture; another may change what the model computes."""

LLAMA3_CONTEXTS = (8192, *(1 << power for power in range(6, 21)))
LLAMA3_LOW, LLAMA3_HIGH = 1.0, 4.0
"""What RoPE may be stretched by: every Llama from 3.1 on by the first of the contexts. A GGUF file holds only the
divisors that follow."""


def read_architecture(metadata: Metadata) -> str:
    """Return the architecture, which is the prefix of its keys.

    Raises:
        UnsupportedModelError: it is none that can be run.
        FormatError: the file does not say.
    """
    name = metadata.string(ARCHITECTURE)
    if name not in READERS:
        known = ", ".join(READERS)
        raise UnsupportedModelError(f"architecture {name!r:.60} is not supported: {known} are (Mistral is llama too)")
    return name


def reader_of(architecture: str) -> InGGUF:
    """Return how files of an architecture are written."""
    family = find_family(READERS[architecture])
    assert family is not None
    assert family.gguf is not None
    return family.gguf


def read_gguf_config(
    metadata: Metadata,
    tensors: Mapping[str, TensorInfo],
    divisors: Mapping[str, Divisors],
    bos_token_id: int | None,
    eos_token_ids: tuple[int, ...],
) -> ModelConfig:
    """Read a configuration.

    Args:
        metadata: of the file.
        tensors: by their names in the file.
        divisors: (dimensions / 2,) what each RoPE frequency is divided by, by the names of such tensors.
        bos_token_id: first token of a text, if the model has one.
        eos_token_ids: every token that ends a text.

    Raises:
        UnsupportedModelError: the model needs something that is not implemented; the message names it.
        FormatError: a key is missing or impossible.
    """
    keys = Keys(metadata, read_architecture(metadata))
    family = reader_of(keys.architecture)
    _refuse_unknown(keys, family)
    hidden, heads = metadata.integer(keys.full("embedding_length")), keys.of_all_layers(HEADS)
    if "attention.key_length" not in keys and hidden % heads:
        metadata.refuse(f"{keys.full('embedding_length')} {hidden} is not a multiple of {heads} heads")
    head_dim = keys.integer("attention.key_length", max(1, hidden // heads))
    dimensions = keys.integer("rope.dimension_count", head_dim)
    for name in ("attention.value_length", *(() if PARTIAL in family.keys else (PARTIAL,))):
        if keys.integer(name, head_dim) != head_dim:
            width = keys.integer(name, head_dim)
            raise UnsupportedModelError(f"{keys.full(name)} {width} is not {head_dim}, the width of a head")
    theta = keys.number("rope.freq_base", 10000.0)
    try:
        settings: Settings = {
            "model_type": READERS[keys.architecture],
            "hidden_size": hidden,
            "intermediate_size": keys.of_all_layers(MLP_WIDTH),
            "num_hidden_layers": metadata.integer(keys.full("block_count")),
            "num_attention_heads": heads,
            "num_key_value_heads": keys.of_all_layers(KV_HEADS, heads),
            "head_dim": head_dim,
            "rotary_dim": None if dimensions == head_dim else dimensions,
            "vocab_size": _vocab_size(keys, tensors),
            "max_position_embeddings": metadata.integer(keys.full("context_length")),
            "rms_norm_eps": metadata.number(keys.full("attention.layer_norm_rms_epsilon")),
            "rope_theta": theta,
            "rope_scaling": _read_rope_scaling(keys, divisors, dimensions, theta),
            "tie_word_embeddings": "output.weight" not in tensors,
            "attention_bias": "blk.0.attn_q.bias" in tensors,
            "attention_output_bias": "blk.0.attn_output.bias" in tensors,
            "mlp_bias": "blk.0.ffn_up.bias" in tensors,
            "bos_token_id": bos_token_id,
            "eos_token_ids": eos_token_ids,
        }
        check_limits(settings)
        settings |= family.settings(keys)
        if keys.integer(EXPERTS, 0, minimum=0):
            settings |= _read_experts(keys, tensors, settings)
        elif keys.integer(EXPERTS_USED, 0, minimum=0):
            metadata.refuse(f"{keys.full(EXPERTS_USED)} is above 0, but there are no experts ({EXPERTS})")
        return ModelConfig(**settings)
    except CheckpointError as error:
        if isinstance(error, UnsupportedModelError):
            raise
        metadata.refuse(str(error))


def _read_experts(keys: Keys, tensors: Mapping[str, TensorInfo], settings: Settings) -> Settings:
    """Read the sizes of experts, where no key says from their tensors, and which layers have them."""
    if EXPERT_WEIGHTS not in settings:
        raise UnsupportedModelError(f"mixtures of experts ({EXPERTS}) are not supported in {keys.architecture}")
    if keys.integer("expert_gating_func", SOFTMAX) != SOFTMAX:
        raise UnsupportedModelError(f"{keys.full('expert_gating_func')} that is no softmax is not supported")

    if any(OLD_EXPERT.fullmatch(name) for name in tensors):
        raise UnsupportedModelError(
            "an old file with a tensor for each expert is not supported: convert the checkpoint anew"
        )

    def width(key: str, name: str) -> int:
        dims = next((info.dims for stored, info in tensors.items() if stored.endswith(f".{name}.weight")), ())
        return keys.integer(key, dims[1] if len(dims) > 1 else 0)

    return {
        "n_experts": keys.integer(EXPERTS, 0),
        "n_experts_used": keys.integer(EXPERTS_USED, 0),
        "expert_intermediate_size": width(EXPERT_WIDTH, "ffn_up_exps"),
        "shared_expert_intermediate_size": width(SHARED_WIDTH, "ffn_up_shexp"),
        EXPERT_WEIGHTS: keys.metadata.boolean(keys.full(EXPERT_NORM), settings[EXPERT_WEIGHTS]),
        "expert_layers": expert_layers(tensors, settings["num_hidden_layers"]),
    }


def _vocab_size(keys: Keys, tensors: Mapping[str, TensorInfo]) -> int:
    if TOKEN_EMBEDDING not in tensors or len(tensors[TOKEN_EMBEDDING].dims) != 2:
        keys.metadata.refuse(f"it has no matrix {TOKEN_EMBEDDING}")
    rows = tensors[TOKEN_EMBEDDING].dims[1]
    if (said := keys.integer("vocab_size", rows)) != rows:
        keys.metadata.refuse(f"{keys.full('vocab_size')} is {said}, but {TOKEN_EMBEDDING} has {rows} rows")
    return rows


def _refuse_unknown(keys: Keys, family: InGGUF) -> None:
    prefix = keys.full("")
    for found in keys.metadata:
        name = found.removeprefix(prefix)
        if not found.startswith(prefix):
            continue
        if name not in _KNOWN and name not in family.keys:
            raise UnsupportedModelError(f"{found} is not known here: passing it over might change what the model says")
        if keys.metadata.is_array(found) and name not in (SLIDING_LAYERS, HEADS, KV_HEADS, MLP_WIDTH):
            raise UnsupportedModelError(f"{found} differs from layer to layer, which is not supported")


def _read_rope_scaling(
    keys: Keys, all_divisors: Mapping[str, Divisors], dimensions: int, theta: float
) -> RopeScaling | None:
    name = keys.string("rope.scaling.type", "none")
    if name not in ("none", "linear", "yarn", "longrope"):
        raise UnsupportedModelError(f"RoPE scaling {name!r:.60} is not supported: {KINDS}")
    context = keys.integer("rope.scaling.original_context_length", keys.integer("context_length", 1))
    if ROPE_SHORT in all_divisors or ROPE_LONG in all_divisors:
        return _read_long(keys, all_divisors, context)
    if name != "yarn" and keys.number(ATTENTION_FACTOR, 1.0) != 1.0:
        raise UnsupportedModelError(f"{keys.full(ATTENTION_FACTOR)} is not supported but with yarn and longrope")
    factor = next((key for key in ("rope.scaling.factor", "rope.scale_linear") if key in keys), None)
    kind = keys.full("rope.scaling.type")
    linear = name == "linear" or ("rope.scaling.type" not in keys and factor is not None)
    divisors = all_divisors.get(ROPE_FREQUENCIES)
    if (linear or name == "yarn") and factor is None:
        keys.metadata.refuse(f"{kind} is {name}, but there is no {keys.full('rope.scaling.factor')}")
    if divisors is None or (divisors == 1).all():
        if name == "yarn" and factor is not None:
            return _read_yarn(keys, keys.number(factor, 1.0), context)
        return RopeScaling("linear", keys.number(factor, 1.0)) if linear and factor is not None else None
    if linear or name == "yarn":
        raise UnsupportedModelError("RoPE frequencies that are scaled twice are not supported")
    largest = float(divisors.max(initial=0.0)) if divisors.shape == (dimensions // 2,) else 0.0
    if np.isfinite(largest) and largest >= 1:
        for length in LLAMA3_CONTEXTS:
            scaling = RopeScaling("llama3", largest, LLAMA3_LOW, LLAMA3_HIGH, length)
            if np.allclose(scaling.divisors(dimensions, theta), divisors, rtol=1e-4, atol=0):
                return scaling
    raise UnsupportedModelError(f"the divisors of RoPE frequencies ({ROPE_FREQUENCIES}) are not Llama 3.1's way")


def _read_yarn(keys: Keys, factor: float, context: int) -> RopeScaling:
    """Read yarn, whose attention factor llama.cpp computes, and multiplies by another where a file has one.

    Source: llama.cpp, src/llama-context.cpp: what DeepSeek calls mscale is 1, and mscale_all_dim in the file, or 0.
    """
    growth = 0.1 * math.log(factor) if factor > 1 else 0.0
    own = (1.0 + growth) / (1.0 + growth * keys.number_or_zero(YARN_LOG_MULTIPLIER))
    for name, usual in ((YARN_ATTENTION_FACTOR, own), (YARN_EXTRAPOLATION, 1.0)):
        if not any(math.isclose(keys.number(name, usual), harmless, rel_tol=1e-4) for harmless in (usual, 1.0)):
            raise UnsupportedModelError(f"{keys.full(name)} is not supported but as {usual:.6g}, or 1")
    return RopeScaling(
        "yarn",
        factor,
        original_max_position_embeddings=context,
        attention_factor=own * keys.number(ATTENTION_FACTOR, 1.0),
        beta_fast=keys.number("rope.scaling.yarn_beta_fast", BETA_FAST),
        beta_slow=keys.number("rope.scaling.yarn_beta_slow", BETA_SLOW),
    )


def _read_long(keys: Keys, divisors: Mapping[str, Divisors], context: int) -> RopeScaling:
    if ROPE_SHORT not in divisors or ROPE_LONG not in divisors:
        keys.metadata.refuse(f"it has not both of {ROPE_SHORT} and {ROPE_LONG}")
    short, long = (tuple(map(float, divisors[name])) for name in (ROPE_SHORT, ROPE_LONG))
    if not all(math.isfinite(each) and each > 0 for each in short + long):
        keys.metadata.refuse(f"{ROPE_SHORT} or {ROPE_LONG} has a number that is not positive")
    return RopeScaling(
        "longrope",
        keys.integer("context_length", context) / context,
        original_max_position_embeddings=context,
        attention_factor=keys.number(ATTENTION_FACTOR, 1.0),
        short_factor=short,
        long_factor=long,
    )
