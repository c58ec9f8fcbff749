"""The exact model's predictions for sequences to learn from, computed a few steps ahead."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from elutq_cli.pipeline.compute.levels import FloatArray
from elutq_cli.pipeline.stages.tune.fused_block import FusedBlock
from elutq_cli.reference import Head, Positions, block_tensor_names
from elutq_formats.config import ModelConfig
from elutq_formats.model_tensors import FINAL_NORM, HEAD

Multiply: TypeAlias = Callable[[Any, Any], Any]
Tensor: TypeAlias = Any  # torch.Tensor


class ExactWeights(Protocol):
    """What the exact model is read from."""

    def load(self, name: str) -> FloatArray:
        """Return a tensor by its name in the checkpoint; a tied head too."""

    def embed(self, tokens: npt.NDArray[np.int64]) -> FloatArray:
        """Return the embedding of tokens (sequences, n): (sequences, n, hidden_size) float32."""


class ExactModel:
    """The checkpoint on a torch device, one block in memory at a time beside its head.

    What is kept of a prediction is the last block's output, a ``hidden_size`` of float32 a token: the head makes logits
    of it when they are wanted. A checkpoint is read once for all sequences of a call.
    """

    def __init__(self, config: ModelConfig, weights: ExactWeights, device: str) -> None:
        """Read the head.

        Args:
            config: of the model.
            weights: of it.
            device: torch's name of where to compute.
        """
        self._config, self._weights, self._device = config, weights, device
        self._head = Head(config, self._read(FINAL_NORM), self._read(HEAD), torch)

    def hidden(self, batches: list[npt.NDArray[np.int64]], multiply: Multiply = operator.matmul) -> list[Tensor]:
        """Return the last block's output for each batch: (sequences, n) tokens to (sequences, n, hidden_size).

        Args:
            batches: each is computed by itself.
            multiply: computes the products of the blocks.
        """
        with torch.no_grad():
            move = partial(torch.asarray, device=self._device)
            streams = list(move(self._weights.embed(np.concatenate(batches))).split([len(batch) for batch in batches]))
            positions = Positions.of(self._config, batches[0].shape[1], convert=move)
            for layer in range(self._config.num_hidden_layers):
                names = block_tensor_names(self._config, layer)
                weights = {name: self._read(f"model.layers.{layer}.{name}") for name in names}
                block = FusedBlock(self._config, layer, weights, torch, multiply)
                for index, x in enumerate(streams):
                    streams[index] = block(x, positions)
        return streams

    def logits(self, hidden: Tensor) -> Callable[[slice], Tensor]:
        """Return the function that makes logits of some positions of ``hidden``, all sequences' in a row."""
        rows = hidden.flatten(0, -2)
        return lambda part: self._head(rows[part])

    def _read(self, name: str) -> Tensor:
        return torch.asarray(np.array(self._weights.load(name), dtype=np.float32), device=self._device)
