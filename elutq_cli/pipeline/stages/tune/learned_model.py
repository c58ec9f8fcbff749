"""The quantized model that learns end to end, block by block: its forward pass, and its gradient."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from elutq_cli.pipeline.compute import products
from elutq_cli.pipeline.compute.backend import Backend
from elutq_cli.pipeline.compute.levels import FloatArray
from elutq_cli.pipeline.stages.measure import measure_block
from elutq_cli.pipeline.stages.moments import MakeRoom
from elutq_cli.pipeline.stages.tune.budget import LOGIT_ROWS
from elutq_cli.pipeline.stages.tune.fused_block import FusedBlock
from elutq_cli.pipeline.stages.tune.matrix import LearnedLevels
from elutq_cli.reference import Block, Positions, block_tensor_names
from elutq_cli.reference.attention import soften
from elutq_cli.reference.backward import softcap_slope
from elutq_formats.config import ModelConfig
from elutq_formats.hlq import HLQTensor, pack, unpack
from elutq_formats.model_tensors import EMBEDDING, FINAL_NORM, HEAD
from elutq_formats.model_writer import TensorSource
from elutq_formats.names import gguf_name
from elutq_formats.tensor_record import TensorRecord

Tensor: TypeAlias = Any  # torch.Tensor


class LearnedModel:
    """The tensors of a finished run on a torch device: what learns of them, and what stays.

    Levels of the blocks' matrices learn; codes, norms, embedding and head stay. No graph spans more than a block:
    each block's gradient is taken by itself, from its output's to its input's, so that one block's weights have
    gradients at a time.

    Attributes:
        learned: the matrices that learn, by their names in the file.
    """

    def __init__(
        self,
        config: ModelConfig,
        sources: Iterable[TensorSource],
        device: str,
        keep: bool,
        multiply: Callable[[Tensor, Tensor], Tensor] = operator.matmul,
    ) -> None:
        """Read every tensor.

        Args:
            config: of the model.
            sources: its tensors.
            device: torch's name of where to compute.
            keep: whether what the blocks compute is kept until their gradients are taken, or computed again for them.
            multiply: computes the products of the blocks when they learn.
        """
        self.config = config
        self.device = device
        self.learned: dict[str, LearnedLevels] = {}
        self._keep = keep
        self._multiply = multiply
        self._constants: dict[str, HLQTensor | npt.NDArray[Any]] = {}
        for record, contents in sources:
            tensor = _read(record, contents())
            if isinstance(tensor, HLQTensor) and record.name.startswith("blk."):
                self.learned[record.name] = LearnedLevels(tensor, device)
            else:
                self._constants[record.name] = tensor
        tied = gguf_name(HEAD) not in self._constants
        self._norm, self._head = self.load(FINAL_NORM), self.load(EMBEDDING if tied else HEAD)

    def load(self, name: str) -> Tensor:
        """Return one tensor by its Hugging Face name."""
        if gguf_name(name) in self.learned:
            return self.learned[gguf_name(name)].values()
        return torch.asarray(_dequantize(self._constants[gguf_name(name)]), device=self.device)

    def embed(self, tokens: npt.NDArray[np.int64]) -> Tensor:
        """Look up tokens: (..., n) -> (..., n, hidden_size) float32."""
        table = self._constants[gguf_name(EMBEDDING)]
        used, places = np.unique(tokens, return_inverse=True)
        if isinstance(table, HLQTensor):
            parts = table.half_scales[used], table.centers[used], table.codes[used]
            table = HLQTensor(*parts, table.group_size, table.kind)
        else:
            table = table[used]
        return torch.asarray(_dequantize(table)[places.reshape(tokens.shape)], device=self.device)

    def block(self, layer: int, learn: bool = False) -> FusedBlock:
        """Return a block with the weights of this moment, to learn or to be measured."""
        weights = {name: self.load(f"model.layers.{layer}.{name}") for name in block_tensor_names(self.config, layer)}
        return FusedBlock(self.config, layer, weights, torch, self._multiply if learn else operator.matmul)

    def divergence(self, tokens: npt.NDArray[np.int64], exact: Callable[[slice], Tensor], learn: bool = False) -> float:
        """Return the mean of KL(exact || quantized) over the predictions, in nats a token.

        Args:
            tokens: (sequences, n).
            exact: returns the exact model's logits, (rows, vocab_size), for some of all positions in a row.
            learn: whether its gradient is added to those of ``learned``.
        """
        positions = Positions.of(self.config, tokens.shape[1], convert=partial(torch.asarray, device=self.device))
        passes: list[tuple[Tensor, FusedBlock | None, Tensor]] = []
        x = self.embed(tokens)
        for layer in range(self.config.num_hidden_layers):
            block = self.block(layer, learn)
            with torch.set_grad_enabled(learn and self._keep):
                x = x.detach().requires_grad_(learn)
                y = block(x, positions)
            if learn:
                passes.append((x, block, y) if self._keep else (x, None, None))
            x = y
        total, gradient = self._compare(x.detach(), exact, learn)
        while passes:
            x, kept, y = passes.pop()
            layer = len(passes)
            block = kept or self.block(layer, learn)
            torch.autograd.backward(block(x, positions) if kept is None else y, gradient)
            gradient = x.grad
            for name, values in block.weights.items():
                matrix = self.learned.get(gguf_name(f"model.layers.{layer}.{name}"))
                if matrix is not None:
                    matrix.pass_back(values.grad)
            del x, y, kept, block
        return total

    def _compare(self, x: Tensor, exact: Callable[[slice], Tensor], learn: bool) -> tuple[float, Tensor]:
        """Return the divergence, and its gradient for the last block's output x: (sequences, n, hidden_size) float32.

        The gradient of KL(p || q) for the logits of q is q - p: it is written down, so that no graph keeps logits.
        """
        x.requires_grad_(learn)
        norm, softcap = self._norm, self.config.logit_softcap
        n_rows, total = x[..., 0].numel(), 0.0
        for first in range(0, n_rows, LOGIT_ROWS):
            rows = slice(first, min(first + LOGIT_ROWS, n_rows))
            with torch.set_grad_enabled(learn):
                normed = functional.rms_norm(x.flatten(0, -2)[rows], norm.shape, norm, self.config.rms_norm_eps)
            with torch.no_grad():
                expected = torch.log_softmax(exact(rows), dim=-1)
                logits = soften(normed @ self._head.T, softcap, torch)
                found = torch.log_softmax(logits, dim=-1)
                p = expected.exp()
                total += float(torch.dot(p.flatten(), expected.sub_(found).flatten()))
                if learn:
                    of_logits = found.exp_().sub_(p).div_(n_rows)
                    if softcap is not None:
                        of_logits *= softcap_slope(logits, softcap)
                    slope = of_logits @ self._head
                del expected, found, p, logits
            if learn:
                normed.backward(slope)
        return total / n_rows, x.grad

    def hidden(self, tokens: npt.NDArray[np.int64]) -> FloatArray:
        """Return the last block's output for tokens (sequences, n): (sequences, n, hidden_size) float32."""
        positions = Positions.of(self.config, tokens.shape[1], convert=partial(torch.asarray, device=self.device))
        with torch.no_grad():
            x = self.embed(tokens)
            for layer in range(self.config.num_hidden_layers):
                block = self.block(layer)
                x = torch.stack([block(sequence, positions) for sequence in x])
        return _fetch(x)

    def measure(
        self,
        tokens: npt.NDArray[np.int64],
        hidden: FloatArray,
        original: Callable[[str], FloatArray],
        backend: Backend,
        make_room: MakeRoom,
    ) -> dict[str, float]:
        """Return the error of every matrix that learned, by its name in the file: see ``measure_block``.

        Args:
            tokens: (sequences, n) to measure on.
            hidden: (sequences, n, hidden_size) float32, room for the residual stream.
            original: returns a weight of the checkpoint by its name there.
            backend: runs the blocks and the products.
            make_room: see ``block_statistics``.
        """
        for place, sequence in zip(hidden, tokens, strict=True):
            place[...] = _fetch(self.embed(sequence))
        errors: dict[str, float] = {}
        for layer in range(self.config.num_hidden_layers):
            prefix = f"model.layers.{layer}."
            names = block_tensor_names(self.config, layer)
            weights = {name: backend.arrays.place(_fetch(self.load(prefix + name))) for name in names}
            learned = {name: self.learned.get(gguf_name(prefix + name)) for name in names}
            tensors = {name: it.tensor() for name, it in learned.items() if it is not None}
            block = Block(self.config, layer, weights, backend.arrays.xp, partial(products.multiply, backend=backend))
            found = measure_block(block, hidden, tensors, original, backend, make_room)
            errors |= {gguf_name(prefix + name): error for name, error in found.items()}
        return errors

    def replace_tuned(self, sources: Iterable[TensorSource], errors: Mapping[str, float]) -> Iterator[TensorSource]:
        """Yield the tensors of the run, those that learned as they are now, matrices with their errors."""
        for record, contents in sources:
            matrix = self.learned.get(record.name)
            if matrix is None:
                yield record, contents
            else:
                yield replace(record, error=errors.get(record.name)), partial(_packed, matrix)


def _read(record: TensorRecord, contents: npt.NDArray[Any]) -> HLQTensor | npt.NDArray[Any]:
    if record.group_size is None:
        return contents
    return unpack(contents, record.rows, record.columns, record.bits, record.group_size, record.kind)


def _dequantize(tensor: HLQTensor | npt.NDArray[Any]) -> FloatArray:
    return tensor.dequantize() if isinstance(tensor, HLQTensor) else np.array(tensor, dtype=np.float32)


def _packed(matrix: LearnedLevels) -> npt.NDArray[np.uint8]:
    return pack(matrix.tensor())


def _fetch(tensor: Tensor) -> FloatArray:
    return np.asarray(tensor.numpy(force=True))
