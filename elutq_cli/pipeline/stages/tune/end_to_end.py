"""End-to-end tuning: all levels learned together from text that no stage has seen, bits frozen."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from elutq_cli.pipeline.compute.levels import FloatArray
from elutq_cli.pipeline.progress import Progress
from elutq_cli.pipeline.recipe import Recipe
from elutq_cli.pipeline.stages.streams import TokenArray
from elutq_cli.pipeline.stages.tune.budget import EXACT_TOKENS, STEP_TOKENS
from elutq_cli.pipeline.stages.tune.descent import Descent, Tensor, split_sequences
from elutq_cli.pipeline.stages.tune.exact_model import ExactModel, ExactWeights
from elutq_cli.pipeline.stages.tune.fused_block import fast_products, learning_products
from elutq_cli.pipeline.stages.tune.learned_model import LearnedModel

log = logging.getLogger(__name__)

State: TypeAlias = list[npt.NDArray[Any]]

LEVEL_RATE = 3e-4
"""Largest step of a level, in units of its group's reach."""

N_MEASURED = 4
"""How often the divergence on held-out sequences is measured while the budget lasts, after the first time."""

THOUSANDTHS = 1000

SAVE_SECONDS = 300.0
"""After so much time the state is on disk."""


@dataclass(frozen=True)
class Budget:
    """How long to learn: whichever ends first.

    Attributes:
        tokens: to learn from, or None.
        seconds: from the first step, or None.
    """

    tokens: int | None
    seconds: float | None

    def used(self, tokens: int, seconds: float) -> float:
        """Return the fraction that is used, 1 or more at the end."""
        parts = (tokens, self.tokens), (seconds, self.seconds)
        return max(done / limit for done, limit in parts if limit is not None)


class Curriculum:
    """The order in which sequences are learned from: those that calibration has not seen, then the others, and again.

    Each time around the order is another.

    Attributes:
        batch_tokens: tokens of a batch.
    """

    def __init__(self, fresh: TokenArray, seen: TokenArray, size: int, seed: int) -> None:
        """Take sequences, (sequences, n) tokens each, for batches of ``size`` of them."""
        self._sequences = np.concatenate([fresh, seen])
        self._n_fresh, self._size, self._seed = len(fresh), size, seed
        self.batch_tokens: int = size * fresh.shape[1]

    def batch(self, step: int) -> TokenArray:
        """Return the sequences of a step: (size, n) tokens."""
        numbers = range(step * self._size, (step + 1) * self._size)
        return self._sequences[[self._number(place) for place in numbers]]

    def _number(self, place: int) -> int:
        around, place = divmod(place, len(self._sequences))
        rng = np.random.default_rng((self._seed, around))
        order = rng.permutation(self._n_fresh), self._n_fresh + rng.permutation(len(self._sequences) - self._n_fresh)
        return int(np.concatenate(order)[place])


