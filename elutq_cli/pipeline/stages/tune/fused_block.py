"""The reference block on torch's fused operations: what tuning runs, forwards and back."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

from elutq_cli.reference import Array, Block, KeyValueCache, Positions


class FusedBlock(Block):
    """A block of torch tensors, the same function as ``Block`` up to rounding.

    Attention keeps no scores for its gradient and takes a quarter of the time: on a processor more than all products.
    """

    def attention_values(self, x: Array, positions: Positions, cache: KeyValueCache | None = None) -> Array:
        """See ``Block``; there is no cache."""
        assert cache is None
        if self.config.attention_softcap is not None:
            return super().attention_values(x, positions)  # which torch has no operation for
        q, k, v = (self.heads(name, x) for name in ("q", "k", "v"))
        q, k = self.positioned("q", q, positions), self.positioned("k", k, positions)
        shared = q.shape[-2] // k.shape[-2]
        k, v = (part.repeat_interleave(shared, dim=-2) for part in (k, v))
        q, k, v = (part.transpose(-2, -3) for part in (q, k, v))
        window, keys = self.data.window, positions.keys
        if window is None or window >= len(keys):
            out = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            behind = keys[:, None] - keys[None, :]
            out = functional.scaled_dot_product_attention(q, k, v, attn_mask=(behind >= 0) & (behind < window))
        return out.transpose(-2, -3).flatten(-2)

    def gated_values(self, readers: tuple[str, ...], x: Array) -> Array:
        """See ``Block``."""
        gate = self.linear(readers[0], x)
        activated = (
            functional.silu(gate) if self.config.hidden_act == "silu" else functional.gelu(gate, approximate="tanh")
        )
        return activated * self.linear(readers[1], x)

    def norm(self, name: str, x: Array) -> Array:
        """See ``Block``."""
        weight = self.weights[f"{name}.weight"]
        return functional.rms_norm(x, weight.shape, weight, self.config.rms_norm_eps)


@contextmanager
def fast_products() -> Iterator[None]:
    """Let products of float32 on a processor be oneDNN's, in the block: twice as fast as MKL's on AMD's.

    Where the processor multiplies matrices of bfloat16 by itself (AMX), oneDNN rounds to that: for what is learned, not
    for what is measured.
    """
    matmul = torch.backends.mkldnn.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def learning_products(device: str) -> Callable[[Array, Array], Array]:
    """Return the product of a linear while it learns: of bfloat16 where the processor has that, twice as fast again.

    Sums are of float32. On SmolLM2-135M the KL divergence of the predictions moves by 0.0002, and the gradient turns by
    less than 2 degrees.
    """
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return multiply_halves if device == "cpu" and capabilities.get("avx512_bf16") else operator.matmul


def multiply_halves(a: Array, b: Array) -> Array:
    """Return the product of two matrices of float32, rounded to bfloat16 before and after."""
    return (a.bfloat16() @ b.bfloat16()).float()
