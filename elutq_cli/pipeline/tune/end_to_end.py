"""End-to-end tuning: the levels of all blocks learned together, bits frozen, so that the predictions are right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.checkpoint import checkpoint as recompute

from elutq_cli.pipeline.calibrate import MakeRoom
from elutq_cli.pipeline.levels import FloatArray
from elutq_cli.pipeline.measure import measure_block
from elutq_cli.pipeline.products import multiply
from elutq_cli.pipeline.progress import Progress
from elutq_cli.pipeline.stage import Backend
from elutq_cli.pipeline.tune.budget import END_TO_END_STEPS, END_TO_END_TOKENS
from elutq_cli.pipeline.tune.descent import PATIENCE, Descent, Sequences, Tensor, shuffled_batches, split_sequences
from elutq_cli.pipeline.tune.matrix import LearnedMatrix
from elutq_cli.reference import Block, Head, Positions, Transformer, block_tensor_names
from elutq_formats.config import ModelConfig
from elutq_formats.hlq import HLQTensor, pack, unpack
from elutq_formats.model_writer import TensorSource
from elutq_formats.names import gguf_name
from elutq_formats.tensor_record import TensorRecord

State: TypeAlias = list[npt.NDArray[Any]]

LEVEL_RATE = 1e-3
"""Largest step of a level, in units of its group's reach."""

NEXT_TOKEN_WEIGHT = 0.05
"""Weight of the next-token loss beside the KL divergence."""


class QuantizedModel:
    """The tensors of a finished run, as torch tensors through which gradients reach the levels of the blocks' linears.

    A source of weights for ``Transformer``. Embedding and head are constants; of the embedding only the rows that are
    asked for are dequantized.
    """

    def __init__(self, config: ModelConfig, sources: Iterable[TensorSource], device: str) -> None:
        """Read every tensor; codes stay packed."""
        self.config = config
        self.device = device
        self.learned: dict[str, LearnedMatrix] = {}
        self._constants: dict[str, HLQTensor | npt.NDArray[Any]] = {}
        for record, contents in sources:
            tensor = _read(record, contents())
            if isinstance(tensor, HLQTensor) and record.name.startswith("blk."):
                self.learned[record.name] = LearnedMatrix(tensor, device)
            else:
                self._constants[record.name] = tensor

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this Hugging Face name."""
        return gguf_name(name) in self.learned or gguf_name(name) in self._constants

    def load(self, name: str) -> Tensor:
        """Return one tensor by its Hugging Face name."""
        if gguf_name(name) in self.learned:
            return self.learned[gguf_name(name)].dequantize()
        return torch.asarray(_dequantize(self._constants[gguf_name(name)]), device=self.device)

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
            names = block_tensor_names(self.config)
            weights = {name: backend.place(_fetch(self.load(prefix + name))) for name in names}
            learned = {name: self.learned.get(gguf_name(prefix + name)) for name in names}
            tensors = {name: matrix.tensor() for name, matrix in learned.items() if matrix is not None}
            block = Block(self.config, layer, weights, backend.xp, partial(multiply, backend=backend))
            found = measure_block(block, hidden, tensors, original, backend, make_room)
            errors |= {gguf_name(prefix + name): error for name, error in found.items()}
        return errors

    def hidden(self, tokens: npt.NDArray[np.int64]) -> FloatArray:
        """Return the last block's output for tokens (sequences, n): (sequences, n, hidden_size) float32."""
        model = Transformer(self, xp=torch, convert=partial(torch.asarray, device=self.device))
        with torch.no_grad():
            x = self.embed(tokens)
            positions = Positions.of(self.config, tokens.shape[1], convert=model.convert)
            for block in model.blocks():
                x = torch.stack([block(sequence, positions) for sequence in x])
        return _fetch(x)

    def replace_tuned(self, sources: Iterable[TensorSource], errors: Mapping[str, float]) -> Iterator[TensorSource]:
        """Yield the tensors of the run, those that learned as they are now, with their errors."""
        for record, contents in sources:
            if record.name in self.learned:
                matrix = self.learned[record.name]
                yield replace(record, error=errors[record.name]), partial(_packed, matrix)
            else:
                yield record, contents

    def head(self, norm: FloatArray, weight: FloatArray) -> Head:
        """Return another model's last norm and head on this one's device."""
        on_device = [torch.asarray(part, device=self.device) for part in (norm, weight)]
        return Head(self.config, on_device[0], on_device[1], torch)

    def embed(self, tokens: npt.NDArray[np.int64]) -> Tensor:
        """Look up tokens: (..., n) -> (..., n, hidden_size) float32."""
        table = self._constants[gguf_name("model.embed_tokens.weight")]
        used, places = np.unique(tokens, return_inverse=True)
        if isinstance(table, HLQTensor):
            table = HLQTensor(table.half_scales[used], table.centers[used], table.codes[used], table.group_size)
        else:
            table = table[used]
        return torch.asarray(_dequantize(table)[places.reshape(tokens.shape)], device=self.device)


