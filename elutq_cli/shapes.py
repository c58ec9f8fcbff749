"""Shapes of well-known models, so that a machine can be measured, or a pipeline tried, without a download."""

from typing import Any

from elutq_formats.config import ModelConfig
from elutq_formats.errors import ElutqError


def _llama(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocab: int, **more: Any) -> dict[str, Any]:  # noqa: ANN401
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    } | more


def _gemma3(hidden: int, inner: int, layers: int, heads: int) -> dict[str, Any]:
    more = {"head_dim": 256, "sliding_window": 512, "rope_theta": 1000000.0, "max_position_embeddings": 32768}
    return _llama(hidden, inner, layers, heads, 1, 262144, model_type="gemma3_text", tie_word_embeddings=True, **more)


_LLAMA3 = {"max_position_embeddings": 8192, "rope_theta": 500000.0}

_QWEN3_MOE = _llama(
    *(2048, 6144, 48, 32, 4, 151936),
    model_type="qwen3_moe",
    head_dim=128,
    max_position_embeddings=40960,
    rms_norm_eps=1e-6,
    rope_theta=1000000.0,
    num_experts=128,
    num_experts_per_tok=8,
    moe_intermediate_size=768,
    norm_topk_prob=True,
)

SHAPES: dict[str, dict[str, Any]] = {
    "llama2-7b": _llama(4096, 11008, 32, 32, 32, 32000),
    "llama2-13b": _llama(5120, 13824, 40, 40, 40, 32000),
    "llama2-70b": _llama(8192, 28672, 80, 64, 8, 32000),
    "llama3-8b": _llama(4096, 14336, 32, 32, 8, 128256, **_LLAMA3),
    "llama3-70b": _llama(8192, 28672, 80, 64, 8, 128256, **_LLAMA3),
    "llama3.2-1b": _llama(2048, 8192, 16, 32, 8, 128256, tie_word_embeddings=True, head_dim=64, **_LLAMA3),
    "llama3.2-3b": _llama(3072, 8192, 28, 24, 8, 128256, tie_word_embeddings=True, head_dim=128, **_LLAMA3),
    "tinyllama-1.1b": _llama(2048, 5632, 22, 32, 4, 32000, max_position_embeddings=2048),
    "mistral-7b": _llama(4096, 14336, 32, 32, 8, 32000, model_type="mistral", sliding_window=None),
    "smollm2-135m": _llama(576, 1536, 30, 9, 3, 49152, max_position_embeddings=8192, tie_word_embeddings=True),
    "qwen2.5-0.5b": _llama(896, 4864, 24, 14, 2, 151936, model_type="qwen2", tie_word_embeddings=True),
    "gemma3-270m": _gemma3(640, 2048, 18, 4),
    "gemma3-1b": _gemma3(1152, 6912, 26, 4),
    "smollm3-3b": _llama(2048, 11008, 36, 16, 4, 128256, model_type="smollm3", tie_word_embeddings=True),
    "qwen3-30b-a3b": _QWEN3_MOE,
    "qwen3-8b": _llama(4096, 12288, 36, 32, 8, 151936, model_type="qwen3", head_dim=128),
}


def named_shape(name: str, blocks: int | None = None) -> ModelConfig:
    """Returns the configuration of a named shape.

    Args:
        name: One of ``SHAPES``.
        blocks: Decoder blocks, fewer than the model has; None: all.

    Raises:
        ElutqError: There is no such shape, or the number of blocks is out of range.
    """
    if name not in SHAPES:
        raise ElutqError(f"no shape is called {name!r}: choose one of {', '.join(SHAPES)}")
    shape = dict(SHAPES[name])
    if blocks is not None:
        if not 1 <= blocks <= shape["num_hidden_layers"]:
            raise ElutqError(f"{name} has 1 to {shape['num_hidden_layers']} blocks, not {blocks}")
        shape["num_hidden_layers"] = blocks
    return ModelConfig.from_huggingface(shape, None)
