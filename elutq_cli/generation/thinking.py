"""Thoughts before an answer: which marks a chat template has for them, where they end, and how long they may be."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from elutq_cli.generation.constraint import Rule, RuleState, Tokens
from elutq_cli.generation.template import ChatTemplate
from elutq_formats.errors import ElutqError
from elutq_formats.tokenizer import Tokenizer

NO_BUDGET = -1
"""Thoughts may be as long as the model likes."""

Piece = tuple[bool, str]
"""A piece of a reply: whether it is a thought, and its text."""


@dataclass(frozen=True)
class Marks:
    """What a model writes around its thoughts."""

    opening: str
    closing: str

    def opened_by(self, prompt: str) -> bool:
        """Return whether a prompt ends within thoughts, so that the reply begins with one."""
        return prompt.rstrip().endswith(self.opening)

    def special(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Return those of them that are special tokens, which no text shows otherwise."""
        ids = (tokenizer.token_id(mark) for mark in (self.opening, self.closing))
        return tuple(token for token in ids if token is not None and tokenizer.is_hidden(token))


KNOWN = (
    Marks("<think>", "</think>"),
    Marks("[THINK]", "[/THINK]"),
    Marks("<|START_THINKING|>", "<|END_THINKING|>"),
    Marks("<seed:think>", "</seed:think>"),
)
"""Of Qwen 3, DeepSeek R1, SmolLM3 and many more; of Magistral; of Command A; of Seed-OSS."""


def marks_of(template: str) -> Marks | None:
    """Return what a chat template, as Jinja, marks thoughts with, if it does."""
    return next((marks for marks in KNOWN if marks.closing in template), None)


def check_budget(budget: int, template: ChatTemplate | None) -> None:
    """Refuse a budget of thoughts where nothing marks them.

    Raises:
        ElutqError: the template does not.
    """
    if budget != NO_BUDGET and (template is None or marks_of(template.source) is None):
        raise ElutqError("--reasoning-budget needs a chat template that marks thoughts, and there is none here")


class ThoughtReader:
    """Splits a reply into thoughts and answer while it comes; white space between them is neither's."""

    def __init__(self, marks: Marks, within: bool) -> None:
        """Begin a reply.

        Args:
            marks: the model's.
            within: whether it begins with a thought, whose opening mark the prompt has.
        """
        self._marks, self._within = marks, within
        self._buffer = ""
        self._at_start = True  # of the reply, of the thoughts or of the answer
        self._may_open = not within

    def put(self, text: str) -> Iterator[Piece]:
        """Append text; yield what it settles."""
        self._buffer += text
        if self._may_open and not self._open():
            return
        if self._within:
            yield from self._think()
        if not self._within and (answer := self._trimmed()):
            self._buffer = ""
            yield False, answer

    def finish(self) -> Iterator[Piece]:
        """Yield what was held back."""
        rest, self._buffer = self._trimmed(), ""
        if rest and not (self._within and rest.isspace()):
            yield self._within, rest

    def _open(self) -> bool:
        """Look for the opening mark at the reply's start; return whether it is known if it is there."""
        begun, opening = self._buffer.lstrip(), self._marks.opening
        if opening.startswith(begun) and begun != opening:
            return False
        self._may_open = False
        if begun.startswith(opening):
            self._within, self._buffer = True, begun[len(opening) :]
        else:
            self._at_start = False  # white space before an answer without thoughts is its own
        return True

    def _think(self) -> Iterator[Piece]:
        closing, text = self._marks.closing, self._trimmed()
        thought, found, rest = text.partition(closing)
        n_begun = next((n for n in range(len(closing) - 1, 0, -1) if thought.endswith(closing[:n])), 0)
        certain = thought if found else thought[: len(thought) - n_begun]
        certain = certain.rstrip()
        if certain:
            yield True, certain
        self._buffer = rest if found else thought[len(certain) :]
        if found:
            self._within, self._at_start = False, True

    def _trimmed(self) -> str:
        """Return the buffer without the white space that thoughts or an answer begin with."""
        text = self._buffer.lstrip() if self._at_start else self._buffer
        self._at_start = self._at_start and not text
        return text