class EndToEnd:
    """Tuning that can stop after any epoch and go on from its state.

    The loss is KL(exact || quantized) of the predictions plus NEXT_TOKEN_WEIGHT times the next-token loss. Of the exact
    model only the last block's output and the head are needed. Each block's activations are computed again when its
    gradient is, so that one block's are in memory at a time; and one sequence's logits.

    Attributes:
        n_epochs: how often ``run_epoch`` is to be called, unless it is ``finished`` before.
        n_steps: steps of all epochs.
        losses: KL on held-out sequences, before the first epoch and after each.
    """

    def __init__(
        self,
        model: QuantizedModel,
        exact_head: Head,
        tokens: npt.NDArray[np.int64],
        seed: int,
        held_out: npt.NDArray[np.int64] | None = None,
    ) -> None:
        """Begin.

        Args:
            model: learns.
            exact_head: last norm and head of the exact model, on the model's device.
            tokens: (sequences, n) calibration sequences.
            seed: of their order.
            held_out: (held-out sequences, n), which no stage has seen; None: see ``split_sequences``.

        Raises:
            ElutqError: there are too few sequences.

        Source: EfficientQAT (Chen et al. 2024) for training step sizes alone; the KL divergence is distillation
        (Hinton et al. 2015).
        """
        self._model, self._exact_head, self._tokens, self._seed = model, exact_head, tokens, seed
        self._transformer = Transformer(model, xp=torch, convert=lambda tensor: tensor)
        self._head = self._transformer.load_head()
        self._positions = Positions.of(
            model.config, tokens.shape[1], convert=lambda array: torch.asarray(array, device=model.device)
        )
        self._judged = tokens if held_out is None else held_out
        n_held_out = 0 if held_out is None else len(held_out)
        self._train, self._judges = split_sequences(len(tokens), n_held_out)
        self._size = max(1, END_TO_END_TOKENS // tokens.shape[1])
        self.n_epochs, self.n_steps = plan_epochs(len(tokens), tokens.shape[1], n_held_out)
        self._descent = Descent([(matrix.shifts, LEVEL_RATE) for matrix in model.learned.values()], self.n_steps)
        self._best = self._flat(self._descent.parameters)
        self.losses: list[float] = []

    def run_epoch(self, exact: FloatArray, progress: Progress, held_out_exact: FloatArray | None = None) -> None:
        """Learn from every training sequence once, then measure.

        Args:
            exact: (sequences, n, hidden_size) float32, output of the exact model's last block.
            progress: is told of every step and its loss.
            held_out_exact: (held-out sequences, n, hidden_size) float32, the same of those.
        """
        judged = exact if held_out_exact is None else held_out_exact
        if not self.losses:
            self.losses.append(self._measure(judged))
        for batch in shuffled_batches(self._train, self._size, (self._seed, len(self.losses))):
            loss = self._loss(self._tokens, batch, exact, NEXT_TOKEN_WEIGHT) / len(batch)
            loss.backward()
            self._descent.step()
            progress.advance(1)
            progress.note(f"loss {float(loss.detach()):.4f}")
        held_out = self._measure(judged)
        if held_out < min(self.losses):
            self._best = self._flat(self._descent.parameters)
        self.losses.append(held_out)

    @property
    def n_epochs_done(self) -> int:
        """Epochs that are done."""
        return max(0, len(self.losses) - 1)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or the last ones gained nothing on held-out sequences."""
        gained = int(np.argmin(self.losses)) if self.losses else 0
        return self.n_epochs_done >= min(self.n_epochs, gained + PATIENCE)

    @property
    def n_steps_done(self) -> int:
        """Steps that are done."""
        return self._descent.n_done

    def state(self) -> State:
        """Return what ``resume`` needs."""
        kept = [self._flat(part) for part in (self._descent.parameters, self._descent.means, self._descent.squares)]
        return [np.array([self._descent.n_done, *self.losses]), *kept, self._best]

    def resume(self, state: State) -> None:
        """Go on from a state of the same run."""
        numbers, parameters, means, squares, best = state
        self._descent.n_done, self.losses, self._best = int(numbers[0]), numbers[1:].tolist(), np.array(best)
        for part, values in (
            (self._descent.parameters, parameters),
            (self._descent.means, means),
            (self._descent.squares, squares),
        ):
            self._set(part, values)

    def keep_best(self) -> bool:
        """Give the model the levels that were best on held-out sequences; return whether they are not its first."""
        self._set(self._descent.parameters, self._best)
        return min(self.losses) < self.losses[0]

    def _measure(self, exact: FloatArray) -> float:
        """Return the mean KL divergence on the held-out sequences."""
        with torch.no_grad():
            parts = np.array_split(self._judges, -(-len(self._judges) // self._size))
            return sum(float(self._loss(self._judged, part, exact, 0.0)) for part in parts) / len(self._judges)

    def _loss(
        self, tokens: npt.NDArray[np.int64], batch: Sequences, exact: FloatArray, next_token_weight: float
    ) -> Tensor:
        """Return the sum over sequences of their mean loss."""
        x = self._model.embed(tokens[batch])
        for layer in range(self._model.config.num_hidden_layers):
            x = self._recomputed(self._run_block, layer, x)
        total = torch.zeros((), device=x.device)
        for index, sequence in enumerate(batch):
            wanted = torch.asarray(np.array(exact[sequence]), device=x.device)
            following = torch.asarray(tokens[sequence], device=x.device)
            total = total + self._recomputed(self._sequence_loss, x[index], wanted, following, next_token_weight)
        return total

    def _run_block(self, layer: int, x: Tensor) -> Tensor:
        return self._transformer.block(layer)(x, self._positions)

    def _sequence_loss(self, x: Tensor, exact: Tensor, tokens: Tensor, next_token_weight: float) -> Tensor:
        with torch.no_grad():
            expected = torch.log_softmax(self._exact_head(exact), dim=-1)
        found = torch.log_softmax(self._head(x), dim=-1)
        divergence = (expected.exp() * (expected - found)).sum(dim=-1).mean()
        return divergence - next_token_weight * found[:-1].gather(-1, tokens[1:, None]).mean()

    @staticmethod
    def _recomputed(function: Callable[..., Tensor], *arguments: Any) -> Tensor:  # noqa: ANN401
        return recompute(function, *arguments, use_reentrant=False)

    @staticmethod
    def _flat(parts: Sequence[Tensor]) -> FloatArray:
        return np.concatenate([part.detach().cpu().numpy().ravel() for part in parts])

    @staticmethod
    def _set(parts: Sequence[Tensor], flat: FloatArray) -> None:
        first = 0
        for part in parts:
            values = np.array(flat[first : first + part.numel()]).reshape(part.shape)
            part.data.copy_(torch.asarray(values))
            first += part.numel()


def plan_epochs(n_sequences: int, n_tokens: int, n_held_out: int = 0) -> tuple[int, int]:
    """Return how many epochs, and how many steps in all, so many calibration sequences of so many tokens give."""
    train, _ = split_sequences(n_sequences, n_held_out)
    per_epoch = -(-len(train) // max(1, END_TO_END_TOKENS // n_tokens))
    n_epochs = max(1, round(END_TO_END_STEPS / per_epoch))
    return n_epochs, n_epochs * per_epoch


def _read(record: TensorRecord, contents: npt.NDArray[Any]) -> HLQTensor | npt.NDArray[Any]:
    if record.group_size is None:
        return contents
    return unpack(contents, record.rows, record.columns, record.bits, record.group_size)


def _dequantize(tensor: HLQTensor | npt.NDArray[Any]) -> FloatArray:
    return tensor.dequantize() if isinstance(tensor, HLQTensor) else np.array(tensor, dtype=np.float32)


def _fetch(tensor: Tensor) -> FloatArray:
    return np.asarray(tensor.numpy(force=True))


def _packed(matrix: LearnedMatrix) -> npt.NDArray[np.uint8]:
    return pack(matrix.tensor())
