"""The transformer's backward pass: what a loss thinks of the residual stream and of what the linears add to it.

It computes no gradients of weights. Arrays, `xp` and shapes are those of `transformer`.

Source: reverse-mode differentiation of `Block` and `Head`. As in Dao et al. 2022 (FlashAttention), the weights of
attention are computed again, those of some queries at a time, and never all held.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from elutq_cli.reference.attention import (
    Array,
    Namespace,
    Positions,
    attention_pieces,
    by_kv_head,
    by_token,
    rotate,
    soften,
)
from elutq_cli.reference.experts import experts_gradient, gated_gradient
from elutq_cli.reference.transformer import Block, Head, Observe
from elutq_formats.block import Branch

Back: TypeAlias = Callable[[str, Array], Array]
"""Goes back through a linear of the block, by its name: (..., out_features) -> (..., in_features)."""

LOGIT_ROWS = 128
"""Tokens whose logits `prediction_gradient` holds at once, because a vocabulary is long."""

DRAWN_AT_ONCE = 16
"""Those of them that are drawn at once, from sums that are twice as large."""


def block_gradients(
    block: Block, x: Array, gradient: Array, positions: Positions, observe: Observe | None = None
) -> tuple[Array, ...]:
    """Run a block again and go back through it.

    Args:
        block: the block.
        x: (..., n, hidden_size) float32, its input; there are no earlier tokens in a cache.
        gradient: (..., n, hidden_size) float32, of the loss with respect to the block's output.
        positions: of the n tokens, from 0 on.
        observe: called with the name of each linear and the gradient with respect to its output (..., out_features).

    Returns:
        Gradients with respect to the residual stream before each branch, the block's input first: (..., n, hidden_size)
        float32.
    """
    back, found = partial(linear_gradient, block, observe), []
    streams = [x]
    for branch in block.data.branches[:-1]:
        streams.append(streams[-1] + block.run(branch, streams[-1], positions))
    for branch, before in zip(reversed(block.data.branches), reversed(streams), strict=True):
        gradient = gradient + branch_gradient(block, branch, back, before, gradient, positions)
        found.append(gradient)
    return tuple(reversed(found))


def branch_gradient(block: Block, branch: Branch, back: Back, x: Array, gradient: Array, positions: Positions) -> Array:
    """Go back through ``block.run(branch, x, positions)``: (..., n, hidden_size) -> (..., n, hidden_size)."""
    read = block.read(branch, x)
    if branch.after is not None:
        gradient = norm_gradient(block, branch.after, block.write(branch, read, positions), gradient)
    if branch.mixer == "experts":
        of_read = experts_gradient(block, branch, back, read, gradient)
    elif branch.mixer == "attention":
        of_read = attention_gradient(block, back, read, back(branch.writer, gradient), positions)
    else:
        of_read = gated_gradient(block, branch, back, read, back(branch.writer, gradient))
    return of_read if branch.before is None else norm_gradient(block, branch.before, x, of_read)


def prediction_gradient(
    head: Head, x: Array, uniform: Array, observe: Callable[[Array], None] = lambda gradient: None
) -> Array:
    """Draw a next token after each of a sequence's tokens, and differentiate -log of their probabilities, summed.

    Labels that the model itself draws make the mean of the gradient's outer product with itself the Fisher information
    (Kunstner et al. 2019); labels from a text would not.

    Args:
        head: the last norm and the output projection.
        x: (n, hidden_size) float32, the last block's output.
        uniform: (n,), numbers at least 0 and below 1, which draw the labels.
        observe: called with the gradient at the head's outputs, (tokens, vocab_size), LOGIT_ROWS tokens at a time.

    Returns:
        (n, hidden_size) float32, the gradient with respect to x.
    """
    runs = [slice(first, first + LOGIT_ROWS) for first in range(0, len(x), LOGIT_ROWS)]
    return head.xp.concatenate([_prediction_gradient(head, x[rows], uniform[rows], observe) for rows in runs], axis=0)


def _prediction_gradient(head: Head, x: Array, uniform: Array, observe: Callable[[Array], None]) -> Array:
    """Return what `prediction_gradient` does, of LOGIT_ROWS tokens: one array of the logits' size is held at a time."""
    xp, softcap = head.xp, head.config.logit_softcap
    logits = head(x)
    slope = None if softcap is None else softcap_slope(logits, softcap)
    logits -= xp.amax(logits, axis=-1, keepdims=True)
    weights = xp.exp(logits, out=logits)
    drawn = draw(weights, uniform, xp)
    weights /= xp.sum(weights, axis=-1, keepdims=True)
    weights[xp.arange(len(x)), drawn] -= 1.0
    if slope is not None:
        weights *= slope
    observe(weights)
    of_normalised = head.multiply(weights, head.weight)
    return rms_norm_gradient(x, head.norm, head.config.rms_norm_eps, of_normalised, xp)


def softcap_slope(softened: Array, softcap: float) -> Array:
    """Return the derivative of `soften`, from its value."""
    share = softened / softcap
    return 1.0 - share * share


def draw(weights: Array, uniform: Array, xp: Namespace) -> Array:
    """Draw one index per row in proportion to weights: (n, choices), none negative; returns (n,) integers.

    The sums are float64: in float32 those of a long vocabulary's tail would not grow.
    """
    found = []
    for first in range(0, len(weights), DRAWN_AT_ONCE):
        sums = xp.cumsum(weights[first : first + DRAWN_AT_ONCE], axis=-1, dtype=xp.float64)
        thresholds = uniform[first : first + DRAWN_AT_ONCE, None] * sums[:, -1:]
        found.append(xp.sum(sums <= thresholds, axis=-1))  # a number is below 1: the last sum is above its threshold
    return xp.concatenate(found)


