"""The LLaMA-family transformer in float32: every supported family in the order of the published models.

An `Array` is a numpy array or a torch tensor; `xp` is the module that computes on it. Only what both modules call by
the same name is used and no activation is written in place, so that torch can differentiate through a `Block`.
Shapes: `...` stands for any number of batch axes (none for a single sequence), n for tokens.

Source: Touvron et al. 2023 (LLaMA); Su et al. 2021 (RoPE, in the half-split order of Hugging Face checkpoints);
Ainslie et al. 2023 (grouped-query attention); Jiang et al. 2023 (Mistral's sliding window); Qwen2 and Qwen3 reports.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from elutq_formats.config import ModelConfig

Array: TypeAlias = Any  # numpy array or torch tensor
Namespace: TypeAlias = Any  # the module numpy or torch
Observe: TypeAlias = Callable[[str, Array], None]
Multiply: TypeAlias = Callable[[Array, Array], Array]
"""Returns the product of two matrices."""
KeyValueCache: TypeAlias = dict[int, tuple[Array, Array]]
"""Layer -> keys (after RoPE) and values of the tokens so far, each (..., n, kv_heads, head_dim); starts empty."""

SHARED_INPUTS: Mapping[str, tuple[str, ...]] = {
    "self_attn.q_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}
"""Name that `observe` is called with -> all linears of a block that take that same input."""

QUERY_ROWS = 256
"""Queries per attention step: bounds the scores in memory and skips most keys that the causal mask hides."""

HIDDEN_BYTES = 1 << 28
"""Bytes of hidden state that `Transformer.window_logits` carries through the blocks at once."""


class WeightSource(Protocol):
    """What the transformer reads weights from: a checkpoint, or a model file that dequantizes."""

    @property
    def config(self) -> ModelConfig:
        """Hyper-parameters."""

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this Hugging Face name."""

    def load(self, name: str) -> NDArray[np.float32]:
        """Return one tensor by its Hugging Face name; matrices are (out_features, in_features)."""


def block_tensor_names(config: ModelConfig) -> tuple[str, ...]:
    """Return the tensors of one block, named without the prefix ``model.layers.N.``."""
    names = (*config.linear_shapes(0), *config.vector_shapes(0))
    return tuple(name.removeprefix("model.layers.0.") for name in names)


@dataclass(frozen=True)
class Positions:
    """Where n consecutive tokens stand in their sequence, and the rotations that belong there.

    Attributes:
        keys: (start + n,) integers 0, 1, ...: positions of all tokens so far.
        start: number of tokens before these n (those in the cache).
        cos: (n, head_dim / 2) float32.
        sin: (n, head_dim / 2) float32.
    """

    keys: Array
    start: int
    cos: Array
    sin: Array

    @staticmethod
    def of(
        config: ModelConfig, n_tokens: int, start: int = 0, convert: Callable[[NDArray[Any]], Array] = np.asarray
    ) -> Positions:
        """Compute the angles position * theta^(-2i / head_dim) / divisor_i in float64.

        Args:
            config: hyper-parameters; theta and the divisors of RoPE scaling come from here.
            n_tokens: number of tokens.
            start: position of the first of them.
            convert: makes the arrays `xp`'s own, for example ``lambda a: torch.asarray(a, device="cuda")``.
        """
        frequencies = config.rope_theta ** (-np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim)
        divisors = config.rope_divisors()
        if divisors is not None:
            frequencies = frequencies / divisors
        keys = np.arange(start + n_tokens)
        angles = keys[start:, None] * frequencies
        return Positions(
            keys=convert(keys),
            start=start,
            cos=convert(np.cos(angles).astype(np.float32)),
            sin=convert(np.sin(angles).astype(np.float32)),
        )


def rms_norm(x: Array, weight: Array, epsilon: float, xp: Namespace) -> Array:
    """Divide x: (..., d) by the root mean square of its last axis and multiply by weight: (d,)."""
    return x / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + epsilon) * weight


