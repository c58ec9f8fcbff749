"""Slots: contexts, each with at most one text under way, and which of them a text gets."""

from collections.abc import Sequence
from dataclasses import dataclass

from elutq_cli.generation.context import Context
from elutq_cli.generation.generation import Generation

SAME_TEXT = 0.5
"""A prompt that begins with this share of what a context holds is taken for another turn of the same conversation."""


@dataclass(eq=False)
class Slot:
    """A context, and the text that it is for.

    Attributes:
        context: keys and values; they stay when the text is over.
        generation: the text under way.
        last_used: number of the step in which it was last evaluated.
        last_piece: number of the step in which a piece of a prompt was last evaluated.
    """

    context: Context
    generation: Generation | None = None
    last_used: int = 0
    last_piece: int = 0

    @property
    def wants(self) -> Sequence[int]:
        """The tokens that are to be evaluated next, up to the next logits."""
        return () if self.generation is None else self.generation.wants[len(self.context) :]


def choose_slot(slots: Sequence[Slot], prompt: Sequence[int], fresh: bool) -> Slot | None:
    """Return the free slot that a text is to have.

    That is the one whose context the prompt goes on from, where there is one. Otherwise something is lost: first what
    is nothing, then what has not been used for longest.

    Args:
        slots: all of them.
        prompt: the text's.
        fresh: the text is to begin with an empty context.

    Returns:
        A slot; None: all have a text under way.
    """
    free = sorted((slot for slot in slots if slot.generation is None), key=lambda slot: slot.last_used)
    if not free:
        return None
    empty = [slot for slot in free if not len(slot.context)]
    unused = (empty or free)[0]
    if fresh:
        return unused
    common = {slot: slot.context.common(prompt) for slot in free}
    best = max(free, key=lambda slot: common[slot])
    n_held = len(best.context)
    if common[best] == n_held or (not empty and common[best] >= SAME_TEXT * n_held):
        return best
    return unused


def seat(slot: Slot, slots: Sequence[Slot], generation: Generation, fresh: bool) -> None:
    """Give a text a slot, whose context keeps what the text begins with.

    Args:
        slot: free.
        slots: all of them: what another one holds of the text's beginning is copied.
        generation: the text.
        fresh: nothing is kept.

    Raises:
        NativeError: the runtime refuses.
    """
    context, wants = slot.context, generation.wants
    donor = max(slots, key=lambda other: other.context.common(wants)).context
    n_kept = 0 if fresh else min(donor.common(wants), generation.n_reusable)
    context.rewind(min(context.common(wants), n_kept))
    if len(context) < n_kept:
        context.copy(donor, n_kept)
    slot.generation = generation
    generation.begin(n_kept)
