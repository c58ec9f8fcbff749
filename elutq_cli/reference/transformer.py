"""The LLaMA-family transformer in float32: every supported family in the order of the published models.

An `Array` is a numpy array or a torch tensor; `xp` is the module that computes on it. Only what both modules call by
the same name is used and no activation is written in place, so that torch can differentiate through a `Block`.
Shapes: `...` stands for any number of batch axes (none for a single sequence), n for tokens.

Source: Touvron et al. 2023 (LLaMA); Qwen2 and Qwen3 reports; see `attention` for what it is made of.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from elutq_cli.reference.activation import activate
from elutq_cli.reference.attention import Array, Namespace, Positions, attend, rotate, soften
from elutq_cli.reference.experts import Stack, run_experts
from elutq_formats.block import Branch
from elutq_formats.config import ModelConfig
from elutq_formats.expert_names import split_expert
from elutq_formats.safetensors_file import ALL_ROWS
from elutq_formats.tensor_record import STACK_DIMENSIONS

Observe: TypeAlias = Callable[[str, Array], None]
Multiply: TypeAlias = Callable[[Array, Array], Array]
"""Returns the product of two matrices."""
KeyValueCache: TypeAlias = dict[int, tuple[Array, Array]]
"""Layer -> keys (after RoPE) and values of the tokens so far, each (..., n, kv_heads, head_dim); starts empty."""

HIDDEN_BYTES = 1 << 28
"""Bytes of hidden state that `Transformer.window_logits` carries through the blocks at once."""


STACK_BYTES = 1 << 28
"""Bytes from which a stack of experts is not held: each is read when its turn comes."""


class WeightSource(Protocol):
    """What the transformer reads weights from: a checkpoint, or a model file that dequantizes."""

    @property
    def config(self) -> ModelConfig:
        """Hyper-parameters."""

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this Hugging Face name."""

    def load(self, name: str, *, rows: slice = ALL_ROWS) -> NDArray[np.float32]:
        """Return one tensor, or part of its first axis, by its Hugging Face name.

        Matrices are (out_features, in_features), stacks of experts' (n_experts, out_features, in_features).
        """


def block_tensor_names(config: ModelConfig, layer: int) -> tuple[str, ...]:
    """Return the tensors of one block, named without the prefix ``model.layers.N.``."""
    names = (*config.linear_shapes(layer), *config.vector_shapes(layer))
    return tuple(name.removeprefix(f"model.layers.{layer}.") for name in names)


def rms_norm(x: Array, weight: Array, epsilon: float, xp: Namespace) -> Array:
    """Divide x: (..., d) by the root mean square of its last axis and multiply by weight: (d,)."""
    return x / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + epsilon) * weight