@dataclass(frozen=True)
class Thinking:
    """The rule of a reply that may think before it answers.

    Attributes:
        marks: of thoughts.
        within: whether it begins with a thought, whose opening mark the prompt has.
        budget: tokens of thoughts, after which they are closed; or NO_BUDGET.
        answer: the rule of what follows them.
        tokenizer: of the model.
        vocab_size: of the model.
    """

    marks: Marks
    within: bool
    budget: int
    answer: Rule | None
    tokenizer: Tokenizer
    vocab_size: int

    @classmethod
    def for_reply(
        cls,
        template: ChatTemplate | None,
        prompt: str,
        budget: int,
        answer: Rule | None,
        tokenizer: Tokenizer,
        vocab_size: int,
    ) -> "Thinking | None":
        """Return the rule of the reply to a prompt that a template wrote; None: it marks no thoughts."""
        marks = None if template is None else marks_of(template.source)
        if marks is None:
            return None
        return cls(marks, marks.opened_by(prompt), budget, answer, tokenizer, vocab_size)

    @property
    def reader(self) -> ThoughtReader:
        """What tells the thoughts of a reply from its answer."""
        return ThoughtReader(self.marks, self.within)

    def start(self) -> RuleState:
        """Return the state of a reply at its start."""
        return _ThinkingState(self)


class _ThinkingState:
    """See ``RuleState``."""

    def __init__(self, rule: Thinking) -> None:
        self._rule = rule
        self._answer = None if rule.answer is None else rule.answer.start()
        self._phase = "thoughts" if rule.within else "start"
        self._text = b""
        self._closing = rule.tokenizer.encode(f"\n{rule.marks.closing}\n\n")
        self._forced: list[int] = []
        self.thought_tokens = 0
        # While it thinks, where an answer has to come.
        everything = np.arange(0 if self._answer is None else rule.vocab_size, dtype=np.int64)
        self._endless = everything[~np.isin(everything, rule.tokenizer.eos_token_ids)]
        self._force_end()

    @property
    def complete(self) -> bool:
        return self._phase == "answer" and not self._forced and self._answer is not None and self._answer.complete

    def allowed(self, may_end: bool) -> Tokens | None:
        if self._forced:
            return np.asarray(self._forced[:1], np.int64)
        if self._answer is None:
            return None
        if self._phase == "thoughts":
            return self._endless
        allowed = self._answer.allowed(may_end)
        opening = self._rule.tokenizer.token_id(self._rule.marks.opening)
        if self._phase == "answer" or opening is None or allowed is None:
            return allowed
        return np.union1d(allowed, [opening])

    def advance(self, token: int) -> None:
        rule = self._rule
        if self._forced:
            del self._forced[0]
            self._phase = "thoughts" if self._forced else "answer"
            return
        if self._phase == "answer":
            if self._answer is not None:
                self._answer.advance(token)
            return
        self._text += rule.tokenizer.token_bytes(token)
        if self._phase == "start":
            self._begin(token)
        else:
            self.thought_tokens += 1
            self._text = self._text[-_KEPT_BYTES:]
            if rule.marks.closing.encode() in self._text:
                self._phase = "answer"
        self._force_end()

    def _begin(self, token: int) -> None:
        """Find out whether the reply begins with a thought."""
        begun, opening = self._text.lstrip(), self._rule.marks.opening.encode()
        if begun.startswith(opening):
            self._phase, self._text = "thoughts", begun[len(opening) :]
        elif self._answer is not None or not opening.startswith(begun):
            self._phase = "answer"
            if self._answer is not None:
                self._answer.advance(token)

    def _force_end(self) -> None:
        if self._phase == "thoughts" and NO_BUDGET < self._rule.budget <= self.thought_tokens:
            self._forced = list(self._closing)


_KEPT_BYTES = 256
"""Of thoughts, to find the mark that closes them: a mark and the longest token."""
