"""Model configuration: one frozen record, under Hugging Face's field names, and the blocks that follow from it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from elutq_formats.block import Activation, Branch, Layer
from elutq_formats.constants import MAX_CONTEXT, MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, MAX_VOCABULARY, MAX_WIDTH
from elutq_formats.errors import CheckpointError, UnsupportedModelError
from elutq_formats.names import ROPE_FREQUENCIES, ROPE_LONG, ROPE_SHORT
from elutq_formats.rope import Rope, RopeScaling

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
        sliding_layers: the layers to which that applies, each layer's flag; None: to all.
        rope_layers: the layers whose heads turn, each layer's flag; None: all.
        rotary_dim: the first so many features of a head turn; None: all.
        local_rope_theta: base of the RoPE frequencies of layers with a window, which are then unscaled; None: the same.
        tie_word_embeddings: the output head is the embedding.
        attention_bias: q, k and v projections have a bias.
        attention_output_bias: the o projection has a bias.
        mlp_bias: gate, up and down projections have a bias.
        qk_norm: queries and keys pass an RMSNorm before RoPE, each head by itself.
        qk_norm_spans_heads: that norm is over all heads together.
        norm_before: what a branch reads of the residual stream passes an RMSNorm.
        norm_after: what a branch writes to it does.
        hidden_act: of the MLP's gate.
        attention_softcap: scores s are softcap * tanh(s / softcap); None: as they are.
        logit_softcap: the same of logits.
        bos_token_id: first token of a text, if the model has one: the tokenizer's, else what the configuration says.
        eos_token_ids: every token that ends a text, by the tokenizer or the configuration; the tokenizer's own first.
    """

    model_type: str
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
    sliding_layers: tuple[bool, ...] | None = None
    rope_layers: tuple[bool, ...] | None = None
    rotary_dim: int | None = None
    local_rope_theta: float | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    qk_norm_spans_heads: bool = False
    norm_before: bool = True
    norm_after: bool = False
    hidden_act: Activation = "silu"
    attention_softcap: float | None = None
    logit_softcap: float | None = None
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
        for name, width in (("head_dim", self.head_dim), ("rotary_dim", self.rope_dimensions)):
            if width % 2 or not 0 < width <= self.head_dim:
                raise CheckpointError(f"{name} {width} is odd or not up to the head's: RoPE turns pairs of features")
        for name in ("sliding_layers", "rope_layers"):
            if (flags := getattr(self, name)) is not None and len(flags) != self.num_hidden_layers:
                raise CheckpointError(f"there are {self.num_hidden_layers} layers, and {name} names {len(flags)}")
        if self.rope_scaling is not None:
            self.rope_scaling.check(self.rope_dimensions, self.rope_theta)
        if not (self.norm_before or self.norm_after):
            raise UnsupportedModelError("blocks without norms are not supported")

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
        from elutq_formats.huggingface_config import read_config  # which finds the family, and that makes a ModelConfig

        return read_config(config, generation_config or {}, tokenizer_ids or {})

    def layer(self, layer: int) -> Layer:
        """Return what a layer is made of."""
        attention = tuple(f"self_attn.{part}_proj" for part in "qkv")
        gated = "mlp.gate_proj", "mlp.up_proj"
        before = ("input_layernorm", "post_attention_layernorm") if self.norm_before else (None, None)
        after = ("post_self_attn_layernorm", "post_mlp_layernorm") if self.norm_after else (None, None)
        branches = (
            Branch("attention", before[0], attention, "self_attn.o_proj", after[0]),
            Branch("gated", before[1], gated, "mlp.down_proj", after[1]),
        )
        slides = self.sliding_window is not None and (self.sliding_layers is None or self.sliding_layers[layer])
        turns = self.rope_layers is None or self.rope_layers[layer]
        rope = self._local_rope() if slides and self.local_rope_theta is not None else self.rope
        return Layer(branches, self.sliding_window if slides else None, rope if turns else None)

    @property
    def rope_dimensions(self) -> int:
        """The features of a head that turn."""
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    @property
    def rope(self) -> Rope:
        """How heads turn where a layer has no RoPE of its own."""
        return Rope(self.rope_theta, self.rope_dimensions, self.rope_scaling)

    def _local_rope(self) -> Rope:
        assert self.local_rope_theta is not None
        return Rope(self.local_rope_theta, self.rope_dimensions)

    def rope_divisors(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return what each RoPE frequency is divided by, (rope_dimensions / 2,) float32, by its name in a model file.

        None when unscaled; two where those of sequences beyond the original context are others.
        """
        scaling, dimensions = self.rope_scaling, self.rope_dimensions
        if scaling is None:
            return {}
        if scaling.rope_type != "longrope":
            return {ROPE_FREQUENCIES: scaling.divisors(dimensions, self.rope_theta)}
        contexts = {ROPE_SHORT: 1, ROPE_LONG: scaling.original_max_position_embeddings + 1}
        return {name: scaling.divisors(dimensions, self.rope_theta, context) for name, context in contexts.items()}

    def linear_shapes(self, layer: int) -> dict[str, tuple[int, int]]:
        """Return the matrices of a block, by name: (out_features, in_features)."""
        hidden, intermediate = self.hidden_size, self.intermediate_size
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        shapes = {
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "mlp.gate_proj": (intermediate, hidden),
            "mlp.up_proj": (intermediate, hidden),
            "mlp.down_proj": (hidden, intermediate),
        }
        return {f"model.layers.{layer}.{name}.weight": shapes[name] for name in self.layer(layer).linears}

    def linear_names(self, layer: int) -> tuple[str, ...]:
        """Return the names of a block's matrices: q, k, v, o, gate, up, down."""
        return tuple(self.linear_shapes(layer))

    def vector_shapes(self, layer: int) -> dict[str, tuple[int]]:
        """Return the norms and biases of a block, by name."""
        block = f"model.layers.{layer}."
        shapes = {f"{block}{norm}.weight": (self.hidden_size,) for norm in self.layer(layer).norms}
        if self.qk_norm:
            heads = (("q", self.num_attention_heads), ("k", self.num_key_value_heads))
            for part, n_heads in heads:
                width = self.head_dim * (n_heads if self.qk_norm_spans_heads else 1)
                shapes[block + f"self_attn.{part}_norm.weight"] = (width,)
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