class Block:
    """One transformer block: each of its branches reads the residual stream, and what it makes of it is added.

    Attributes:
        data: what the block is made of.
        weights: tensors by `block_tensor_names`; replace an entry to run with other (dequantized) weights. One under
            an expert's own name, ``mlp.experts.3.up_proj.weight``, stands before the stack's.
    """

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        weights: Mapping[str, Array],
        xp: Namespace = np,
        multiply: Multiply = operator.matmul,
    ) -> None:
        self.config = config
        self.layer = layer
        self.data = config.layer(layer)
        self.weights = dict(weights)
        self.xp = xp
        self.multiply = multiply

    def copy(self) -> Block:
        """Return a block with the same weights, to replace some of them."""
        return Block(self.config, self.layer, self.weights, self.xp, self.multiply)

    def __call__(
        self,
        x: Array,
        positions: Positions | None = None,
        observe: Observe | None = None,
        cache: KeyValueCache | None = None,
    ) -> Array:
        """Run the block.

        Args:
            x: (..., n, hidden_size) float32.
            positions: of the n tokens; None: they are a sequence's first.
            observe: called with the first of the linears that share an input, and that input (..., n, in_features),
                before they run.
            cache: keys and values of earlier tokens, extended by these n; None: there are no earlier tokens.

        Returns:
            (..., n, hidden_size) float32
        """
        if positions is None:
            positions = Positions.of(self.config, x.shape[-2], convert=self.xp.asarray)
        for branch in self.data.branches:
            x = x + self.run(branch, x, positions, observe, cache)
        return x

    def run(
        self,
        branch: Branch,
        x: Array,
        positions: Positions,
        observe: Observe | None = None,
        cache: KeyValueCache | None = None,
    ) -> Array:
        """What a branch adds to the stream x: (..., n, hidden_size) -> (..., n, hidden_size)."""
        return self.finish(branch, self.write(branch, self.read(branch, x), positions, observe, cache))

    def write(
        self,
        branch: Branch,
        read: Array,
        positions: Positions,
        observe: Observe | None = None,
        cache: KeyValueCache | None = None,
    ) -> Array:
        """What a branch's writer makes of what its readers take: (..., n, hidden_size) -> (..., n, hidden_size)."""
        if branch.mixer == "experts":
            return run_experts(self, branch, read, observe)
        if observe is not None:
            observe(branch.readers[0], read)
        mixed = self.mix(branch, read, positions, cache)
        if observe is not None:
            observe(branch.writer, mixed)
        return self.linear(branch.writer, mixed)

    def read(self, branch: Branch, x: Array) -> Array:
        """What a branch's readers take of the stream x: (..., n, hidden_size) -> (..., n, hidden_size)."""
        return x if branch.before is None else self.norm(branch.before, x)

    def mix(self, branch: Branch, x: Array, positions: Positions, cache: KeyValueCache | None = None) -> Array:
        """What a branch's writer takes, from its readers' input x: (..., n, hidden_size) -> (..., n, in_features)."""
        if branch.mixer == "attention":
            return self.attention_values(x, positions, cache)
        return self.gated_values(branch.readers, x)

    def finish(self, branch: Branch, x: Array) -> Array:
        """What is added to the stream, from the output x of a branch's writer: both (..., n, hidden_size)."""
        return x if branch.after is None else self.norm(branch.after, x)

    def attention_values(self, x: Array, positions: Positions, cache: KeyValueCache | None = None) -> Array:
        """What the heads gather, before the output projection: (..., n, hidden_size) -> (..., n, heads * head_dim)."""
        q, k, v = (self.heads(name, x) for name in ("q", "k", "v"))
        q, k, xp = self.positioned("q", q, positions), self.positioned("k", k, positions), self.xp
        if cache is not None:
            if self.layer in cache:
                past_k, past_v = cache[self.layer]
                k, v = xp.concatenate((past_k, k), axis=-3), xp.concatenate((past_v, v), axis=-3)
            cache[self.layer] = (k, v)
        return attend(q, k, v, positions, self.data.window, xp, self.config.attention_softcap)

    def heads(self, name: str, x: Array) -> Array:
        """Project the normalised x: (..., n, hidden_size) to q, k or v: (..., n, heads or kv_heads, head_dim)."""
        return self.linear(f"self_attn.{name}_proj", x).reshape(*x.shape[:-1], -1, self.config.head_dim)

    def positioned(self, name: str, x: Array, positions: Positions) -> Array:
        """Normalise q or k: (..., n, heads, head_dim) where the family does, and apply RoPE where the layer has one."""
        if self.config.qk_norm:
            x = self.norm(f"self_attn.{name}_norm", self.normed_together(x)).reshape(x.shape)
        return x if self.data.rope is None else rotate(x, *positions.turns[self.data.rope], self.xp)

    def normed_together(self, x: Array) -> Array:
        """What the norm of q or k takes together: (..., n, heads, head_dim), or (..., n, heads * head_dim)."""
        return x.reshape(*x.shape[:-2], -1) if self.config.qk_norm_spans_heads else x

    def gated_values(self, readers: tuple[str, ...], x: Array) -> Array:
        """The gated hidden layer, before the down projection: (..., hidden_size) -> (..., intermediate_size)."""
        gate, up = readers
        return activate(self.config.hidden_act, self.linear(gate, x), self.xp) * self.linear(up, x)

    def norm(self, name: str, x: Array) -> Array:
        """RMS norm of the last axis of x by the weight of this name."""
        return rms_norm(x, self.weights[f"{name}.weight"], self.config.rms_norm_eps, self.xp)

    def weight(self, name: str) -> Array:
        """The weights of a linear: (out_features, in_features), those of an expert's own out of their stack."""
        own = self.weights.get(f"{name}.weight")
        if own is None and (found := split_expert(name)) is not None:
            return self.weights[f"{found[0]}.weight"][found[1]]
        return own

    def linear(self, name: str, x: Array) -> Array:
        """x: (..., in_features) times the transposed weight: (out_features, in_features), plus the bias if any."""
        weight, bias = self.weight(name), self.weights.get(f"{name}.bias")
        y = self.multiply(x.reshape(-1, x.shape[-1]), weight.T)  # one matrix product for all sequences
        y = y.reshape(*x.shape[:-1], weight.shape[0])
        return y if bias is None else y + bias


class Head:
    """The last norm and the output projection.

    Attributes:
        norm: (hidden_size,) float32.
        weight: (vocab_size, hidden_size) float32.
    """

    def __init__(
        self,
        config: ModelConfig,
        norm: Array,
        weight: Array,
        xp: Namespace = np,
        multiply: Multiply = operator.matmul,
    ) -> None:
        self.config = config
        self.norm = norm
        self.weight = weight
        self.xp = xp
        self.multiply = multiply

    def __call__(self, x: Array) -> Array:
        """Turn the last block's output x: (..., hidden_size) into logits (..., vocab_size)."""
        logits = self.multiply(rms_norm(x, self.norm, self.config.rms_norm_eps, self.xp), self.weight.T)
        return soften(logits, self.config.logit_softcap, self.xp)


