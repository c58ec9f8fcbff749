"""A context: a sequence of the C runtime, and the tokens whose keys and values it holds."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from elutq_cli.token_prefix import common_length
from elutq_native import NativeSequence, Run

COPIED_TOKENS = 64
"""Tokens whose keys and values are copied at once, so that no copy takes much memory of its own."""


class Context:
    """Knows tokens and keys and values; nothing of texts."""

    def __init__(self, sequence: NativeSequence) -> None:
        """Begin with an empty sequence."""
        self.sequence = sequence
        self._tokens: list[int] = []

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

    def rewind(self, n_tokens: int) -> None:
        """Forget all but the first so many tokens."""
        del self._tokens[n_tokens:]
        self.sequence.rewind(len(self._tokens))

    def clear(self) -> None:
        """Forget everything."""
        self.rewind(0)

    def run(self, tokens: Sequence[int], n_logits: int) -> Run:
        """Return what evaluates tokens after those held; ``extend`` is told when that is done.

        Args:
            tokens: one or more.
            n_logits: of how many of them, the last ones, logits are wanted.
        """
        # An exception between the end of a pass and extend (a second Ctrl-C) leaves the sequence ahead.
        if self.sequence.position != len(self._tokens):
            self.sequence.rewind(len(self._tokens))
        return Run(self.sequence, tokens, n_logits)

    def extend(self, tokens: Sequence[int]) -> None:
        """Tell that these tokens were evaluated after those held."""
        self._tokens.extend(tokens)

    def export_state(self, first: int, n_tokens: int) -> NDArray[np.uint8]:
        """Return the keys and values of tokens held, as the runtime keeps them."""
        return self.sequence.export_state(first, n_tokens)

    def adopt(self, tokens: Sequence[int], state: NDArray[np.uint8]) -> None:
        """Append tokens whose keys and values are known, from ``export_state``.

        Raises:
            NativeError: there is no room for them, or a value is not finite.
        """
        self.sequence.import_state(state)
        self._tokens.extend(tokens)

    def copy(self, other: "Context", n_tokens: int) -> None:
        """Append tokens that another context goes on with, up to its first so many; it begins with those held here."""
        for first in range(len(self), n_tokens, COPIED_TOKENS):
            end = min(first + COPIED_TOKENS, n_tokens)
            self.adopt(other.tokens[first:end], other.export_state(first, end - first))
