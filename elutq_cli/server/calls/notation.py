"""How models write calls of tools: one description a notation, by which calls are read and, where forced, written."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from elutq_cli.generation.grammar import (
    COMPACT_LAYOUT,
    JSON_LAYOUT,
    Grammar,
    GrammarError,
    Schema,
    Vocabulary,
    lark_string,
    without_unknown_formats,
)
from elutq_formats.tokenizer import Tokenizer

MOST_CALLS = 16
"""Of one forced reply: models that do not end would call for ever."""

NAMED_OBJECT = r'\{\s*"name"\s*:\s*(?P<name>"(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=[{"])'
"""What comes before the arguments, where a call is an object."""


@dataclass(frozen=True)
class Tool:
    """A function that a model may call.

    Attributes:
        name: of the function.
        parameters: a JSON schema of its arguments.
        place: where the client described it, for messages.
        strict: whether the model may not depart from the schema, though it calls of its own accord.
    """

    name: str
    parameters: dict[str, Any]
    place: str = ""
    strict: bool = False


@dataclass
class Call:
    """A call of a tool.

    Attributes:
        call_id: by which the client's answer names it.
        name: the tool's.
        complete: whether all of its arguments came.
    """

    call_id: str
    name: str
    complete: bool = False


@dataclass(frozen=True)
class Notation:
    """How a family of models writes calls.

    Written is ``begin``, then each call, which is ``head`` with the tool's name in it, the arguments as JSON and
    ``tail``, with ``separator`` between two calls; then ``end``.

    Attributes:
        name: the family's.
        openings: texts with which calls begin; what is before them is the reply's text.
        first: texts with which calls begin where they are the reply's first.
        skipped: texts around calls, openings among them, that are no text of the reply.
        head: ``NAME`` stands for the name, as JSON, and ``BARE`` for the name as it is.
        begin: see above.
        tail: see above.
        separator: see above.
        end: see above.
        pattern: what comes before the arguments when a call is read, with the group ``name``.
        bare_names: a call is no object: its name comes as it is, and the arguments follow.
    """

    name: str
    openings: tuple[str, ...]
    skipped: tuple[str, ...]
    head: str
    begin: str = ""
    tail: str = "}"
    separator: str = ""
    end: str = ""
    first: tuple[str, ...] = ()
    pattern: re.Pattern[str] = field(default=re.compile(NAMED_OBJECT))
    bare_names: bool = False

    def marks(self, tokenizer: Tokenizer) -> dict[str, int]:
        """Return the special tokens of a vocabulary that calls are marked by, which no text shows otherwise."""
        ids = {mark: tokenizer.token_id(mark) for mark in (*self.openings, *self.first, *self.skipped)}
        return {mark: token for mark, token in ids.items() if token is not None and tokenizer.is_hidden(token)}

    def grammar(
        self,
        vocabulary: Vocabulary,
        tokenizer: Tokenizer,
        tools: Sequence[Tool],
        many: bool,
        answer: Schema | None = None,
        opening: str = "",
    ) -> Grammar:
        """Return the grammar of a reply that is calls of these tools and nothing else.

        Args:
            vocabulary: of the model.
            tokenizer: the model's.
            tools: one or more.
            many: whether it may be several calls.
            answer: a JSON schema of what the reply may be instead; None: nothing.
            opening: what of the first call is there already.

        Raises:
            GrammarError: the schema of a tool cannot be honoured; the message names the tool and the part.
        """
        marks = self.marks(tokenizer)
        again = f"({_written(self.separator, marks)} call){{0,{MOST_CALLS - 1}}}" if many else ""
        begin, first = self.begin.removeprefix(opening), "call"
        if opening and begin == self.begin:
            first = "first"
            rules = ["first: " + " | ".join(f"first_{at}" for at in range(len(tools)))]
        else:
            rules = []
        space = "/[ \\n]{0,2}/" if opening else ""
        rules.append(f"calls: {space} {_written(begin, marks)} {first} {again} {_written(self.end, marks)}")
        rules.append("start: calls" if answer is None else "start: calls | answer")
        if answer is not None:
            rules.append(f"answer: %json {json.dumps(_with_layout(answer, JSON_LAYOUT))}")
        rules.append("call: " + " | ".join(f"call_{at}" for at in range(len(tools))))
        for at, tool in enumerate(tools):
            try:
                Grammar.of_json_schema(vocabulary, tool.parameters)
            except GrammarError as error:
                raise GrammarError(f"{tool.place}: {error}") from error
            head = self.head.replace("NAME", json.dumps(tool.name, ensure_ascii=False)).replace("BARE", tool.name)
            rules.append(f"call_{at}: {_written(head, marks)} arguments_{at} {_written(self.tail, marks)}")
            if first == "first":
                opened = _written(head.removeprefix(opening).lstrip(), marks)
                rules.append(f"first_{at}: {opened} arguments_{at} {_written(self.tail, marks)}")
            rules.append(f"arguments_{at}: %json {json.dumps(_with_layout(tool.parameters, COMPACT_LAYOUT))}")
        return Grammar.of_lark(vocabulary, "\n".join(rules))


def _with_layout(schema: Schema, layout: Mapping[str, object]) -> Schema:
    return {**({} if isinstance(schema, bool) else without_unknown_formats(schema)), "x-guidance": layout}


def _written(text: str, marks: dict[str, int]) -> str:
    """Return a text for a grammar, special tokens by their ids."""
    if not marks:
        return lark_string(text) if text else ""
    pieces = re.split("(" + "|".join(map(re.escape, sorted(marks, key=len, reverse=True))) + ")", text)
    return " ".join(f"<[{marks[piece]}]>" if piece in marks else lark_string(piece) for piece in pieces if piece)
