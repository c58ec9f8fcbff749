"""Metadata of a model file: hyper-parameters as llama.cpp's keys, and back."""

import json
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any, get_args

from elutq_formats.block import Activation
from elutq_formats.config import ModelConfig
from elutq_formats.constants import MAX_LAYERS
from elutq_formats.errors import CheckpointError
from elutq_formats.families import find_family
from elutq_formats.gguf import TensorInfo, ValueType
from elutq_formats.metadata import Metadata, MetadataEntry
from elutq_formats.rope import RopeScaling
from elutq_formats.sampling_defaults import OPTIONS, SamplingDefaults

ARCHITECTURE = "general.architecture"
MODEL_TYPE = "elutq.model_type"
ROPE_SCALING = "elutq.rope_scaling"
SLIDING_LAYERS, ROPE_LAYERS = "attention.sliding_window_pattern", "rope.layers"
ATTENTION_FACTOR, LONG_CONTEXT = "rope.scaling.attn_factor", "rope.scaling.original_context_length"
ATTENTION_SOFTCAP, LOGIT_SOFTCAP = "attn_logit_softcapping", "final_logit_softcapping"
LOCAL_BASE, ACTIVATION = "rope.freq_base_swa", "hidden_activation"
EXPERTS, EXPERTS_USED, EXPERT_WIDTH = "expert_count", "expert_used_count", "expert_feed_forward_length"
SHARED_WIDTH, EXPERT_NORM = "expert_shared_feed_forward_length", "expert_weights_norm"
OF_EXPERTS = EXPERTS, EXPERTS_USED, EXPERT_WIDTH, SHARED_WIDTH, EXPERT_NORM
ROUTER = "blk.{}.ffn_gate_inp.weight"

