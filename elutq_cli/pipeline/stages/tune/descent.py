"""What both ways of tuning share: steps with a cosine schedule, and the sequences they learn from and are judged by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from elutq_cli.pipeline.stages.held_out import HELD_OUT_EVERY, MOST_HELD_OUT
from elutq_formats.errors import ElutqError

Tensor: TypeAlias = Any  # torch.Tensor
Sequences: TypeAlias = npt.NDArray[np.int64]
"""Numbers of sequences."""

WARM_UP_STEPS = 5
BETAS = 0.9, 0.95
EPSILON = 1e-12


def split_sequences(n_sequences: int, n_held_out: int = 0) -> tuple[Sequences, Sequences]:
    """Return the sequences to learn from, and those that judge what was learned.

    Args:
        n_sequences: to calibrate on.
        n_held_out: others, which no stage has seen: these judge. Where there are none, one calibration sequence in
            HELD_OUT_EVERY does, MOST_HELD_OUT at most, though the stages before have seen it.

    Returns:
        Numbers of calibration sequences, and those of the sequences that are held out or, without any, again of
        calibration sequences.

    Raises:
        ElutqError: there are too few.
    """
    numbers = np.arange(n_sequences)
    if n_held_out:
        return numbers, np.arange(n_held_out)
    if n_sequences < 2:
        raise ElutqError("tuning needs 2 calibration sequences at least: use a longer text or more --num-samples")
    return numbers[numbers % HELD_OUT_EVERY != 0], numbers[::HELD_OUT_EVERY][:MOST_HELD_OUT]


def shuffled_batches(sequences: Sequences, size: int, seed: Sequence[int]) -> list[Sequences]:
    """Return one epoch: all sequences in random order, in batches of so many."""
    order = np.random.default_rng(seed).permutation(sequences)
    return [order[first : first + size] for first in range(0, len(order), size)]


class Descent:
    """Adam with a warm-up and a cosine schedule.

    Source: Kingma and Ba 2015; Loshchilov and Hutter 2017 for the schedule.
    """

    def __init__(self, parameters: Sequence[tuple[Tensor, float]]) -> None:
        """Begin; every parameter comes with the size of its largest step."""
        self.parameters = [parameter for parameter, _ in parameters]
        self.rates = [rate for _, rate in parameters]
        self.means = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.squares = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.n_done = 0

    def step(self, used: float) -> None:
        """Move every parameter against its gradient, and clear the gradients.

        Args:
            used: the part of all steps that is behind, from 0 to 1.
        """
        warm = min(1.0, (self.n_done + 1) / WARM_UP_STEPS)
        schedule = warm * 0.5 * (1.0 + math.cos(math.pi * used))
        self.n_done += 1
        with torch.no_grad():
            for parameter, rate, mean, square in zip(
                self.parameters, self.rates, self.means, self.squares, strict=True
            ):
                gradient, parameter.grad = parameter.grad, None
                mean.lerp_(gradient, 1.0 - BETAS[0])
                square.lerp_(gradient * gradient, 1.0 - BETAS[1])
                scale = (square / (1.0 - BETAS[1] ** self.n_done)).sqrt_().add_(EPSILON)
                parameter.addcdiv_(mean, scale, value=-rate * schedule / (1.0 - BETAS[0] ** self.n_done))
