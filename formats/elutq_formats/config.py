"""Model configuration: one frozen record, under Hugging Face's field names, and the blocks that follow from it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from elutq_formats.block import Activation, Branch, Layer
from elutq_formats.constants import (
    MAX_CONTEXT,
    MAX_EXPERTS,
    MAX_HEAD_DIM,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_VOCABULARY,
    MAX_WIDTH,
)
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
    "n_experts": MAX_EXPERTS,
    "expert_intermediate_size": MAX_WIDTH,
    "shared_expert_intermediate_size": MAX_WIDTH,
}


def check_limits(settings: Mapping[str, Any]) -> None:
    """Refuse numbers that no model has, as far as they are there: before anything is made as long as one of them.

    Raises:
        UnsupportedModelError: naming the first.
    """
    for name, limit in _LIMITS.items():
        if (value := settings.get(name)) is not None and value > limit:
            raise UnsupportedModelError(f"{name} {value} is more than {limit}")


@dataclass(frozen=True)
class ModelConfig:
    """Hyper-parameters of a supported model.

    Attributes:
        model_type: the family.
        hidden_size: width of the residual stream.
        intermediate_size: width of the MLP, where a layer has no experts.
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
        n_experts: MLPs of a layer of which each token is sent to some; 0: the model has none.
        n_experts_used: how many a token is sent to.
        expert_intermediate_size: width of an expert.
        shared_expert_intermediate_size: width of the expert that all tokens are sent to; 0: there is none.
        normalize_expert_weights: what the chosen experts' outputs are multiplied by comes to one.
        expert_layers: the layers that have experts in the place of an MLP, each layer's flag; None: all.
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
    n_experts: int = 0
    n_experts_used: int = 0
    expert_intermediate_size: int = 0
    shared_expert_intermediate_size: int = 0
    normalize_expert_weights: bool = False
    expert_layers: tuple[bool, ...] | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_limits(vars(self))
        if self.num_attention_heads % self.num_key_value_heads:
            raise CheckpointError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        for name, width in (("head_dim", self.head_dim), ("rotary_dim", self.rope_dimensions)):
            if width % 2 or not 0 < width <= self.head_dim:
                raise CheckpointError(f"{name} {width} is odd or not up to the head's: RoPE turns pairs of features")
        for name in ("sliding_layers", "rope_layers", "expert_layers"):
            if (flags := getattr(self, name)) is not None and len(flags) != self.num_hidden_layers:
                raise CheckpointError(f"there are {self.num_hidden_layers} layers, and {name} names {len(flags)}")
        if self.rope_scaling is not None:
            self.rope_scaling.check(self.rope_dimensions, self.rope_theta)
        if not (self.norm_before or self.norm_after):
            raise UnsupportedModelError("blocks without norms are not supported")
        if self.n_experts and self.expert_layers is not None and not any(self.expert_layers):
            raise CheckpointError(f"none of the layers has any of the {self.n_experts} experts")
        if not 0 <= self.n_experts_used <= self.n_experts or (self.n_experts > 0) != (self.n_experts_used > 0):
            raise CheckpointError(f"of {self.n_experts} experts {self.n_experts_used} are used")
        if (self.n_experts > 0) != (self.expert_intermediate_size > 0):
            raise CheckpointError(f"{self.n_experts} experts have a width of {self.expert_intermediate_size}")

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
        before = ("input_layernorm", "post_attention_layernorm") if self.norm_before else (None, None)
        after = ("post_self_attn_layernorm", "post_mlp_layernorm") if self.norm_after else (None, None)
        branches = (
            Branch("attention", before[0], attention, "self_attn.o_proj", after[0]),
            self._experts(before[1], after[1]) if self.has_experts(layer) else _gated("mlp", before[1], after[1]),
        )
        slides = self.sliding_window is not None and (self.sliding_layers is None or self.sliding_layers[layer])
        turns = self.rope_layers is None or self.rope_layers[layer]
        rope = self._local_rope() if slides and self.local_rope_theta is not None else self.rope
        return Layer(branches, self.sliding_window if slides else None, rope if turns else None)

    def has_experts(self, layer: int) -> bool:
        """Whether a layer has experts in the place of an MLP."""
        return self.n_experts > 0 and (self.expert_layers is None or self.expert_layers[layer])

    def _experts(self, before: str | None, after: str | None) -> Branch:
        beside = _gated("mlp.shared_expert", None, None, "mlp.shared_expert_gate")
        shared = beside if self.shared_expert_intermediate_size else None
        return replace(_gated("mlp.experts", before, after), mixer="experts", router="mlp.gate", shared=shared)

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

    def linear_shapes(self, layer: int) -> dict[str, tuple[int, ...]]:
        """Return the matrices of a block, by name: (out_features, in_features), of experts (n_experts, out, in)."""
        hidden = self.hidden_size
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
        }
        for stem, stack, width in (
            ("mlp", (), self.intermediate_size),
            ("mlp.experts", (self.n_experts,), self.expert_intermediate_size),
            ("mlp.shared_expert", (), self.shared_expert_intermediate_size),
        ):
            shapes |= {f"{stem}.{part}_proj": (*stack, width, hidden) for part in ("gate", "up")}
            shapes[f"{stem}.down_proj"] = (*stack, hidden, width)
        return {f"model.layers.{layer}.{name}.weight": shapes[name] for name in self.layer(layer).linears}

    def linear_names(self, layer: int) -> tuple[str, ...]:
        """Return the names of a block's matrices: q, k, v, o, gate, up, down; with experts those three are stacks."""
        return tuple(self.linear_shapes(layer))

    def vector_shapes(self, layer: int) -> dict[str, tuple[int, ...]]:
        """Return what stays in float32 of a block, by name: norms, biases, and what chooses among experts."""
        block, data = f"model.layers.{layer}.", self.layer(layer)
        shapes: dict[str, tuple[int, ...]] = {f"{block}{norm}.weight": (self.hidden_size,) for norm in data.norms}
        if (routed := data.routed) is not None:
            shapes[f"{block}{routed.router}.weight"] = (self.n_experts, self.hidden_size)
            if routed.shared is not None:
                shapes[f"{block}{routed.shared.gate}.weight"] = (self.hidden_size,)
        if self.qk_norm:
            heads = (("q", self.num_attention_heads), ("k", self.num_key_value_heads))
            for part, n_heads in heads:
                width = self.head_dim * (n_heads if self.qk_norm_spans_heads else 1)
                shapes[block + f"self_attn.{part}_norm.weight"] = (width,)
        biased = {"self_attn.o_proj": self.attention_output_bias}
        biased |= {f"self_attn.{part}_proj": self.attention_bias for part in "qkv"}
        biased |= {f"mlp.{part}_proj": self.mlp_bias for part in ("gate", "up", "down")}
        for name, shape in self.linear_shapes(layer).items():
            stem = name.removesuffix(".weight")
            if biased.get(stem.removeprefix(block), False):
                shapes[stem + ".bias"] = (shape[0],)
        return shapes

    def float_names(self) -> set[str]:
        """Return the tensors that a model file keeps in float32: all that are no matrices of linears."""
        of_blocks = (name for layer in range(self.num_hidden_layers) for name in self.vector_shapes(layer))
        return {*of_blocks, "model.norm.weight"}

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


def _gated(stem: str, before: str | None, after: str | None, gate: str | None = None) -> Branch:
    """Return a gated MLP: of linears under a name, between norms."""
    readers = f"{stem}.gate_proj", f"{stem}.up_proj"
    return Branch("gated", before, readers, f"{stem}.down_proj", after, gate=gate)
