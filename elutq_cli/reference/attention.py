"""Attention over a sequence: positions, the rotations that belong there (RoPE), and the causal softmax in pieces.

An `Array` is a numpy array or a torch tensor; `xp` is the module that computes on it.
Shapes: `...` stands for any number of batch axes (none for a single sequence), n for tokens.

Source: Su et al. 2021 (RoPE, in the half-split order of Hugging Face checkpoints); Ainslie et al. 2023 (grouped-query
attention); Jiang et al. 2023 (Mistral's sliding window).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from elutq_formats.config import ModelConfig
from elutq_formats.rope import Rope

Array: TypeAlias = Any  # numpy array or torch tensor
Namespace: TypeAlias = Any  # the module numpy or torch

QUERY_ROWS = 256
"""Queries per attention step: bounds the scores in memory and skips most keys that the causal mask hides."""


@dataclass(frozen=True)
class Positions:
    """Where n consecutive tokens stand in their sequence, and the rotations that belong there.

    Attributes:
        keys: (start + n,) integers 0, 1, ...: positions of all tokens so far.
        start: number of tokens before these n (those in the cache).
        turns: of each way in which a layer's heads turn, cosines and sines, (n, dimensions / 2) float32 both.
    """

    keys: Array
    start: int
    turns: Mapping[Rope, tuple[Array, Array]]

    @staticmethod
    def of(
        config: ModelConfig,
        n_tokens: int,
        start: int = 0,
        convert: Callable[[NDArray[Any]], Array] = np.asarray,
        length: int | None = None,
    ) -> Positions:
        """Compute the angles, position times frequency, in float64.

        Args:
            config: hyper-parameters, with the RoPE of each layer.
            n_tokens: number of tokens.
            start: position of the first of them.
            convert: makes the arrays `xp`'s own, for example ``lambda a: torch.asarray(a, device="cuda")``.
            length: tokens that the sequence will have, by which longrope goes; None: these are its last.
        """
        keys = np.arange(start + n_tokens)
        turns: dict[Rope, tuple[Array, Array]] = {}
        for rope in {config.layer(layer).rope for layer in range(config.num_hidden_layers)}:
            if rope is not None:
                angles = keys[start:, None] * rope.frequencies(start + n_tokens if length is None else length)
                cos, sin = rope.attention_factor * np.cos(angles), rope.attention_factor * np.sin(angles)
                turns[rope] = convert(cos.astype(np.float32)), convert(sin.astype(np.float32))
        return Positions(convert(keys), start, turns)


def rotate(x: Array, cos: Array, sin: Array, xp: Namespace) -> Array:
    """Apply RoPE to x: (..., n, heads, head_dim), by cos and sin: (n, half).

    Element i of a head turns with element i + half; what is behind both halves stays.
    """
    half = cos.shape[-1]
    first, second = x[..., :half], x[..., half : 2 * half]
    cos, sin = cos[:, None, :], sin[:, None, :]
    parts = [first * cos - second * sin, second * cos + first * sin]
    return xp.concatenate(parts if x.shape[-1] == 2 * half else [*parts, x[..., 2 * half :]], axis=-1)


def soften(x: Array, softcap: float | None, xp: Namespace) -> Array:
    """Keep x below a softcap, by tanh; None: it is as it is."""
    return x if softcap is None else softcap * xp.tanh(x / softcap)


def by_kv_head(x: Array, n_kv_heads: int, xp: Namespace) -> Array:
    """Heads under the KV head that serves them: (..., n, heads, d) -> (..., kv_heads, heads / kv_heads, n, d)."""
    *tokens, n_heads, head_dim = x.shape
    return xp.moveaxis(x.reshape(*tokens, n_kv_heads, n_heads // n_kv_heads, head_dim), -4, -2)


def by_token(x: Array, xp: Namespace) -> Array:
    """Undo `by_kv_head`, heads side by side: (..., kv_heads, heads / kv_heads, n, d) -> (..., n, heads * d)."""
    x = xp.moveaxis(x, -2, -4)
    return x.reshape(*x.shape[:-3], -1)


def attention_pieces(
    q: Array, k: Array, positions: Positions, window: int | None, xp: Namespace, softcap: float | None = None
) -> Iterator[tuple[slice, slice, Array]]:
    """Yield queries QUERY_ROWS at a time, the keys of which they see some, and exp(scores - the row's largest).

    Args:
        q: (..., kv_heads, heads / kv_heads, n, head_dim), scaled.
        k: (..., kv_heads, 1, start + n, head_dim).
        positions: of the n queries.
        window: a query sees itself and the window - 1 keys before it; None: all before it.
        xp: numpy or torch.
        softcap: of the scores; None: none.
    """
    n_tokens = q.shape[-2]
    for row in range(0, n_tokens, QUERY_ROWS):
        rows = slice(row, min(row + QUERY_ROWS, n_tokens))
        first_query, end = positions.start + rows.start, positions.start + rows.stop
        begin = 0 if window is None else max(0, first_query - window + 1)
        queries, keys = positions.keys[first_query:end, None], positions.keys[None, begin:end]
        masked = keys > queries
        if window is not None:
            masked = masked | (keys <= queries - window)
        scores = soften(q[..., rows, :] @ k[..., begin:end, :].swapaxes(-1, -2), softcap, xp)
        scores = xp.where(masked, -np.inf, scores)
        yield rows, slice(begin, end), xp.exp(scores - xp.amax(scores, axis=-1, keepdims=True))


def attend(
    q: Array, k: Array, v: Array, positions: Positions, window: int | None, xp: Namespace, softcap: float | None = None
) -> Array:
    """Causal scaled dot-product attention; every KV head serves heads / kv_heads consecutive query heads.

    Args:
        q: (..., n, heads, head_dim), rotated.
        k: (..., start + n, kv_heads, head_dim), rotated.
        v: (..., start + n, kv_heads, head_dim).
        positions: of the n queries.
        window: see `attention_pieces`.
        xp: numpy or torch.
        softcap: of the scores; None: none.

    Returns:
        (..., n, heads * head_dim)
    """
    head_dim, n_kv_heads = k.shape[-1], k.shape[-2]
    q, k, v = (by_kv_head(x, n_kv_heads, xp) for x in (q * head_dim**-0.5, k, v))
    outputs = [
        (weights @ v[..., keys, :]) / xp.sum(weights, axis=-1, keepdims=True)
        for _, keys, weights in attention_pieces(q, k, positions, window, xp, softcap)
    ]
    return by_token(xp.concatenate(outputs, axis=-2), xp)
