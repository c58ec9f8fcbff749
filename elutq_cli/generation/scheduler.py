"""The only caller of the engine: which tokens of which texts are evaluated together, pass by pass.

It knows nothing of text, sampling or clients. One thread owns it; only ``interrupt`` may come from others.
"""

import threading
from collections import deque
from collections.abc import Sequence

from elutq_cli.generation.context import Context, Reuse
from elutq_cli.generation.generation import Generation
from elutq_cli.generation.slots import Slot, choose_slot, copy_beginning, seat
from elutq_native import PIECE_TOKENS, CancelledError, Engine


class Scheduler:
    """Texts in slots, and those that wait for one."""

    def __init__(self, engine: Engine, contexts: Sequence[Context]) -> None:
        """Begin with empty slots.

        Args:
            engine: evaluates; used by nobody else.
            contexts: its sequences, one for each text that can be under way.
        """
        self.engine = engine
        self._slots = [Slot(context) for context in contexts]
        self._waiting: deque[tuple[Generation, Reuse]] = deque()
        self._n_steps = 0
        self._passing: tuple[Generation, ...] = ()
        self._interrupting = threading.Lock()

    @property
    def contexts(self) -> list[Context]:
        """The slots' contexts."""
        return [slot.context for slot in self._slots]

    @property
    def generations(self) -> list[Generation]:
        """The texts under way and those that wait, in this order."""
        under_way = [slot.generation for slot in self._slots if slot.generation is not None]
        return under_way + [generation for generation, _ in self._waiting]

    @property
    def n_busy(self) -> int:
        """Slots that have a text under way."""
        return sum(slot.generation is not None for slot in self._slots)

    @property
    def n_waiting(self) -> int:
        """Texts that wait for a slot."""
        return len(self._waiting)

    def submit(self, generation: Generation, reuse: Reuse = Reuse.ALL) -> None:
        """Let a text wait for a slot; texts get theirs in the order in which they came.

        Args:
            generation: the text.
            reuse: what it may take over of what slots hold of it already.
        """
        self._waiting.append((generation, reuse))

    def withdraw(self, generation: Generation) -> None:
        """Take a text out, in the middle too; it can be submitted again."""
        self._waiting = deque(entry for entry in self._waiting if entry[0] is not generation)
        for slot in self._slots:
            if slot.generation is generation:
                slot.generation = None

    def clear(self) -> None:
        """Forget what all contexts hold."""
        for slot in self._slots:
            slot.context.clear()

    def close(self) -> None:
        """Free everything. Safe in any thread, where it ends the pass under way."""
        self.engine.close()
        for slot in self._slots:
            slot.context.sequence.close()

    def step(self) -> None:
        """Evaluate the next tokens of the texts under way, in one pass, and feed those that have all they want.

        What goes wrong becomes the error of the texts that it concerns (``Generation.fail``).
        """
        self._dismiss()
        self._admit()
        pieces = self._choose()
        if not pieces:
            return
        self._n_steps += 1
        try:
            self._pass(pieces)
        except CancelledError:
            pass  # nothing was evaluated, and whoever was cancelled is dismissed
        except Exception as error:
            for slot, _ in pieces:
                if slot.generation is not None:
                    slot.generation.fail(error)
        self._dismiss()

    def interrupt(self) -> None:
        """End the pass under way where all texts that it is for were cancelled. Any thread may."""
        with self._interrupting:
            if self._passing and all(generation.cancelled for generation in self._passing):
                self.engine.cancel()

    def _dismiss(self) -> None:
        """Free the slots of texts that are over, and the places of those that were cancelled while they waited."""
        for generation in self.generations:
            if generation.cancelled:
                generation.end_cancelled()
            if generation.ended:
                self.withdraw(generation)

    def _admit(self) -> None:
        while self._waiting:
            generation, reuse = self._waiting[0]
            slot = choose_slot(self._slots, generation.wants, reuse)
            if slot is None:
                return
            self._waiting.popleft()
            try:
                seat(slot, self._slots, generation, reuse)
            except Exception as error:
                generation.fail(error)
                slot.generation = None

    def _choose(self) -> list[tuple[Slot, Sequence[int]]]:
        """Return the slots of the next pass and their tokens: one of each text, and so many of the prompts' in turn."""
        chosen, room = [], PIECE_TOKENS
        for slot in sorted(self._slots, key=lambda slot: slot.last_piece):
            if slot.generation is None:
                continue
            try:
                copy_beginning(slot, self._slots)
            except Exception as error:
                slot.generation.fail(error)
                continue
            tokens = slot.wants[:PIECE_TOKENS]
            if len(tokens) == 1:
                chosen.append((slot, tokens))
            elif len(tokens) <= room:
                room -= len(tokens)
                chosen.append((slot, tokens))
        return chosen

    def _pass(self, pieces: Sequence[tuple[Slot, Sequence[int]]]) -> None:
        generations = tuple(slot.generation for slot, _ in pieces if slot.generation is not None)
        runs = [slot.run(tokens) for slot, tokens in pieces]
        with self._interrupting:
            self._passing = generations
        try:
            made = self.engine.eval(runs)
        finally:
            with self._interrupting:
                self._passing = ()
        for (slot, tokens), generation, run, logits in zip(pieces, generations, runs, made, strict=True):
            slot.context.extend(tokens)
            slot.last_used = self._n_steps
            if len(tokens) > 1:
                slot.last_piece = self._n_steps
            results = logits if run.hidden is None else run.hidden
            if len(results):
                try:
                    generation.feed(results)
                except Exception as error:  # of this text alone
                    generation.fail(error)