_KNOWN = (
    *("vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
    *("attention.layer_norm_rms_epsilon", "attention.sliding_window", SLIDING_LAYERS),
    *("rope.dimension_count", "rope.freq_base", LOCAL_BASE, ROPE_LAYERS),
    *(ATTENTION_FACTOR, LONG_CONTEXT, ACTIVATION, ATTENTION_SOFTCAP, LOGIT_SOFTCAP),
    *OF_EXPERTS,
)
"""Keys of an architecture in a model file, as the C runtime has them; another may change what the model computes."""
EOS_TOKEN_IDS = "elutq.eos_token_ids"
BOS_TOKEN_ID = "tokenizer.ggml.bos_token_id"
TOKENIZER = "tokenizer.huggingface.json"
CHAT_TEMPLATE = "tokenizer.chat_template"
SPECIAL_TOKENS = "elutq.special_tokens"


def describe_config(config: ModelConfig) -> Iterator[MetadataEntry]:
    """Yield the metadata entries that hold a configuration; biases, norms and a tied head show in the tensors."""
    family = find_family(config.model_type)
    assert family is not None
    prefix = family.architecture
    yield ARCHITECTURE, prefix, ValueType.STRING
    for key, value in {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "rope.dimension_count": config.rope_dimensions,
    }.items():
        yield f"{prefix}.{key}", value, ValueType.UINT32
    yield f"{prefix}.attention.layer_norm_rms_epsilon", config.rms_norm_eps, ValueType.FLOAT32
    yield f"{prefix}.rope.freq_base", config.rope_theta, ValueType.FLOAT32
    if config.sliding_window is not None:
        yield f"{prefix}.attention.sliding_window", config.sliding_window, ValueType.UINT32
    yield from _describe_layers(config, prefix)
    yield MODEL_TYPE, config.model_type, ValueType.STRING
    if config.rope_scaling is not None:
        yield ROPE_SCALING, json.dumps(config.rope_scaling.to_huggingface()), ValueType.STRING
    if config.bos_token_id is not None:
        yield BOS_TOKEN_ID, config.bos_token_id, ValueType.UINT32
    if config.eos_token_ids:
        yield "tokenizer.ggml.eos_token_id", config.eos_token_ids[0], ValueType.UINT32
        yield EOS_TOKEN_IDS, config.eos_token_ids, ValueType.UINT32


def _describe_layers(config: ModelConfig, prefix: str) -> Iterator[MetadataEntry]:
    """Yield what only some families have: layers that differ, other ways to turn, other activations."""
    if config.sliding_layers is not None:
        yield f"{prefix}.{SLIDING_LAYERS}", config.sliding_layers, ValueType.BOOL
    if config.rope_layers is not None:
        yield f"{prefix}.{ROPE_LAYERS}", config.rope_layers, ValueType.BOOL
    if config.local_rope_theta is not None:
        yield f"{prefix}.{LOCAL_BASE}", config.local_rope_theta, ValueType.FLOAT32
    if config.rope.attention_factor != 1.0:
        yield f"{prefix}.{ATTENTION_FACTOR}", config.rope.attention_factor, ValueType.FLOAT32
    if config.rope_scaling is not None and config.rope_scaling.rope_type == "longrope":
        context = config.rope_scaling.original_max_position_embeddings
        yield f"{prefix}.{LONG_CONTEXT}", context, ValueType.UINT32
    for name, value in ((ATTENTION_SOFTCAP, config.attention_softcap), (LOGIT_SOFTCAP, config.logit_softcap)):
        if value is not None:
            yield f"{prefix}.{name}", value, ValueType.FLOAT32
    if config.n_experts:
        for name, size in (
            (EXPERTS, config.n_experts),
            (EXPERTS_USED, config.n_experts_used),
            (EXPERT_WIDTH, config.expert_intermediate_size),
            (SHARED_WIDTH, config.shared_expert_intermediate_size),
        ):
            if size:
                yield f"{prefix}.{name}", size, ValueType.UINT32
        yield f"{prefix}.{EXPERT_NORM}", config.normalize_expert_weights, ValueType.BOOL
    if config.hidden_act != "silu":
        yield f"{prefix}.{ACTIVATION}", config.hidden_act, ValueType.STRING


def read_config(metadata: Metadata, tensors: Mapping[str, TensorInfo]) -> ModelConfig:
    """Read a configuration back.

    Args:
        metadata: of the file.
        tensors: its tensors by name; those of block 0 show which biases and norms every block has.

    Raises:
        FormatError: a key is missing or impossible.
    """
    prefix, model_type = metadata.string(ARCHITECTURE), metadata.string(MODEL_TYPE)
    family = find_family(model_type)
    if family is None or family.architecture != prefix:
        metadata.refuse(
            f"architecture {prefix!r:.60} of model type {model_type!r:.60} is unknown: a newer elutq may read it"
        )
    head_dim = metadata.integer(f"{prefix}.attention.key_length")
    for key in metadata:
        if key.startswith(f"{prefix}.") and key.removeprefix(f"{prefix}.") not in _KNOWN:
            metadata.refuse(f"{key!r:.80} is not known here: a newer elutq may read it")
    if metadata.integer(f"{prefix}.attention.value_length") != head_dim:
        metadata.refuse(f"{prefix}.attention.value_length differs from {prefix}.attention.key_length")
    vocab_size, window = metadata.integer(f"{prefix}.vocab_size"), f"{prefix}.attention.sliding_window"
    bos = [metadata.integer(BOS_TOKEN_ID, minimum=0)] if BOS_TOKEN_ID in metadata else []
    eos = metadata.array(EOS_TOKEN_IDS, ValueType.UINT32) if EOS_TOKEN_IDS in metadata else []
    if not all(0 <= token < vocab_size for token in bos + eos):
        metadata.refuse(f"a special token is not among the {vocab_size} of the vocabulary")
    try:
        config = ModelConfig(
            model_type=model_type,
            hidden_size=metadata.integer(f"{prefix}.embedding_length"),
            intermediate_size=metadata.integer(f"{prefix}.feed_forward_length"),
            num_hidden_layers=metadata.integer(f"{prefix}.block_count"),
            num_attention_heads=metadata.integer(f"{prefix}.attention.head_count"),
            num_key_value_heads=metadata.integer(f"{prefix}.attention.head_count_kv"),
            head_dim=head_dim,
            vocab_size=vocab_size,
            max_position_embeddings=metadata.integer(f"{prefix}.context_length"),
            rms_norm_eps=metadata.number(f"{prefix}.attention.layer_norm_rms_epsilon"),
            rope_theta=metadata.number(f"{prefix}.rope.freq_base"),
            rope_scaling=_read_rope_scaling(metadata),
            sliding_window=metadata.integer(window) if window in metadata else None,
            tie_word_embeddings="output.weight" not in tensors,
            attention_bias=model_type == "qwen2" or "blk.0.attn_q.bias" in tensors,
            attention_output_bias="blk.0.attn_output.bias" in tensors,
            mlp_bias="blk.0.ffn_up.bias" in tensors,
            **_read_layers(metadata, prefix),
            **_read_experts(metadata, prefix, tensors),
            **_read_norms(tensors, head_dim),
            bos_token_id=bos[0] if bos else None,
            eos_token_ids=tuple(eos),
        )
    except CheckpointError as error:
        metadata.refuse(str(error))
    _check_rope(metadata, prefix, config)
    return config


def _check_rope(metadata: Metadata, prefix: str, config: ModelConfig) -> None:
    """Check that what the runtime reads of RoPE scaling is what ``ROPE_SCALING`` says."""
    factor, context = f"{prefix}.{ATTENTION_FACTOR}", f"{prefix}.{LONG_CONTEXT}"
    scaling = config.rope_scaling
    is_long = scaling is not None and scaling.rope_type == "longrope"
    wanted = scaling.original_max_position_embeddings if scaling is not None and is_long else None
    if (metadata.integer(context) if context in metadata else None) != wanted:
        metadata.refuse(f"{context} differs from what {ROPE_SCALING} says")
    found = metadata.number(factor) if factor in metadata else 1.0
    if not math.isclose(found, config.rope.attention_factor, rel_tol=1e-5):
        metadata.refuse(f"{factor} differs from what {ROPE_SCALING} says")


def _read_layers(metadata: Metadata, prefix: str) -> dict[str, Any]:
    """Read what ``_describe_layers`` writes."""
    dimensions = metadata.integer(f"{prefix}.rope.dimension_count")
    head_dim = metadata.integer(f"{prefix}.attention.key_length")
    found: dict[str, Any] = {"rotary_dim": None if dimensions == head_dim else dimensions}
    for name, key in (("sliding_layers", SLIDING_LAYERS), ("rope_layers", ROPE_LAYERS)):
        if f"{prefix}.{key}" in metadata:
            found[name] = tuple(metadata.array(f"{prefix}.{key}", ValueType.BOOL))
    if f"{prefix}.{LOCAL_BASE}" in metadata:
        found["local_rope_theta"] = metadata.number(f"{prefix}.{LOCAL_BASE}")
    for name, key in (("attention_softcap", ATTENTION_SOFTCAP), ("logit_softcap", LOGIT_SOFTCAP)):
        if f"{prefix}.{key}" in metadata:
            found[name] = metadata.number(f"{prefix}.{key}")
    if f"{prefix}.{ACTIVATION}" in metadata:
        found["hidden_act"] = metadata.string(f"{prefix}.{ACTIVATION}")
        if found["hidden_act"] not in get_args(Activation):
            metadata.refuse(f"{prefix}.{ACTIVATION} {found['hidden_act']!r:.40} is unknown: a newer elutq may read it")
    return found


def _read_experts(metadata: Metadata, prefix: str, tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """Read the sizes of experts, and from the tensors which layers have them."""
    if not any(f"{prefix}.{key}" in metadata for key in OF_EXPERTS):
        return {}
    layers, shared = metadata.integer(f"{prefix}.block_count"), f"{prefix}.{SHARED_WIDTH}"
    return {
        "n_experts": metadata.integer(f"{prefix}.{EXPERTS}"),
        "n_experts_used": metadata.integer(f"{prefix}.{EXPERTS_USED}"),
        "expert_intermediate_size": metadata.integer(f"{prefix}.{EXPERT_WIDTH}"),
        "shared_expert_intermediate_size": metadata.integer(shared) if shared in metadata else 0,
        "normalize_expert_weights": metadata.boolean(f"{prefix}.{EXPERT_NORM}", False),
        "expert_layers": expert_layers(tensors, layers),
    }


def expert_layers(tensors: Collection[str], n_layers: int) -> tuple[bool, ...] | None:
    """Return which layers have a router, by the names of a file's tensors; None: all."""
    flags = tuple(ROUTER.format(layer) in tensors for layer in range(min(n_layers, MAX_LAYERS)))
    return None if all(flags) else flags


def _read_norms(tensors: Mapping[str, TensorInfo], head_dim: int) -> dict[str, Any]:
    """Read which norms every block has, and how wide those of queries and keys are, from block 0's."""
    query_norm, norm_after = tensors.get("blk.0.attn_q_norm.weight"), "blk.0.post_attention_norm.weight" in tensors
    return {
        "qk_norm": query_norm is not None,
        "qk_norm_spans_heads": query_norm is not None and query_norm.dims != (head_dim,),
        "norm_before": "blk.0.attn_norm.weight" in tensors or not norm_after,
        "norm_after": norm_after,
    }


def describe_sampling(sampling: SamplingDefaults) -> Iterator[MetadataEntry]:
    """Yield the metadata entries that hold how the author has tokens drawn."""
    for option in OPTIONS:
        if option.name in sampling:
            yield option.gguf, sampling[option.name], ValueType.INT32 if option.whole else ValueType.FLOAT32


def read_sampling(metadata: Metadata) -> SamplingDefaults:
    """Read how the author has tokens drawn; what the file does not say is not there.

    Raises:
        FormatError: a value is impossible.
    """
    found = {}
    for option in OPTIONS:
        if option.gguf in metadata:
            try:
                found[option.name] = option.check(
                    metadata.signed(option.gguf) if option.whole else metadata.real(option.gguf)
                )
            except ValueError as error:
                metadata.refuse(f"{option.gguf} {error}")
    return found


def read_special_tokens(metadata: Metadata) -> dict[str, str] | None:
    """Read the spellings of special tokens by their names; None when the file says nothing about them.

    Raises:
        FormatError: they are not names with spellings.
    """
    if SPECIAL_TOKENS not in metadata:
        return None
    spellings = _read_object(metadata, SPECIAL_TOKENS)
    if not all(name.isidentifier() and name.endswith("_token") for name in spellings):
        metadata.refuse(f"{SPECIAL_TOKENS} has a name that is none of a special token")
    if not all(isinstance(spelling, str) for spelling in spellings.values()):
        metadata.refuse(f"{SPECIAL_TOKENS} has a token that is not a string")
    return spellings


def _read_rope_scaling(metadata: Metadata) -> RopeScaling | None:
    if ROPE_SCALING not in metadata:
        return None
    return RopeScaling.from_huggingface(_read_object(metadata, ROPE_SCALING))


def _read_object(metadata: Metadata, key: str) -> dict[str, Any]:
    try:
        value = json.loads(metadata.string(key))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        metadata.refuse(f"{key} is not a JSON object")
    return value
