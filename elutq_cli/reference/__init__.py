"""The reference transformer: readable, in float32, the oracle of the C runtime and the forward pass of calibration."""

from elutq_cli.reference.attention import Array, Namespace, Positions
from elutq_cli.reference.backward import block_gradients, prediction_gradient
from elutq_cli.reference.transformer import (
    Block,
    Head,
    KeyValueCache,
    Transformer,
    WeightSource,
    block_tensor_names,
)

__all__ = [
    "Array",
    "Block",
    "Head",
    "KeyValueCache",
    "Namespace",
    "Positions",
    "Transformer",
    "WeightSource",
    "block_gradients",
    "block_tensor_names",
    "prediction_gradient",
]
