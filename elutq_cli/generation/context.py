"""A context: a sequence of the C runtime, and the tokens whose keys and values it holds."""

from collections.abc import Sequence
from enum import Enum, auto

import numpy as np
from numpy.typing import NDArray

from elutq_cli.token_prefix import common_length
from elutq_native import PIECE_TOKENS, NativeSequence, Run

COPIED_TOKENS = 64
"""Tokens whose keys and values are copied at once, so that no copy takes much memory of its own."""


class Reuse(Enum):
    """What a text may take over of the keys and values that an earlier one left.

    Attributes:
        ALL: everything. Tokens that were evaluated one after the other are among it, which rounded their activations
            otherwise than a prompt's pieces: that can move a text.
        EXACT: what an empty context would hold after the same tokens, bit for bit: whole pieces from the start.
        NOTHING: nothing.
    """

    ALL = auto()
    EXACT = auto()
    NOTHING = auto()


class Context:
    """Knows tokens and keys and values; nothing of texts."""

    def __init__(self, sequence: NativeSequence) -> None:
        """Begin with an empty sequence."""
        self.sequence = sequence
        self._tokens: list[int] = []
        self._n_exact = 0  # tokens that were evaluated in whole pieces from the start

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def size(self) -> int:
        """Tokens that there is room for."""
        return self.sequence.context_size

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens held."""
        return tuple(self._tokens)

    def common(self, tokens: Sequence[int]) -> int:
        """Return how many tokens this context and a text begin with in common."""
        return common_length(self._tokens, tokens)

    def reusable(self, tokens: Sequence[int], most: int, reuse: Reuse) -> int:
        """Return how many tokens of a text need not be evaluated.

        Args:
            tokens: of the text, from its start.
            most: that need not be.
            reuse: what the text may take over.
        """
        if reuse is Reuse.NOTHING:
            return 0
        n_tokens = min(self.common(tokens), most)
        if reuse is Reuse.EXACT:
            n_tokens = _whole_pieces(min(n_tokens, self._n_exact))
        return n_tokens if self.sequence.can_rewind(n_tokens) else 0  # what is further back, still less

    def rewind(self, n_tokens: int) -> None:
        """Forget all but the first so many tokens: none, or as many as are reusable."""
        del self._tokens[n_tokens:]
        self._n_exact = _whole_pieces(min(self._n_exact, n_tokens))
        self.sequence.rewind(len(self._tokens))

    def clear(self) -> None:
        """Forget everything."""
        self.rewind(0)

    def run(self, tokens: Sequence[int], n_logits: int, hidden: NDArray[np.float32] | None = None) -> Run:
        """Return what evaluates tokens after those held; ``extend`` is told when that is done.

        Args:
            tokens: one or more.
            n_logits: of how many of them, the last ones, logits are wanted.
            hidden: (len(tokens), hidden_size) float32 for the hidden states of all of them, if they are wanted.
        """
        # An exception between the end of a pass and extend (a second Ctrl-C) leaves the sequence ahead.
        if self.sequence.position != len(self._tokens):
            self.sequence.rewind(len(self._tokens))
        return Run(self.sequence, tokens, n_logits, hidden)

    def extend(self, tokens: Sequence[int]) -> None:
        """Tell that these tokens were evaluated after those held."""
        if len(tokens) == PIECE_TOKENS and len(self) == self._n_exact:
            self._n_exact += PIECE_TOKENS
        self._tokens.extend(tokens)

    def export_state(self, first: int, n_tokens: int) -> NDArray[np.uint8]:
        """Return the keys and values of tokens held, as far as the runtime keeps them."""
        return self.sequence.export_state(first, n_tokens)

    def adopt(self, tokens: Sequence[int], state: NDArray[np.uint8]) -> None:
        """Append tokens whose keys and values are known, from ``export_state``.

        Raises:
            NativeError: there is no room for them, or a value is not finite.
        """
        self.sequence.import_state(state, len(tokens))
        self._tokens.extend(tokens)

    def copy(self, other: "Context", n_tokens: int) -> None:
        """Append tokens that another context goes on with, up to its first so many; it begins with those held here.

        Args:
            other: the context.
            n_tokens: how many; reusable there.
        """
        n_exact = min(other._n_exact, n_tokens) if len(self) == self._n_exact else 0
        for first in range(len(self), n_tokens, COPIED_TOKENS):
            end = min(first + COPIED_TOKENS, n_tokens)
            self.adopt(other.tokens[first:end], other.export_state(first, end - first))
        self._n_exact = max(self._n_exact, _whole_pieces(n_exact))


def _whole_pieces(n_tokens: int) -> int:
    return n_tokens // PIECE_TOKENS * PIECE_TOKENS
