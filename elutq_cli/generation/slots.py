"""Slots: contexts, each with at most one text under way, and which of them a text gets."""

from collections.abc import Sequence
from dataclasses import dataclass

from elutq_cli.generation.context import Context, Reuse
from elutq_cli.generation.generation import Generation
from elutq_native import Run

SAME_TEXT = 0.5
"""A prompt that begins with this share of what a context holds is taken for another turn of the same conversation."""


@dataclass(eq=False)
class Slot:
    """A context, and the text that it is for.

    Attributes:
        context: keys and values; they stay when the text is over.
        generation: the text under way.
        reuse: what the text may take over from others.
        last_used: number of the step in which it was last evaluated.
        last_piece: number of the step in which a piece of a prompt was last evaluated.
    """

    context: Context
    generation: Generation | None = None
    reuse: Reuse = Reuse.ALL
    last_used: int = 0
    last_piece: int = 0

    @property
    def wants(self) -> Sequence[int]:
        """The tokens that are still to be evaluated before the next one is made."""
        return () if self.generation is None else self.generation.wants[len(self.context) :]

    def run(self, tokens: Sequence[int]) -> Run:
        """Return what evaluates the first of them, with the logits that the text wants after them."""
        begin, end = len(self.context), len(self.context) + len(tokens)
        if self.generation is None:
            return self.context.run(tokens, 0)
        if (hidden := self.generation.hidden_room(len(tokens))) is not None:
            return self.context.run(tokens, 0, hidden)
        return self.context.run(tokens, max(0, end - max(begin, self.generation.n_reusable)))


def choose_slot(slots: Sequence[Slot], prompt: Sequence[int], reuse: Reuse) -> Slot | None:
    """Return the free slot that a text is to have.

    That is the one whose context the prompt goes on from, where there is one. Otherwise something is lost: first what
    is nothing, then what has not been used for longest.

    Args:
        slots: all of them.
        prompt: the text's.
        reuse: what the text may take over from others.

    Returns:
        A slot; None: all have a text under way.
    """
    free = sorted((slot for slot in slots if slot.generation is None), key=lambda slot: slot.last_used)
    if not free:
        return None
    empty = [slot for slot in free if not len(slot.context)]
    unused = (empty or free)[0]
    if reuse is Reuse.NOTHING:
        return unused
    common = {slot: slot.context.reusable(prompt, len(prompt), Reuse.ALL) for slot in free}
    best = max(free, key=lambda slot: common[slot])
    n_held = len(best.context)
    if common[best] == n_held or (not empty and common[best] >= SAME_TEXT * n_held):
        return best
    return unused


def seat(slot: Slot, slots: Sequence[Slot], generation: Generation, reuse: Reuse) -> None:
    """Give a text a slot, whose context keeps what the text begins with.

    Args:
        slot: free.
        slots: all of them.
        generation: the text.
        reuse: what it may take over.

    Raises:
        NativeError: the runtime refuses.
    """
    context = slot.context
    context.rewind(context.reusable(generation.wants, generation.n_reusable, reuse))
    slot.generation, slot.reuse = generation, reuse
    copy_beginning(slot, slots)
    generation.begin(len(context))


def copy_beginning(slot: Slot, slots: Sequence[Slot]) -> None:
    """Copy what another slot holds of a text's prompt, where that is more than its own does.

    So several texts of one prompt, which take turns, have it computed once.

    Args:
        slot: of the text.
        slots: all of them.

    Raises:
        NativeError: the runtime refuses.
    """
    if slot.generation is None or len(slot.wants) < 2:
        return
    wants, most = slot.generation.wants, slot.generation.n_reusable
    n_held = {other: other.context.reusable(wants, most, slot.reuse) for other in slots}
    donor = max(slots, key=lambda other: n_held[other])
    if n_held[donor] > len(slot.context):
        slot.context.copy(donor.context, n_held[donor])