def silu(x: Array, xp: Namespace) -> Array:
    """Multiply x by sigmoid(x), through tanh because it cannot overflow."""
    return 0.5 * x * (1.0 + xp.tanh(0.5 * x))


def rotate(x: Array, cos: Array, sin: Array, xp: Namespace) -> Array:
    """Apply RoPE to x: (..., n, heads, head_dim); element i of a head turns with element i + head_dim / 2."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    cos, sin = cos[:, None, :], sin[:, None, :]
    return xp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)


def attend(q: Array, k: Array, v: Array, positions: Positions, window: int | None, xp: Namespace) -> Array:
    """Causal scaled dot-product attention; every KV head serves heads / kv_heads consecutive query heads.

    Args:
        q: (..., n, heads, head_dim), rotated.
        k: (..., start + n, kv_heads, head_dim), rotated.
        v: (..., start + n, kv_heads, head_dim).
        positions: of the n queries.
        window: a query sees itself and the window - 1 keys before it; None: all before it.
        xp: numpy or torch.

    Returns:
        (..., n, heads * head_dim)
    """
    *batch, n_tokens, n_heads, head_dim = q.shape
    n_kv_heads = k.shape[-2]
    q = (q * head_dim**-0.5).reshape(*batch, n_tokens, n_kv_heads, n_heads // n_kv_heads, head_dim)
    q = xp.moveaxis(q, -4, -2)  # (..., kv_heads, heads / kv_heads, n, head_dim)
    k = xp.moveaxis(k, -3, -1)[..., None, :, :]  # (..., kv_heads, 1, head_dim, start + n)
    v = xp.moveaxis(v, -3, -2)[..., None, :, :]  # (..., kv_heads, 1, start + n, head_dim)
    outputs = []
    for row in range(0, n_tokens, QUERY_ROWS):
        rows = slice(row, min(row + QUERY_ROWS, n_tokens))
        first_query, end = positions.start + rows.start, positions.start + rows.stop
        begin = 0 if window is None else max(0, first_query - window + 1)
        queries, keys = positions.keys[first_query:end, None], positions.keys[None, begin:end]
        masked = keys > queries
        if window is not None:
            masked = masked | (keys <= queries - window)
        scores = xp.where(masked, -np.inf, q[..., rows, :] @ k[..., begin:end])
        weights = xp.exp(scores - xp.amax(scores, axis=-1, keepdims=True))
        outputs.append((weights @ v[..., begin:end, :]) / xp.sum(weights, axis=-1, keepdims=True))
    out = xp.moveaxis(xp.concatenate(outputs, axis=-2), -2, -4)  # (..., n, kv_heads, heads / kv_heads, head_dim)
    return out.reshape(*batch, n_tokens, n_heads * head_dim)


class Block:
    """One transformer block: x + attention(norm(x)), then that + mlp(norm(that)).

    Attributes:
        weights: tensors by `block_tensor_names`; replace an entry to run with other (dequantized) weights.
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
            observe: called with a linear's name and its input (..., n, in_features), once for each of
                `SHARED_INPUTS`, before the linear runs.
            cache: keys and values of earlier tokens, extended by these n; None: there are no earlier tokens.

        Returns:
            (..., n, hidden_size) float32
        """
        if positions is None:
            positions = Positions.of(self.config, x.shape[-2], convert=self.xp.asarray)
        x = x + self.attention(self.norm("input_layernorm", x), positions, observe, cache)
        return x + self.mlp(self.norm("post_attention_layernorm", x), observe)

    def attention(
        self, x: Array, positions: Positions, observe: Observe | None = None, cache: KeyValueCache | None = None
    ) -> Array:
        """Self-attention of the normalised x: (..., n, hidden_size) -> (..., n, hidden_size)."""
        if observe is not None:
            observe("self_attn.q_proj", x)
        out = self.attention_values(x, positions, cache)
        if observe is not None:
            observe("self_attn.o_proj", out)
        return self.linear("self_attn.o_proj", out)

    def attention_values(self, x: Array, positions: Positions, cache: KeyValueCache | None = None) -> Array:
        """What the heads gather, before the output projection: (..., n, hidden_size) -> (..., n, heads * head_dim)."""
        xp, head_dim = self.xp, self.config.head_dim
        q = self.linear("self_attn.q_proj", x).reshape(*x.shape[:-1], self.config.num_attention_heads, head_dim)
        k = self.linear("self_attn.k_proj", x).reshape(*x.shape[:-1], self.config.num_key_value_heads, head_dim)
        v = self.linear("self_attn.v_proj", x).reshape(*x.shape[:-1], self.config.num_key_value_heads, head_dim)
        if self.config.qk_norm:
            q, k = self.norm("self_attn.q_norm", q), self.norm("self_attn.k_norm", k)
        q, k = rotate(q, positions.cos, positions.sin, xp), rotate(k, positions.cos, positions.sin, xp)
        if cache is not None:
            if self.layer in cache:
                past_k, past_v = cache[self.layer]
                k, v = xp.concatenate((past_k, k), axis=-3), xp.concatenate((past_v, v), axis=-3)
            cache[self.layer] = (k, v)
        return attend(q, k, v, positions, self.config.sliding_window, xp)

    def mlp(self, x: Array, observe: Observe | None = None) -> Array:
        """SwiGLU of the normalised x: (..., n, hidden_size) -> (..., n, hidden_size)."""
        if observe is not None:
            observe("mlp.gate_proj", x)
        product = self.gated_values(x)
        if observe is not None:
            observe("mlp.down_proj", product)
        return self.linear("mlp.down_proj", product)

    def gated_values(self, x: Array) -> Array:
        """The gated hidden layer, before the down projection: (..., n, hidden_size) -> (..., n, intermediate_size)."""
        return silu(self.linear("mlp.gate_proj", x), self.xp) * self.linear("mlp.up_proj", x)

    def norm(self, name: str, x: Array) -> Array:
        """RMS norm of the last axis of x by the weight of this name."""
        return rms_norm(x, self.weights[f"{name}.weight"], self.config.rms_norm_eps, self.xp)

    def linear(self, name: str, x: Array) -> Array:
        """x: (..., in_features) times the transposed weight: (out_features, in_features), plus the bias if any."""
        weight, bias = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
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
        return self.multiply(rms_norm(x, self.norm, self.config.rms_norm_eps, self.xp), self.weight.T)


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
        names = block_tensor_names(self.config)
        weights = {name: self.load(f"model.layers.{layer}.{name}") for name in names}
        return Block(self.config, layer, weights, self.xp, self.multiply)

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

    def hidden(self, tokens: Array, start: int = 0, cache: KeyValueCache | None = None) -> Array:
        """Return the last block's output for tokens: (..., n) at positions start, start + 1, ...

        Args:
            tokens: (..., n) integers.
            start: number of tokens already in the cache.
            cache: keys and values of those tokens, extended by these.

        Returns:
            (..., n, hidden_size) float32
        """
        x = self.embed(tokens)
        positions = Positions.of(self.config, x.shape[-2], start, self.convert)
        for block in self.blocks():
            x = block(x, positions, cache=cache)
        return x

    def logits(self, tokens: Array) -> Array:
        """Return the logits (..., n, vocab_size) float32 after each of tokens: (..., n)."""
        return self.head(self.hidden(tokens))

    def window_logits(self, windows: Array, advance: Callable[[float], None] = lambda _: None) -> Iterator[Array]:
        """Yield the logits (n, vocab_size) of each of many independent sequences, reading each block only once.

        Args:
            windows: (n_windows, n) integers.
            advance: called with the number of windows' worth of work just done; the calls add up to n_windows.
        """
        for group in self.window_hidden(windows, advance):
            head = self.load_head()
            for x in group:
                yield head(x)

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
