"""Residual streams of the calibration text on their way through the blocks, and of sequences that are held out.

Beside the calibration sequences, which ``block_statistics`` takes through a block, go those to which nothing is fitted:
through the exact block before its weights change, and through the quantized one when they have.
"""

from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from elutq_cli.pipeline.compute.backend import Backend
from elutq_cli.pipeline.compute.levels import FloatArray
from elutq_cli.pipeline.compute.products import AT_ONCE, multiply_rounded, quiet
from elutq_cli.pipeline.recipe import Recipe
from elutq_cli.pipeline.stages.experts import add_experts
from elutq_cli.pipeline.stages.held_out import n_held_out
from elutq_cli.pipeline.stages.moments import MakeRoom, in_memory, token_batches, with_linears
from elutq_cli.reference import Block, Positions, Transformer, WeightSource
from elutq_formats.block import Branch

TokenArray: TypeAlias = npt.NDArray[np.int64]

Pair: TypeAlias = tuple[FloatArray, FloatArray]
"""Streams of the same sequences: on the quantized model, and in the exact one."""


@dataclass(frozen=True)
class Streams:
    """Residual streams between two blocks, (sequences, n, hidden_size) float32 each.

    Attributes:
        hidden: of the calibration sequences, on the quantized model.
        exact: of the same in the exact model; where no stage needs all of them, of ``compared_sequences``.
        held_out: of other sequences, on the quantized model; None where the text has none to spare.
        held_out_exact: of those, in the exact model.
    """

    hidden: FloatArray
    exact: FloatArray
    held_out: FloatArray | None = None
    held_out_exact: FloatArray | None = None

    def arrays(self) -> list[FloatArray]:
        """Return those there are, in the order of the constructor."""
        return [self.hidden, self.exact, *(self.held_out_pair or ())]

    @property
    def held_out_pair(self) -> Pair | None:
        """Both streams of the sequences that are held out, if there are any."""
        if self.held_out is None or self.held_out_exact is None:
            return None
        return self.held_out, self.held_out_exact

    def compared(self) -> list[Pair]:
        """Return the calibration sequences on which both models' predictions are compared, one by one."""
        numbers = compared_sequences(len(self.hidden))
        all_exact = len(self.exact) == len(self.hidden)
        return [(self.hidden[i], self.exact[i if all_exact else place]) for place, i in enumerate(numbers)]


def followed_tokens(tokens: TokenArray, held_out: TokenArray | None, keeps_exact: bool) -> list[TokenArray]:
    """Return the tokens of each of ``Streams``' arrays: on the quantized model and in the exact one by turns.

    Args:
        tokens: (sequences, n) to calibrate on.
        held_out: (sequences, n) that are held out; None: there are none.
        keeps_exact: whether the stages need the exact model's stream of all calibration sequences.
    """
    exact = tokens if keeps_exact else tokens[compared_sequences(len(tokens))]
    return [tokens, exact, *([] if held_out is None else [held_out] * 2)]


def compared_sequences(n_sequences: int) -> npt.NDArray[np.int64]:
    """Return the numbers of the calibration sequences on which predictions are compared: as many as are held out."""
    return spread(n_sequences, n_held_out(n_sequences))


def spread(n_sequences: int, n: int) -> npt.NDArray[np.int64]:
    """Return the numbers of n sequences from all parts of so many, or of all where there are no more."""
    n = min(n, n_sequences)
    return np.arange(n) * n_sequences // n


def stream_tokens(recipe: Recipe, n_tokens: int, held_out_tokens: int) -> int:
    """Return the tokens of all of ``Streams``' arrays together.

    Args:
        recipe: of the run.
        n_tokens: to calibrate on.
        held_out_tokens: beside them.
    """
    compared = compared_tokens(recipe, n_tokens)
    return n_tokens + (n_tokens if recipe.keeps_exact else compared) + 2 * held_out_tokens


def compared_tokens(recipe: Recipe, n_tokens: int) -> int:
    """Return on how many of so many tokens to calibrate on predictions are compared."""
    return n_held_out(n_tokens // recipe.sequence_length) * recipe.sequence_length


def exact_model(source: WeightSource, backend: Backend) -> Transformer:
    """Return the checkpoint as a model, on the backend; what is read of it is not kept."""
    arrays, multiply = backend.arrays, partial(multiply_rounded, backend=backend)
    return Transformer(source, xp=arrays.xp, convert=arrays.place, multiply=multiply)


def run_block(block: Block, stream: FloatArray, backend: Backend, make_room: MakeRoom = in_memory) -> None:
    """Replace a block's input, (sequences, n, hidden_size) float32, by its output; what is added gets room."""
    positions = Positions.of(block.config, stream.shape[1], convert=backend.arrays.place)
    for branch in block.data.branches:
        if branch.mixer == "experts":
            add_experts(block, branch, stream, backend, make_room)
            continue
        batches, own = token_batches(stream), with_linears(block, *branch.readers, branch.writer)
        unit = partial(_run_batch, own, branch, positions, backend)
        for batch, output in zip(batches, backend.light.map(quiet(unit), batches, AT_ONCE), strict=True):
            batch[...] = output


def _run_batch(block: Block, branch: Branch, positions: Positions, backend: Backend, batch: FloatArray) -> FloatArray:
    x = backend.arrays.place(batch)
    return backend.arrays.fetch(x + block.run(branch, x, positions))
