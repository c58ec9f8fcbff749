"""Multiple-choice questions, answered by the choice that a model holds for the likeliest continuation.

Source: lm-evaluation-harness 0.4, output type ``multiple_choice``: what is a context and what its continuation
(``_encode_pair``, ``loglikelihood``), which tokens are cut off (``_loglikelihood_tokens``), ``acc``, ``acc_norm``, and
the standard error of their means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from elutq_cli.evaluation.continuations import ContinuationModel, Request
from elutq_cli.evaluation.score import DAMAGED, Advance, Distributions, row_chunks
from elutq_cli.text_input import json_lines, read_text
from elutq_formats.errors import ElutqError
from elutq_formats.tokenizer import Tokenizer

CONTEXT_FIELDS, GOLD_FIELDS = ("query", "context"), ("gold", "label")
"""Of each, one name is the field's."""


@dataclass(frozen=True)
class Question:
    """One line of a file.

    Attributes:
        place: the file and the line, for a reader.
        context: the text before the choices; may be empty.
        choices: at least two.
        gold: which of them is right.
        delimiter: stands between the context and a choice.
    """

    place: str
    context: str
    choices: tuple[str, ...]
    gold: int
    delimiter: str = " "


@dataclass(frozen=True)
class TaskResult:
    """Shares of questions that were answered rightly, and standard errors of these means (None: of one question).

    Attributes:
        acc: by the highest log-likelihood of a choice.
        acc_stderr: of acc.
        acc_norm: by the highest log-likelihood divided by the number of the choice's characters.
        acc_norm_stderr: of acc_norm.
        n_questions: how many there were.
        n_cut: how many had a context that is cut at its beginning.
    """

    acc: float
    acc_stderr: float | None
    acc_norm: float
    acc_norm_stderr: float | None
    n_questions: int
    n_cut: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)


def read_questions(path: Path) -> list[Question]:
    """Read a JSONL file, one question a line; blank lines are passed over.

    Fields: ``query`` or ``context``, a string; ``choices``, strings; ``gold`` or ``label``, the number of the right one
    (from 0) or its text; ``target_delimiter``, a space when it is not there. Others are not looked at.

    Raises:
        ElutqError: the file cannot be read, holds no question, or a line is none.
    """
    found = [_question(entry, place) for place, entry in json_lines(read_text(path), str(path))]
    if not found:
        raise ElutqError(f"{path} has no question: write one JSON object a line")
    return found


def answer_questions(
    model: ContinuationModel,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    max_tokens: int,
    advance: Advance = lambda _: None,
) -> TaskResult:
    """Have a model answer questions.

    Args:
        model: what is measured.
        tokenizer: its tokenizer.
        questions: at least one.
        max_tokens: that the model is given at most; a longer context loses its beginning.
        advance: progress; its calls add up to the number of choices.

    Raises:
        ElutqError: a choice is longer than max_tokens or adds nothing to its context, or the logits are not finite.
    """
    pairs = [[encode_pair(tokenizer, question, choice) for choice in question.choices] for question in questions]
    requests = []
    for question, found in zip(questions, pairs, strict=True):
        requests += [cut(pair, max_tokens, question.place) for pair in found]
    sums = iter(log_likelihoods(model, requests, advance))
    right, right_norm = [], []
    for question in questions:
        totals = np.array([next(sums) for _ in question.choices])
        lengths = np.array([len(choice) for choice in question.choices])
        right.append(int(totals.argmax()) == question.gold)
        right_norm.append(int((totals / lengths).argmax()) == question.gold)
    n_cut = sum(any(pair.n_evaluated > max_tokens for pair in found) for found in pairs)
    return TaskResult(*_mean(right), *_mean(right_norm), len(questions), n_cut)


def encode_pair(tokenizer: Tokenizer, question: Question, choice: str) -> Request:
    """Return the tokens of a context and of a choice as its continuation.

    Space at the end of the context belongs to the continuation, whose tokens are those of the whole text after as many
    as the context has alone. Without a context BOS stands for it, or EOS in a vocabulary that has none.

    Raises:
        ElutqError: the choice adds no token.
    """
    context = question.context.rstrip()
    continuation = question.context[len(context) :] + question.delimiter + choice
    if question.context:
        before = _encode(tokenizer, context)
        after = _encode(tokenizer, context + continuation)[len(before) :]
    else:
        before, after = [_start_token(tokenizer, question.place)], tokenizer.encode(continuation)
        if after[:1] == before:
            after = after[1:]
    if not before:  # of a context that is nothing but space, in a vocabulary without BOS
        before = [_start_token(tokenizer, question.place)]
    if not after:
        raise ElutqError(f"{question.place}: the choice {choice!r:.40} adds no token to its context")
    return Request(tuple(before), tuple(after))


