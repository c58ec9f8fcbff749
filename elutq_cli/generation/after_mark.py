"""A rule that begins in the middle of a text: where the model writes a mark of its own accord."""

from collections.abc import Sequence
from dataclasses import dataclass

from elutq_cli.generation.constraint import Rule, RuleState, Tokens
from elutq_formats.tokenizer import Tokenizer

KEPT_BYTES = 256
"""Of a text, to find a mark: as many as a mark and the longest token have."""


@dataclass(frozen=True)
class AfterMark:
    """Binds what follows a mark, and nothing before it.

    Attributes:
        marks: texts, of which the first to come counts.
        rule: of what follows, white space by which the mark's last token goes on left out.
        tokenizer: of the model.
    """

    marks: Sequence[str]
    rule: Rule
    tokenizer: Tokenizer

    def start(self) -> RuleState:
        """Return the state of a text at its start."""
        return _State(self)


class _State:
    """See ``RuleState``."""

    thought_tokens = 0

    def __init__(self, rule: AfterMark) -> None:
        self._rule = rule
        self._text = b""
        self._bound: RuleState | None = None

    @property
    def complete(self) -> bool:
        return self._bound is not None and self._bound.complete

    def allowed(self, may_end: bool) -> Tokens | None:
        return None if self._bound is None else self._bound.allowed(may_end)

    def advance(self, token: int) -> None:
        if self._bound is not None:
            self._bound.advance(token)
            return
        self._text = (self._text + self._rule.tokenizer.token_bytes(token))[-KEPT_BYTES:]
        for mark in self._rule.marks:
            _, found, rest = self._text.partition(mark.encode())
            if found:
                self._text = b""
                if not rest.strip():  # else its token has more of a call than a rule could still bind
                    self._bound = self._rule.rule.start()
                return
