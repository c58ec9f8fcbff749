"""The activations of a gate, forwards and back, through tanh because it cannot overflow.

Arrays, `xp` and shapes are those of `transformer`.

Source: Elfwing et al. 2017 (SiLU); Hendrycks and Gimpel 2016 (GELU, by its approximation with tanh).
"""

from __future__ import annotations

import math

from elutq_cli.reference.attention import Array, Namespace
from elutq_formats.block import Activation

_SCALE, _CUBIC = math.sqrt(2 / math.pi), 0.044715


def activate(name: Activation, x: Array, xp: Namespace) -> Array:
    """Return the activation of x, of any shape."""
    if name == "silu":
        return 0.5 * x * (1.0 + xp.tanh(0.5 * x))
    return 0.5 * x * (1.0 + xp.tanh(_SCALE * (x + _CUBIC * x * x * x)))


def gated_gradients(name: Activation, gate: Array, up: Array, gradient: Array, xp: Namespace) -> tuple[Array, Array]:
    """Go back through ``activate(name, gate, xp) * up``: all of one shape.

    Returns:
        The gradients with respect to gate and up.
    """
    if name == "silu":
        sigmoid = 0.5 * (1.0 + xp.tanh(0.5 * gate))
        return gradient * up * sigmoid * (1.0 + gate * (1.0 - sigmoid)), gradient * gate * sigmoid
    t = xp.tanh(_SCALE * (gate + _CUBIC * gate * gate * gate))
    slope = 0.5 * (1.0 + t) + 0.5 * gate * (1.0 - t * t) * _SCALE * (1.0 + 3.0 * _CUBIC * gate * gate)
    return gradient * up * slope, gradient * (0.5 * gate * (1.0 + t))