def cut(request: Request, max_tokens: int, place: str) -> Request:
    """Return a request that gives the model at most max_tokens: the beginning of its context is left out.

    Raises:
        ElutqError: there is no room for the continuation.
    """
    if request.n_evaluated <= max_tokens:
        return request
    if len(request.continuation) > max_tokens:
        raise ElutqError(
            f"{place}: a choice has {len(request.continuation)} tokens, and a context has room for {max_tokens}: use a "
            "larger -c, or a model with a longer context"
        )
    return Request(request.context[request.n_evaluated - max_tokens :], request.continuation)


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return a text's tokens after what the tokenizer puts before one, and without what it puts behind it."""
    ids, prefix = tokenizer.encode(text), list(tokenizer.prefix)
    return ids if ids[: len(prefix)] == prefix else prefix + ids


def _start_token(tokenizer: Tokenizer, place: str) -> int:
    """Return BOS, or EOS where there is none: what stands for an empty context."""
    for name in ("bos_token", "eos_token"):
        spelled = tokenizer.special_tokens.get(name)
        if spelled is not None and (token := tokenizer.token_id(spelled)) is not None:
            return token
    raise ElutqError(f"{place} has no context, and the tokenizer neither BOS nor EOS to stand for it: write a context")


def log_likelihoods(model: ContinuationModel, requests: Sequence[Request], advance: Advance) -> list[float]:
    """Return the sum of the log-probabilities of each continuation's tokens.

    Raises:
        ElutqError: the logits are not finite.
    """
    sums = []
    with closing(model.continuation_logits(requests, advance)) as stream:
        for request, logits in zip(requests, stream, strict=True):
            tokens = np.array(request.continuation)
            chunks = row_chunks(*logits.shape)
            total = sum(float(Distributions(logits[rows]).log_probabilities(tokens[rows]).sum()) for rows in chunks)
            if not math.isfinite(total):
                raise ElutqError(DAMAGED)
            sums.append(total)
    return sums


def _mean(right: Sequence[bool]) -> tuple[float, float | None]:
    """Return the mean, and its standard error from the sample's deviation."""
    n = len(right)
    mean = sum(right) / n
    return mean, math.sqrt(mean * (1 - mean) / (n - 1)) if n > 1 else None


def _question(entry: object, place: str) -> Question:
    """Check what one line says.

    Raises:
        ElutqError: it is no question.
    """
    if not isinstance(entry, dict):
        raise ElutqError(f"{place} is not a JSON object: write one question a line")
    context = _field(entry, CONTEXT_FIELDS, place)
    if not isinstance(context, str):
        raise ElutqError(f"{place}: the context is not a string")
    choices = _field(entry, ("choices",), place)
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise ElutqError(f"{place}: choices is not a list of strings")
    if len(choices) < 2:
        raise ElutqError(f"{place}: choices has {len(choices)} entries: a question needs two")
    if "" in choices:
        raise ElutqError(f"{place}: choice {choices.index('')} is empty")
    delimiter = entry.get("target_delimiter", " ")
    if not isinstance(delimiter, str):
        raise ElutqError(f"{place}: target_delimiter is not a string")
    return Question(place, context, tuple(choices), _gold(_field(entry, GOLD_FIELDS, place), choices, place), delimiter)


def _field(entry: dict[str, Any], names: Sequence[str], place: str) -> Any:  # noqa: ANN401 (anything that JSON has)
    """Return the value of the one field that has one of these names."""
    given = [name for name in names if name in entry]
    if len(given) != 1:
        problem = f"both {' and '.join(given)}: give one" if given else f"no field {' or '.join(names)}"
        raise ElutqError(f"{place} has {problem}")
    return entry[given[0]]


def _gold(gold: Any, choices: list[str], place: str) -> int:  # noqa: ANN401 (anything that JSON has)
    """Return the number of the right choice, given as a number, in digits, or as its text.

    Raises:
        ElutqError: it is none of these, or digits that name one choice by its number and another by its text.
    """
    if isinstance(gold, str):
        number = int(gold) if gold.isascii() and gold.isdigit() and len(gold) < 10 else -1
        by_text = choices.index(gold) if gold in choices else None
        if by_text is not None and 0 <= number < len(choices) and number != by_text:
            raise ElutqError(
                f"{place}: the right choice is {gold!r}, the text of choice {by_text} and the number of another: write "
                f"{by_text} or {number}, without quotes"
            )
        if by_text is not None:
            return by_text
        gold = number if number >= 0 else gold
    if isinstance(gold, bool) or not isinstance(gold, int) or not 0 <= gold < len(choices):
        raise ElutqError(
            f"{place}: the right choice is {gold!r:.40}: it must be 0 to {len(choices) - 1}, or one of the choices"
        )
    return gold