class Transformer:
    """A model whose weights are read when they are needed.

    With ``keep=False`` one block is in memory at a time and every pass reads the source again, so that a checkpoint
    larger than memory runs; with ``keep=True`` what was read stays.
    """

    def __init__(
        self,
        source: WeightSource,
        keep: bool = False,
        xp: Namespace = np,
        convert: Callable[[NDArray[Any]], Array] | None = None,
        multiply: Multiply = operator.matmul,
    ) -> None:
        """Read nothing yet.

        Args:
            source: where weights come from; it has to stay open.
            keep: whether to hold on to weights once read.
            xp: numpy or torch.
            convert: makes a numpy array `xp`'s own (device, type); None: ``xp.asarray``.
            multiply: computes the products with weights.
        """
        self.source = source
        self.config = source.config
        self.keep = keep
        self.xp = xp
        self.convert: Callable[[NDArray[Any]], Array] = xp.asarray if convert is None else convert
        self.multiply = multiply
        self._kept: dict[str, Array] = {}

    def load(self, name: str) -> Array:
        """Return one tensor by its Hugging Face name."""
        if name in self._kept:
            return self._kept[name]
        tensor = self.convert(self.source.load(name))
        if self.keep:
            self._kept[name] = tensor
        return tensor

    def embed(self, tokens: Array) -> Array:
        """Look up tokens: (..., n) integers -> (..., n, hidden_size) float32."""
        return self.load("model.embed_tokens.weight")[tokens]

    def block(self, layer: int) -> Block:
        """Read one block."""
        shapes = self.config.linear_shapes(layer)
        weights: dict[str, Array] = {}
        for name in block_tensor_names(self.config, layer):
            full = f"model.layers.{layer}.{name}"
            shape = shapes.get(full, ())
            large = len(shape) == STACK_DIMENSIONS and 4 * math.prod(shape) > STACK_BYTES
            weights[name] = Stack(shape, partial(self._expert, full)) if large and not self.keep else self.load(full)
        return Block(self.config, layer, weights, self.xp, self.multiply)

    def _expert(self, name: str, number: int) -> Array:
        return self.convert(self.source.load(name, rows=slice(number, number + 1))[0])

    def blocks(self) -> Iterator[Block]:
        """Read the blocks in order, one at a time."""
        for layer in range(self.config.num_hidden_layers):
            yield self.block(layer)

    def load_head(self) -> Head:
        """Read the last norm and the output projection (the embedding, when the head is tied)."""
        tied = not self.source.has("lm_head.weight")
        weight = self.load("model.embed_tokens.weight" if tied else "lm_head.weight")
        return Head(self.config, self.load("model.norm.weight"), weight, self.xp, self.multiply)

    def head(self, x: Array) -> Array:
        """Turn the last block's output x: (..., hidden_size) into logits (..., vocab_size)."""
        return self.load_head()(x)

    def hidden(
        self, tokens: Array, start: int = 0, cache: KeyValueCache | None = None, length: int | None = None
    ) -> Array:
        """Return the last block's output for tokens: (..., n) at positions start, start + 1, ...

        Args:
            tokens: (..., n) integers.
            start: number of tokens already in the cache.
            cache: keys and values of those tokens, extended by these.
            length: tokens that the sequence will have; None: these are its last.

        Returns:
            (..., n, hidden_size) float32
        """
        x = self.embed(tokens)
        positions = Positions.of(self.config, x.shape[-2], start, self.convert, length)
        for block in self.blocks():
            x = block(x, positions, cache=cache)
        return x

    def logits(self, tokens: Array) -> Array:
        """Return the logits (..., n, vocab_size) float32 after each of tokens: (..., n)."""
        return self.head(self.hidden(tokens))

    def window_logits(
        self,
        windows: Array,
        advance: Callable[[float], None] = lambda _: None,
        n_logits: Sequence[int] | None = None,
    ) -> Iterator[Array]:
        """Yield the logits of each of many independent sequences, reading each block only once.

        Args:
            windows: (n_windows, n) integers.
            advance: called with the number of windows' worth of work just done; the calls add up to n_windows.
            n_logits: of each window, after how many of its last tokens logits are wanted: (n_logits, vocab_size);
                None: after all.
        """
        wanted = iter([windows.shape[1]] * len(windows) if n_logits is None else n_logits)
        for group in self.window_hidden(windows, advance):
            head = self.load_head()
            for x in group:
                yield head(x[-next(wanted) :])

    def window_hidden(self, windows: Array, advance: Callable[[float], None] = lambda _: None) -> Iterator[list[Array]]:
        """Yield what the head is given, (n, hidden_size) for each sequence, for as many at once as fit into memory.

        Args:
            windows: (n_windows, n) integers.
            advance: called with the number of windows' worth of work just done; the calls add up to n_windows.
        """
        n_windows, n_tokens = windows.shape
        positions = Positions.of(self.config, n_tokens, convert=self.convert)
        group = max(1, HIDDEN_BYTES // (4 * n_tokens * self.config.hidden_size))
        for first in range(0, n_windows, group):
            hidden = list(self.embed(windows[first : first + group]))
            for block in self.blocks():
                for index, x in enumerate(hidden):
                    hidden[index] = block(x, positions)
                    advance(1.0 / self.config.num_hidden_layers)
            yield hidden