class EndToEnd:
    """Tuning that can stop after any step and go on from its state.

    The loss is KL(exact || quantized) of the predictions.

    Attributes:
        losses: KL on held-out sequences, before the first step and at each quarter of the budget.
    """

    def __init__(
        self,
        model: LearnedModel,
        exact: ExactModel,
        curriculum: Curriculum,
        held_out: TokenArray,
        budget: Budget,
    ) -> None:
        """Begin.

        Args:
            model: learns.
            exact: what it is to be like.
            curriculum: to learn from.
            held_out: (sequences, n) tokens of others, which judge.
            budget: how long.

        Source: EfficientQAT (Chen et al. 2024) for training step sizes alone; the KL divergence is distillation
        (Hinton et al. 2015).
        """
        self._model, self._exact, self._curriculum = model, exact, curriculum
        self._budget, self._held_out = budget, held_out
        self._wanted = exact.hidden([sequence[None] for sequence in held_out])
        self._descent = Descent([(matrix.shifts, LEVEL_RATE) for matrix in model.learned.values()])
        self._best = self._flat(self._descent.parameters)
        self._ahead: dict[int, Tensor] = {}
        self._seconds, self._n_measured = 0.0, 0
        self.losses: list[float] = []

    @classmethod
    def of_text(
        cls,
        model: LearnedModel,
        weights: ExactWeights,
        tokens: TokenArray,
        held_out: TokenArray | None,
        fresh: TokenArray | None,
        recipe: Recipe,
    ) -> EndToEnd:
        """Begin on what a calibration text has: sequences to learn from, and those that judge.

        Args:
            model: learns.
            weights: of the exact model.
            tokens: (sequences, n) that the stages have been calibrated on.
            held_out: (sequences, n) others, which judge; None: some of those do.
            fresh: (sequences, n) what is learned from before those; None: there are no others.
            recipe: says how long.

        Raises:
            ElutqError: there are too few sequences.
        """
        train, judges = split_sequences(len(tokens), 0 if held_out is None else len(held_out))
        judging = tokens[judges] if held_out is None else held_out
        size = max(1, STEP_TOKENS // tokens.shape[1])
        curriculum = Curriculum(tokens[:0] if fresh is None else fresh, tokens[train], size, recipe.seed)
        seconds = None if recipe.tune_minutes is None else 60.0 * recipe.tune_minutes
        exact = ExactModel(model.config, weights, model.device)
        return cls(model, exact, curriculum, judging, Budget(recipe.tune_tokens, seconds))

    @property
    def n_steps(self) -> int:
        """Steps that are done."""
        return self._descent.n_done

    @property
    def n_tokens(self) -> int:
        """Tokens that were learned from."""
        return self.n_steps * self._curriculum.batch_tokens

    @property
    def used(self) -> float:
        """The part of the budget that is used."""
        return self._budget.used(self.n_tokens, self._seconds)

    @property
    def thousandths(self) -> int:
        """The same for ``Progress``."""
        return min(THOUSANDTHS, int(THOUSANDTHS * self.used))

    @property
    def finished(self) -> bool:
        """Whether the budget is used, and the last state measured."""
        return self._n_measured > N_MEASURED

    @property
    def ended_by_time(self) -> bool:
        """Whether it was the time that ended, not the tokens."""
        return self.finished and (self._budget.tokens is None or self.n_tokens < self._budget.tokens)

    def run(self, progress: Progress) -> None:
        """Learn until the state should be saved: after a measurement, after SAVE_SECONDS, and at the end.

        Args:
            progress: is told of every thousandth of the budget, and of the loss.
        """
        begin = last = time.perf_counter()
        measured = False
        while not (self.finished or measured or last - begin > SAVE_SECONDS):
            before, shown = self.used, self.thousandths
            measured = before * N_MEASURED >= self._n_measured
            if measured:
                self._measure()
                self._n_measured = 1 + int(min(1.0, before) * N_MEASURED)
            else:
                progress.note(f"loss {self._step():.4f}")
            now = time.perf_counter()
            self._seconds, last = self._seconds + now - last, now
            progress.advance(self.thousandths - shown)

    def state(self) -> State:
        """Return what ``resume`` needs."""
        kept = [self._flat(part) for part in (self._descent.parameters, self._descent.means, self._descent.squares)]
        return [np.array([self.n_steps, self._seconds, self._n_measured, *self.losses]), *kept, self._best]

    def resume(self, state: State) -> None:
        """Go on from a state of the same run."""
        numbers, parameters, means, squares, best = state
        self._descent.n_done, self._seconds, self._n_measured = int(numbers[0]), float(numbers[1]), int(numbers[2])
        self.losses, self._best = numbers[3:].tolist(), np.array(best)
        self._set(self._descent.parameters, parameters)
        self._set(self._descent.means, means)
        self._set(self._descent.squares, squares)

    def keep_best(self) -> bool:
        """Give the model what was best on held-out sequences; return whether that is not how it began."""
        self._set(self._descent.parameters, self._best)
        return min(self.losses) < self.losses[0]

    def _step(self) -> float:
        """Learn from the next batch; return its loss."""
        step, used = self.n_steps, self.used
        with fast_products():
            if step not in self._ahead:
                self._look_ahead(step)
            batch = self._curriculum.batch(step)
            loss = self._model.divergence(batch, self._exact.logits(self._ahead.pop(step)), learn=True)
        self._descent.step(used)
        return loss

    def _look_ahead(self, step: int) -> None:
        """Have the exact model look at the next steps' sequences: as many as a reading of the checkpoint is worth."""
        size = self._curriculum.batch_tokens
        steps = [step + ahead for ahead in range(max(1, EXACT_TOKENS // size))]
        steps = [number for number in steps if self._budget.used(number * size, self._seconds) < 1.0]
        batches = [self._curriculum.batch(number) for number in steps]
        hidden = self._exact.hidden(batches, learning_products(self._model.device))
        self._ahead = dict(zip(steps, hidden, strict=True))

    def _measure(self) -> None:
        """Measure on the held-out sequences, and keep the best state."""
        self.losses.append(self._held_out_loss())
        log.info("KL %.5f on held-out text, %.5f before tuning", self.losses[-1], self.losses[0])
        if self.losses[-1] <= min(self.losses):
            self._best = self._flat(self._descent.parameters)

    def _held_out_loss(self) -> float:
        """Return the mean KL divergence on the held-out sequences."""
        judges = zip(self._held_out, self._wanted, strict=True)
        found = [self._model.divergence(tokens[None], self._exact.logits(wanted)) for tokens, wanted in judges]
        return float(np.mean(found))

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
