"""The configuration of a model in a GGUF file that other tools made: llama.cpp's keys, and what its tensors show.

Source: the keys that llama.cpp's convert_hf_to_gguf.py writes for these architectures, and their defaults in its
loader (src/llama-model.cpp).
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from elutq_formats.config import ModelConfig
from elutq_formats.errors import CheckpointError, UnsupportedModelError
from elutq_formats.gguf import TensorInfo
from elutq_formats.model_metadata import ARCHITECTURE, Metadata
from elutq_formats.names import ROPE_FREQUENCIES, TOKEN_EMBEDDING
from elutq_formats.rope import RopeScaling

MODEL_TYPES: Mapping[str, str] = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}

_KNOWN = (
    *("block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size"),
    *("expert_count", "expert_used_count", "tensor_data_layout"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
    *("attention.layer_norm_rms_epsilon", "attention.sliding_window"),
    *("rope.freq_base", "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor", "rope.scale_linear"),
    *("rope.scaling.original_context_length", "rope.scaling.finetuned"),
)
"""Keys that are read or may be passed over; another may change what the model computes."""

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
    if name not in MODEL_TYPES:
        known = ", ".join(MODEL_TYPES)
        raise UnsupportedModelError(f"architecture {name!r:.60} is not supported: {known} are (Mistral is llama too)")
    return name


def read_gguf_config(
    metadata: Metadata,
    tensors: Mapping[str, TensorInfo],
    rope_divisors: npt.NDArray[np.float32] | None,
    bos_token_id: int | None,
    eos_token_ids: tuple[int, ...],
) -> ModelConfig:
    """Read a configuration.

    Args:
        metadata: of the file.
        tensors: by their names in the file.
        rope_divisors: (head_dim / 2,) what each RoPE frequency is divided by, where the file has such a tensor.
        bos_token_id: first token of a text, if the model has one.
        eos_token_ids: every token that ends a text.

    Raises:
        UnsupportedModelError: the model needs something that is not implemented; the message names it.
        FormatError: a key is missing or impossible.
    """
    prefix = read_architecture(metadata)
    _refuse_unknown(metadata, prefix)

    def key(name: str) -> str:
        return f"{prefix}.{name}"

    def integer(name: str, default: int, minimum: int = 1) -> int:
        return metadata.integer(key(name), minimum) if key(name) in metadata else default

    for name in _KNOWN:
        if metadata.is_array(key(name)):
            raise UnsupportedModelError(f"{key(name)} differs from layer to layer, which is not supported")
    if integer("expert_count", 0, minimum=0):
        raise UnsupportedModelError("mixtures of experts (expert_count) are not supported")
    hidden, heads = metadata.integer(key("embedding_length")), metadata.integer(key("attention.head_count"))
    if key("attention.key_length") not in metadata and hidden % heads:
        metadata.refuse(f"{key('embedding_length')} {hidden} is not a multiple of {heads} heads")
    head_dim = integer("attention.key_length", max(1, hidden // heads))
    for name in ("attention.value_length", "rope.dimension_count"):
        if integer(name, head_dim) != head_dim:
            raise UnsupportedModelError(f"{key(name)} {integer(name, head_dim)} is not {head_dim}, the width of a head")
    if TOKEN_EMBEDDING not in tensors or len(tensors[TOKEN_EMBEDDING].dims) != 2:
        metadata.refuse(f"it has no matrix {TOKEN_EMBEDDING}")
    vocab_size = tensors[TOKEN_EMBEDDING].dims[1]
    if integer("vocab_size", vocab_size) != vocab_size:
        metadata.refuse(
            f"{key('vocab_size')} is {integer('vocab_size', vocab_size)}, but {TOKEN_EMBEDDING} has {vocab_size} rows"
        )
    theta = metadata.number(key("rope.freq_base")) if key("rope.freq_base") in metadata else 10000.0
    window = integer("attention.sliding_window", 0, minimum=0)
    try:
        return ModelConfig(
            model_type="mistral" if prefix == "llama" and window else MODEL_TYPES[prefix],
            hidden_size=hidden,
            intermediate_size=metadata.integer(key("feed_forward_length")),
            num_hidden_layers=metadata.integer(key("block_count")),
            num_attention_heads=heads,
            num_key_value_heads=integer("attention.head_count_kv", heads),
            head_dim=head_dim,
            vocab_size=vocab_size,
            max_position_embeddings=metadata.integer(key("context_length")),
            rms_norm_eps=metadata.number(key("attention.layer_norm_rms_epsilon")),
            rope_theta=theta,
            rope_scaling=_read_rope_scaling(metadata, prefix, rope_divisors, head_dim, theta),
            sliding_window=window or None,
            tie_word_embeddings="output.weight" not in tensors,
            attention_bias=prefix == "qwen2" or "blk.0.attn_q.bias" in tensors,
            attention_output_bias="blk.0.attn_output.bias" in tensors,
            mlp_bias="blk.0.ffn_up.bias" in tensors,
            qk_norm=prefix == "qwen3",
            bos_token_id=bos_token_id,
            eos_token_ids=eos_token_ids,
        )
    except CheckpointError as error:
        if isinstance(error, UnsupportedModelError):
            raise
        metadata.refuse(str(error))


def _refuse_unknown(metadata: Metadata, prefix: str) -> None:
    for found in metadata:
        if found.startswith(f"{prefix}.") and found.removeprefix(f"{prefix}.") not in _KNOWN:
            raise UnsupportedModelError(f"{found} is not known here: passing it over might change what the model says")


def _read_rope_scaling(
    metadata: Metadata, prefix: str, divisors: npt.NDArray[np.float32] | None, head_dim: int, theta: float
) -> RopeScaling | None:
    kind = f"{prefix}.rope.scaling.type"
    name = metadata.string(kind) if kind in metadata else "none"
    if name not in ("none", "linear"):
        raise UnsupportedModelError(f"RoPE scaling {name!r:.60} is not supported: linear and llama3 are")
    factor = next((key for key in ("rope.scaling.factor", "rope.scale_linear") if f"{prefix}.{key}" in metadata), None)
    linear = name == "linear" or (kind not in metadata and factor is not None)
    if divisors is None or (divisors == 1).all():
        if linear and factor is None:
            metadata.refuse(f"{kind} is linear, but there is no {prefix}.rope.scaling.factor")
        return RopeScaling("linear", metadata.number(f"{prefix}.{factor}")) if linear else None
    if linear:
        raise UnsupportedModelError("RoPE frequencies that are scaled twice are not supported")
    largest = float(divisors.max(initial=0.0)) if divisors.shape == (head_dim // 2,) else 0.0
    if np.isfinite(largest) and largest >= 1:
        for context in LLAMA3_CONTEXTS:
            scaling = RopeScaling("llama3", largest, LLAMA3_LOW, LLAMA3_HIGH, context)
            if np.allclose(scaling.divisors(head_dim, theta), divisors, rtol=1e-4, atol=0):
                return scaling
    raise UnsupportedModelError(f"the divisors of RoPE frequencies ({ROPE_FREQUENCIES}) are not Llama 3.1's way")
