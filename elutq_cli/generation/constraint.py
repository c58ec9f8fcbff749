"""Which tokens a text may go on with, where it has to match a grammar: a mask for each token, and its end.

It knows nothing of grammars: llguidance's matcher does. Its state is a text's own, and used by one thread at a time.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from elutq_formats.errors import ElutqError

Tokens = NDArray[np.int64]

LARGE_VOCABULARY = 1 << 14
"""Tokens from which a mask takes longer than to hand it to another thread."""


class Rule(Protocol):
    """What bounds the choice of tokens; each text under it starts a state of its own."""

    def start(self) -> "RuleState":
        """Return the state of a text at its start."""


class RuleState(Protocol):
    """The state of one text under a rule."""

    @property
    def complete(self) -> bool:
        """Whether the text is whole and nothing can follow."""

    @property
    def thought_tokens(self) -> int:
        """Tokens of thoughts so far."""

    def allowed(self, may_end: bool) -> Tokens | None:
        """Return the tokens that may come next, as (n,) int64 in ascending order, one at least; None: all.

        Args:
            may_end: whether the tokens that end a text are among them where it is whole.

        Raises:
            ElutqError: there are none.
        """

    def advance(self, token: int) -> None:
        """Append a token that was allowed."""


class Constraint:
    """The state of one text under a grammar; see ``RuleState``.

    The next mask of a large vocabulary is computed in another thread while the model's pass runs: both are out of
    Python then.

    Attributes:
        complete: whether the text matches and nothing can follow.
        thought_tokens: none.
    """

    thought_tokens = 0

    def __init__(self, matcher: Any, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:  # noqa: ANN401
        """Begin a text.

        Args:
            matcher: llguidance's, at the start of the grammar.
            vocab_size: tokens that a mask has.
            eos_token_ids: those that end a text, ascending.
        """
        self._matcher = matcher
        self._vocab_size, self._eos = vocab_size, np.asarray(eos_token_ids, np.int64)
        self._next: Future[Tokens] | None = None
        self.complete = bool(matcher.is_stopped())

    def allowed(self, may_end: bool) -> Tokens:
        """Return the tokens that may come next, as (n,) int64 in ascending order.

        Args:
            may_end: whether the tokens that end a text are among them where the grammar is satisfied.

        Raises:
            ElutqError: there are none, or the grammar is too complex.
        """
        tokens = self._compute() if self._next is None else self._next.result()
        self._next = None
        if self._matcher.is_error():
            reason = self._matcher.get_error().partition("<state>")[0]
            raise ElutqError(f"the grammar fails: {' '.join(reason.split()):.200}")
        if may_end and self._matcher.is_accepting():
            tokens = np.insert(tokens, np.searchsorted(tokens, self._eos), self._eos)
        if not len(tokens):
            raise ElutqError("the grammar cannot go on: the model has no token for what it asks for")
        return tokens

    def advance(self, token: int) -> None:
        """Append a token that was allowed."""
        self._matcher.consume_token(token)
        self.complete = bool(self._matcher.is_stopped())
        if self._vocab_size >= LARGE_VOCABULARY and not self.complete:
            self._next = _threads().submit(self._compute)

    def _compute(self) -> Tokens:
        """Return the tokens that the grammar allows, but for those that end a text."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        mask = np.unpackbits(bits, count=self._vocab_size, bitorder="little")
        mask[self._eos] = 0
        return np.flatnonzero(mask.view(np.bool_))


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "elutq-grammar")