def rms_norm_gradient(x: Array, weight: Array, epsilon: float, gradient: Array, xp: Namespace) -> Array:
    """Gradient with respect to the input x: (..., d) of `rms_norm`, from that with respect to its output: (..., d)."""
    inverse = 1.0 / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + epsilon)
    direction, scaled = x * inverse, gradient * weight
    return inverse * (scaled - direction * xp.mean(direction * scaled, axis=-1, keepdims=True))


def norm_gradient(block: Block, name: str, x: Array, gradient: Array) -> Array:
    """Go back through ``block.norm(name, x)``: (..., d) -> (..., d)."""
    return rms_norm_gradient(x, block.weights[f"{name}.weight"], block.config.rms_norm_eps, gradient, block.xp)


def linear_gradient(block: Block, observe: Observe | None, name: str, gradient: Array) -> Array:
    """Go back through ``block.linear(name, ...)``: (..., out_features) -> (..., in_features)."""
    if observe is not None:
        observe(name, gradient)
    weight = block.weight(name)
    product = block.multiply(gradient.reshape(-1, gradient.shape[-1]), weight)
    return product.reshape(*gradient.shape[:-1], weight.shape[1])


def heads_gradient(back: Back, name: str, gradient: Array) -> Array:
    """Go back through ``block.heads(name, ...)``: (..., n, heads or kv_heads, head_dim) -> (..., n, hidden_size)."""
    return back(f"self_attn.{name}_proj", gradient.reshape(*gradient.shape[:-2], -1))


def positioned_gradient(block: Block, name: str, x: Array, gradient: Array, positions: Positions) -> Array:
    """Go back through ``block.positioned(name, x, positions)``: both (..., n, heads or kv_heads, head_dim)."""
    if block.data.rope is not None:
        cos, sin = positions.turns[block.data.rope]
        gradient = rotate(gradient, cos, -sin, block.xp)  # a rotation's transpose turns back
    if not block.config.qk_norm:
        return gradient
    together = block.normed_together(x), block.normed_together(gradient)
    return norm_gradient(block, f"self_attn.{name}_norm", *together).reshape(x.shape)


def attention_gradient(block: Block, back: Back, x: Array, gradient: Array, positions: Positions) -> Array:
    """Go back through ``block.attention_values(x, positions)``: (..., n, heads * head_dim) -> (..., n, hidden_size)."""
    raw_q, raw_k, v = (block.heads(name, x) for name in ("q", "k", "v"))
    q, k = block.positioned("q", raw_q, positions), block.positioned("k", raw_k, positions)
    of_q, of_k, of_v = attention_gradients(
        q, k, v, gradient.reshape(q.shape), positions, block.data.window, block.xp, block.config.attention_softcap
    )
    of_q = positioned_gradient(block, "q", raw_q, of_q, positions)
    of_k = positioned_gradient(block, "k", raw_k, of_k, positions)
    return heads_gradient(back, "q", of_q) + heads_gradient(back, "k", of_k) + heads_gradient(back, "v", of_v)


def attention_gradients(
    q: Array,
    k: Array,
    v: Array,
    gradient: Array,
    positions: Positions,
    window: int | None,
    xp: Namespace,
    softcap: float | None = None,
) -> tuple[Array, Array, Array]:
    """Go back through ``attend(q, k, v, positions, window, xp, softcap)``.

    Args:
        q: (..., n, heads, head_dim), rotated.
        k: (..., n, kv_heads, head_dim), rotated.
        v: (..., n, kv_heads, head_dim).
        gradient: (..., n, heads, head_dim), with respect to the heads' values.
        positions: of the n tokens, from 0 on.
        window: see `attention_pieces`.
        xp: numpy or torch.
        softcap: of the scores; None: none.

    Returns:
        The gradients with respect to q, k and v, in their shapes.
    """
    shape, kv_shape, scale = q.shape, k.shape, q.shape[-1] ** -0.5
    q, k, v, gradient = (by_kv_head(each, kv_shape[-2], xp) for each in (q * scale, k, v, gradient))
    of_q, of_k, of_v = [], xp.zeros_like(k), xp.zeros_like(v)
    for rows, keys, weights in attention_pieces(q, k, positions, window, xp, softcap):
        weights = weights / xp.sum(weights, axis=-1, keepdims=True)
        of_weights = gradient[..., rows, :] @ v[..., keys, :].swapaxes(-1, -2)
        of_scores = weights * (of_weights - xp.sum(weights * of_weights, axis=-1, keepdims=True))
        if softcap is not None:
            scores = soften(q[..., rows, :] @ k[..., keys, :].swapaxes(-1, -2), softcap, xp)
            of_scores = of_scores * softcap_slope(scores, softcap)
        of_q.append(of_scores @ k[..., keys, :])
        of_k[..., keys, :] += product_over_queries(of_scores, q[..., rows, :])
        of_v[..., keys, :] += product_over_queries(weights, gradient[..., rows, :])
    of_q = by_token(xp.concatenate(of_q, axis=-2), xp).reshape(shape)
    return of_q * scale, by_token(of_k, xp).reshape(kv_shape), by_token(of_v, xp).reshape(kv_shape)


def product_over_queries(left: Array, right: Array) -> Array:
    """Return left^T @ right, summed over the query heads of each KV head.

    Args:
        left: (..., kv_heads, heads / kv_heads, queries, keys).
        right: (..., kv_heads, heads / kv_heads, queries, head_dim).

    Returns:
        (..., kv_heads, 1, keys, head_dim)
    """
    left, right = (each.reshape(*each.shape[:-3], 1, -1, each.shape[-1]) for each in (left, right))
    return left.swapaxes(-1, -2) @ right
