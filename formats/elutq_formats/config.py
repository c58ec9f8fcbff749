"""Model configuration: one frozen record read from a checkpoint's ``config.json``, under Hugging Face's field names."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from elutq_formats.constants import MAX_CONTEXT, MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, MAX_VOCABULARY, MAX_WIDTH
from elutq_formats.errors import CheckpointError, UnsupportedModelError
from elutq_formats.fields import Fields
from elutq_formats.special_tokens import BOS_NAME, END_OF_TEXT_NAMES

ModelType = Literal["llama", "mistral", "qwen2", "qwen3"]

_SUPPORTED = "supported are llama, mistral, qwen2 and qwen3"

# What transformers assumes when config.json leaves a key out, where the families differ.
_QWEN_DEFAULTS = {
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_DEFAULTS: dict[ModelType, dict[str, int]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": _QWEN_DEFAULTS,
    "qwen3": {**_QWEN_DEFAULTS, "head_dim": 128},
}

_LIMITS = {
    "hidden_size": MAX_WIDTH,
    "intermediate_size": MAX_WIDTH,
    "num_hidden_layers": MAX_LAYERS,
    "num_attention_heads": MAX_HEADS,
    "num_key_value_heads": MAX_HEADS,
    "head_dim": MAX_HEAD_DIM,
    "vocab_size": MAX_VOCABULARY,
    "max_position_embeddings": MAX_CONTEXT,
    "sliding_window": MAX_CONTEXT,
}


@dataclass(frozen=True)
class RopeScaling:
    """How the RoPE frequencies are stretched beyond the trained context.

    Attributes:
        rope_type: ``linear`` divides every frequency by ``factor``; ``llama3`` only the slow ones.
        factor: the stretch.
        low_freq_factor: llama3: wavelengths above ``original_max_position_embeddings / low_freq_factor`` are stretched.
        high_freq_factor: llama3: wavelengths below ``original_max_position_embeddings / high_freq_factor`` are kept.
        original_max_position_embeddings: llama3: the context before stretching, in tokens.
    """

    rope_type: Literal["llama3", "linear"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    @staticmethod
    def from_huggingface(settings: Mapping[str, Any]) -> "RopeScaling | None":
        """Read ``rope_scaling`` or ``rope_parameters`` of a ``config.json``; None when they leave RoPE as it is.

        Raises:
            UnsupportedModelError: a kind of scaling that is not implemented.
            CheckpointError: a field is missing or impossible.
        """
        fields = Fields(settings, "config.json: RoPE scaling")
        rope_type = fields["rope_type"] or fields["type"] or "default"
        if rope_type == "default":
            return None
        if rope_type == "linear":
            return RopeScaling("linear", fields.number("factor"))
        if rope_type != "llama3":
            raise UnsupportedModelError(f"RoPE scaling {rope_type!r:.60} is not supported: linear and llama3 are")
        low, high = fields.number("low_freq_factor"), fields.number("high_freq_factor")
        if high <= low:
            raise CheckpointError(
                f"config.json: RoPE scaling: high_freq_factor {high} is not above low_freq_factor {low}"
            )
        context = fields.integer("original_max_position_embeddings")
        return RopeScaling("llama3", fields.number("factor"), low, high, context)

    def to_huggingface(self) -> dict[str, Any]:
        """Return the settings that ``from_huggingface`` reads."""
        return asdict(self)

    def divisors(self, head_dim: int, rope_theta: float) -> npt.NDArray[np.float32]:
        """Return what each RoPE frequency is divided by: (head_dim / 2,) float32.

        Source: ``rope_type: llama3`` of Llama 3.1. Between the two wavelengths the frequency is a blend of itself and
        the stretched one, linear in the number of turns over the original context.
        """
        if self.rope_type == "linear":
            return np.full(head_dim // 2, self.factor, dtype=np.float32)
        frequencies = rope_theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
        turns = self.original_max_position_embeddings * frequencies / (2 * math.pi)
        kept = np.clip((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor), 0, 1)
        return (1 / (kept + (1 - kept) / self.factor)).astype(np.float32)


@dataclass(frozen=True)
class ModelConfig:
    """Hyper-parameters of a supported model.

    Attributes:
        model_type: the family.
        hidden_size: width of the residual stream.
        intermediate_size: width of the MLP.
        num_hidden_layers: transformer blocks.
        num_attention_heads: query heads.
        num_key_value_heads: key and value heads; a divisor of the query heads.
        head_dim: features per head; not always ``hidden_size / num_attention_heads``.
        vocab_size: rows of the embedding, which may be more than the tokenizer has.
        max_position_embeddings: trained context, in tokens.
        rms_norm_eps: epsilon of every RMSNorm.
        rope_theta: base of the RoPE frequencies.
        rope_scaling: stretch of the RoPE frequencies, if any.
        sliding_window: a token attends to itself and this many less one before it; None means all.
        tie_word_embeddings: the output head is the embedding.
        attention_bias: q, k and v projections have a bias.
        attention_output_bias: the o projection has a bias.
        mlp_bias: gate, up and down projections have a bias.
        qk_norm: queries and keys pass an RMSNorm per head before RoPE.
        bos_token_id: first token of a text, if the model has one: the tokenizer's, else what the configuration says.
        eos_token_ids: every token that ends a text, by the tokenizer or the configuration; the tokenizer's own first.
    """

    model_type: ModelType
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None = None
    sliding_window: int | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, limit in _LIMITS.items():
            if (value := getattr(self, name)) is not None and value > limit:
                raise UnsupportedModelError(f"{name} {value} is more than {limit}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise CheckpointError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise CheckpointError(f"head_dim {self.head_dim} is odd: RoPE turns pairs of features")

    @staticmethod
    def from_huggingface(
        config: Mapping[str, Any],
        generation_config: Mapping[str, Any] | None = None,
        tokenizer_ids: Mapping[str, int] | None = None,
    ) -> "ModelConfig":
        """Read a checkpoint's configuration.

        Args:
            config: contents of ``config.json``.
            generation_config: contents of ``generation_config.json``, where there is one.
            tokenizer_ids: the tokenizer's own special tokens by name: ``bos_token``, ``eos_token``, ...

        Raises:
            UnsupportedModelError: the model needs something that is not implemented; the message names it.
            CheckpointError: a field is missing, of the wrong type, or impossible.
        """
        return _read_config(config, generation_config or {}, tokenizer_ids or {})

    def rope_divisors(self) -> npt.NDArray[np.float32] | None:
        """Return what each RoPE frequency is divided by, (head_dim / 2,) float32, or None when unscaled."""
        return self.rope_scaling.divisors(self.head_dim, self.rope_theta) if self.rope_scaling else None

    def linear_shapes(self, layer: int) -> dict[str, tuple[int, int]]:
        """Return the matrices of a block, by name: (out_features, in_features)."""
        block = f"model.layers.{layer}."
        hidden, intermediate = self.hidden_size, self.intermediate_size
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        return {
            block + "self_attn.q_proj.weight": (queries, hidden),
            block + "self_attn.k_proj.weight": (keys, hidden),
            block + "self_attn.v_proj.weight": (keys, hidden),
            block + "self_attn.o_proj.weight": (hidden, queries),
            block + "mlp.gate_proj.weight": (intermediate, hidden),
            block + "mlp.up_proj.weight": (intermediate, hidden),
            block + "mlp.down_proj.weight": (hidden, intermediate),
        }

    def linear_names(self, layer: int) -> tuple[str, ...]:
        """Return the names of a block's matrices: q, k, v, o, gate, up, down."""
        return tuple(self.linear_shapes(layer))

    def vector_shapes(self, layer: int) -> dict[str, tuple[int]]:
        """Return the norms and biases of a block, by name."""
        block = f"model.layers.{layer}."
        shapes: dict[str, tuple[int]] = {
            block + "input_layernorm.weight": (self.hidden_size,),
            block + "post_attention_layernorm.weight": (self.hidden_size,),
        }
        if self.qk_norm:
            shapes |= {block + f"self_attn.{part}_norm.weight": (self.head_dim,) for part in "qk"}
        biased = {"self_attn.o_proj": self.attention_output_bias}
        biased |= {f"self_attn.{part}_proj": self.attention_bias for part in "qkv"}
        biased |= {f"mlp.{part}_proj": self.mlp_bias for part in ("gate", "up", "down")}
        for name, (rows, _) in self.linear_shapes(layer).items():
            stem = name.removesuffix(".weight")
            if biased[stem.removeprefix(block)]:
                shapes[stem + ".bias"] = (rows,)
        return shapes

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return every tensor that a checkpoint of this model holds, block by block."""
        return dict(self._tensors())

    def _tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield "model.embed_tokens.weight", (self.vocab_size, self.hidden_size)
        for layer in range(self.num_hidden_layers):
            yield from self.linear_shapes(layer).items()
            yield from self.vector_shapes(layer).items()
        yield "model.norm.weight", (self.hidden_size,)
        if not self.tie_word_embeddings:
            yield "lm_head.weight", (self.vocab_size, self.hidden_size)


def _read_config(
    config: Mapping[str, Any], generation_config: Mapping[str, Any], tokenizer_ids: Mapping[str, int]
) -> ModelConfig:
    model_type = _supported_model_type(config)
    fields = Fields(config, "config.json", _DEFAULTS[model_type])
    hidden_size, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    if fields["head_dim"] is None and hidden_size % heads:
        raise CheckpointError(f"config.json: hidden_size {hidden_size} is not a multiple of {heads} heads")
    layers, vocab_size = fields.integer("num_hidden_layers"), fields.integer("vocab_size")
    # As transformers reads them: Qwen2 has the biases without saying so, Mistral has none whatever it says.
    attention_output_bias = model_type in ("llama", "qwen3") and fields.boolean("attention_bias", False)
    mlp_bias = model_type == "llama" and fields.boolean("mlp_bias", False)
    rope_theta, rope_scaling = _read_rope(fields)
    generation = Fields(generation_config, "generation_config.json")
    # The tokenizer's own come first: text begins with its BOS, and templates write its EOS.
    bos = [tokenizer_ids[BOS_NAME]] if BOS_NAME in tokenizer_ids else []
    bos += [*generation.token_ids("bos_token_id"), *fields.token_ids("bos_token_id")]
    eos = [tokenizer_ids[name] for name in END_OF_TEXT_NAMES if name in tokenizer_ids]
    eos += [*fields.token_ids("eos_token_id"), *generation.token_ids("eos_token_id")]

    def known(ids: list[int]) -> tuple[int, ...]:
        # Old checkpoints write -1 for "none"; an id past the vocabulary can be neither fed nor sampled.
        return tuple(token for token in dict.fromkeys(ids) if 0 <= token < vocab_size)

    return ModelConfig(
        model_type=model_type,
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size"),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=fields.integer("num_key_value_heads", heads),
        head_dim=fields.integer("head_dim", max(1, hidden_size // heads)),
        vocab_size=vocab_size,
        max_position_embeddings=fields.integer("max_position_embeddings"),
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        sliding_window=_read_sliding_window(fields, model_type, layers),
        tie_word_embeddings=fields.boolean("tie_word_embeddings", False),
        attention_bias=attention_output_bias or model_type == "qwen2",
        attention_output_bias=attention_output_bias,
        mlp_bias=mlp_bias,
        qk_norm=model_type == "qwen3",
        bos_token_id=next(iter(known(bos)), None),
        eos_token_ids=known(eos),
    )


def _supported_model_type(config: Mapping[str, Any]) -> ModelType:
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in _DEFAULTS:
        parts = ", a multimodal model," if isinstance(config.get("text_config"), dict) else ""
        raise UnsupportedModelError(f"model type {model_type!r:.60}{parts} is not supported: {_SUPPORTED}")
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        raise UnsupportedModelError(f"hidden_act {config['hidden_act']!r:.60} is not supported: only silu is")
    for key in ("num_experts", "num_local_experts"):
        if config.get(key):
            raise UnsupportedModelError(f"mixtures of experts ({key}) are not supported: {_SUPPORTED}, dense")
    return model_type


def _read_rope(fields: Fields) -> tuple[float, RopeScaling | None]:
    """Read RoPE from ``rope_parameters`` (transformers 5) or ``rope_theta`` and ``rope_scaling`` (before)."""
    settings = fields.mapping("rope_parameters")
    if added := fields.mapping("rope_scaling"):
        if settings and RopeScaling.from_huggingface(added) != RopeScaling.from_huggingface(settings):
            raise CheckpointError(
                "config.json has rope_scaling beside rope_parameters, and they differ: write what is meant into "
                "rope_parameters, and leave rope_scaling out"
            )
        settings = {**added, **settings}
    partial = "partial_rotary_factor"
    if any(isinstance(value, dict) for value in settings.values()):
        raise UnsupportedModelError("RoPE settings that differ between layers are not supported")
    if any(factor not in (None, 1) for factor in (settings.get(partial), fields[partial])):
        raise UnsupportedModelError("partial_rotary_factor is not supported: RoPE covers whole heads")
    theta = Fields(settings, "config.json").number("rope_theta", fields.number("rope_theta", 10000.0))
    return theta, RopeScaling.from_huggingface(settings)


def _read_sliding_window(fields: Fields, model_type: ModelType, layers: int) -> int | None:
    """Return the window that every layer shares.

    Raises:
        UnsupportedModelError: some layers have a window and others have none.
    """
    if model_type == "llama" or fields["sliding_window"] is None:
        return None
    window = fields.integer("sliding_window")
    if model_type == "mistral":
        return window
    if not fields.boolean("use_sliding_window", False):
        return None
    first = fields.integer("max_window_layers", minimum=0)
    kinds = fields["layer_types"] or ["full_attention"] * min(first, layers) + ["sliding_attention"] * (layers - first)
    if kinds == ["full_attention"] * layers:
        return None
    if kinds == ["sliding_attention"] * layers:
        return window
    raise UnsupportedModelError("a sliding window in some layers only is not supported")
