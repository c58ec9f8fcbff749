"""Block reconstruction: a block's levels and bits learned together, so that its output is the exact model's.

A token's error counts relative to its row, as the norm that comes next in most families will have it: the first token
of a text can be a thousand times as large as all others, and would be all that is learned.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from elutq_cli.pipeline.stages.streams import Pair
from elutq_cli.pipeline.stages.tune.budget import BLOCK_STEPS, BLOCK_TOKENS
from elutq_cli.pipeline.stages.tune.descent import Descent, Sequences, Tensor, shuffled_batches, split_sequences
from elutq_cli.pipeline.stages.tune.fused_block import FusedBlock, fast_products, learning_products
from elutq_cli.pipeline.stages.tune.matrix import LearnedMatrix
from elutq_cli.reference import Block, Positions
from elutq_formats.hlq import HLQTensor

LEVEL_RATE = 3e-3
BIT_RATE = 1e-2
"""Largest steps of levels and of continuous weights, in units of a group's reach."""


@dataclass(frozen=True)
class TunedBlock:
    """What became of a block.

    Attributes:
        matrices: its quantized linears.
        before: relative error of its output on held-out sequences: root of the mean over tokens of the squared error
            over the square of the exact row.
        after: the same after tuning; not above ``before``.
    """

    matrices: dict[str, HLQTensor]
    before: float
    after: float


def tune_block(
    block: Block,
    matrices: Mapping[str, HLQTensor],
    calibration: Pair,
    held_out: Pair | None,
    seed: int,
    device: str,
    note: Callable[[str], None] = lambda text: None,
) -> TunedBlock:
    """Learn a block's levels and bits by the squared error of its output, each token's over the square of its row.

    After each epoch the error on held-out sequences is measured; the best that was ever seen, the start included, is
    what remains.

    Args:
        block: the block; its weights that are not among the matrices stay as they are.
        matrices: its quantized linears, by their names in the block.
        calibration: (sequences, n, hidden_size) float32 twice, to learn from: the residual stream of the quantized
            model before the block, and that of the exact model after it.
        held_out: the same of sequences that no stage has seen; None: see ``split_sequences``.
        seed: of the order of the sequences.
        device: torch's name of where to compute.
        note: is told how it goes.

    Raises:
        ElutqError: there are too few sequences.

    Source: block-wise training of all parameters, EfficientQAT (Chen et al. 2024), on HLQ levels; inputs from the
    quantized prefix and outputs of the exact model, as in the correct stage.
    """
    move = partial(torch.asarray, device=device)
    learned = {name: LearnedMatrix(start, device) for name, start in matrices.items()}
    constants = {name: move(array) for name, array in block.weights.items() if name not in learned}
    inputs = calibration[0]
    positions = Positions.of(block.config, inputs.shape[1], convert=move)

    def squared_error(streams: Pair, sequences: Sequences, values: dict[str, Tensor], learn: bool) -> Tensor:
        """Return the sum over sequences of the mean over their tokens."""
        multiply = learning_products(device) if learn else operator.matmul
        x, wanted = (move(np.asarray(stream[sequences])) for stream in streams)
        difference = FusedBlock(block.config, block.layer, constants | values, torch, multiply)(x, positions) - wanted
        errors, sizes = (part.square().mean(dim=-1) for part in (difference, wanted))
        return (errors / (sizes + block.config.rms_norm_eps)).mean(dim=-1).sum()

    train, judges = split_sequences(len(inputs), 0 if held_out is None else len(held_out[0]))
    judged = calibration if held_out is None else held_out
    size = max(1, BLOCK_TOKENS // inputs.shape[1])

    def held_out_error() -> float:
        with torch.no_grad():
            values = {name: matrix.values() for name, matrix in learned.items()}
            parts = np.array_split(judges, -(-len(judges) // size))
            errors = [float(squared_error(judged, part, values, learn=False)) for part in parts]
            return float((sum(errors) / len(judges)) ** 0.5)

    parameters = [(matrix.shifts, LEVEL_RATE) for matrix in learned.values()]
    parameters += [(matrix.pull, BIT_RATE) for matrix in learned.values()]
    descent = Descent(parameters)

    def step(batch: Sequences, used: float) -> None:
        values = {name: matrix.values() for name, matrix in learned.items()}
        with fast_products():
            (squared_error(calibration, batch, values, learn=True) / len(batch)).backward()
        for name, matrix in learned.items():
            matrix.pass_back(values.pop(name).grad)  # and free it
        descent.step(used)

    n_epochs = max(1, round(BLOCK_STEPS * BLOCK_TOKENS / (len(train) * inputs.shape[1])))
    n_steps = n_epochs * -(-len(train) // size)
    best, best_error = dict(matrices), held_out_error()
    before = best_error
    for epoch in range(n_epochs):
        for batch in shuffled_batches(train, size, (seed, block.layer, epoch)):
            step(batch, descent.n_done / n_steps)
        error = held_out_error()
        note(f"block {block.layer}, output error {error:.4f}, was {before:.4f}")
        if error < best_error:
            best, best_error = {name: matrix.tensor() for name, matrix in learned.items()}, error
    return TunedBlock(best, before, best_error)
