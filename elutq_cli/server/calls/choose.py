"""Which notation a model's chat template asks for: the one that reads back what the template writes of a call."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from elutq_cli.generation import ChatTemplate
from elutq_cli.server.calls.granite import GRANITE
from elutq_cli.server.calls.hermes import HERMES
from elutq_cli.server.calls.learned import learn
from elutq_cli.server.calls.llama3 import LLAMA3
from elutq_cli.server.calls.mistral import MISTRAL, MISTRAL_NAMED
from elutq_cli.server.calls.notation import Notation
from elutq_cli.server.calls.reader import CallReader
from elutq_cli.token_prefix import common_length
from elutq_formats.errors import ElutqError

NOTATIONS = (LLAMA3, HERMES, MISTRAL, MISTRAL_NAMED, GRANITE)
"""Known ones; the first has no marks, and Hermes's may be left out."""

_ANSWER = "An answer."
_ARGUMENTS = {"key": "value"}
_NAMES = ("first_tool", "second_tool")
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "A tool.",
            "parameters": {
                "type": "object",
                "properties": {"key": {"type": "string", "description": "A key."}},
                "required": ["key"],
            },
        },
    }
    for name in _NAMES
]


@dataclass(frozen=True)
class Spoken:
    """How a model calls tools.

    Attributes:
        notation: of its calls.
        many: whether its template has a place for several in one reply.
    """

    notation: Notation
    many: bool


@lru_cache(8)
def spoken(template: ChatTemplate) -> Spoken | None:
    """Return how a model calls tools, as its chat template shows; None: the template does not know of tools."""
    question: list[Mapping[str, Any]] = [{"role": "user", "content": "A question."}]
    prompt = _render(template, question, begins=True)
    if prompt is None or prompt == _render(template, question, begins=True, tools=None):
        return None
    one, two = (_reply(template, question, prompt, names) for names in (_NAMES[:1], _NAMES))
    many = two is not None and all(name in two for name in _NAMES)
    if one is not None:
        for notation in NOTATIONS:
            if _reads(notation, one):
                return Spoken(notation, many)
        answered = _render(template, [*question, {"role": "assistant", "content": _ANSWER}], begins=False)
        own = learn(one, two if many else None, (answered or "").rpartition(_ANSWER)[2])
        if own is not None and _reads(own, one):
            return Spoken(own, many)
    # A template may tell the model how to call, and leave calls that were made out.
    told = [notation for notation in NOTATIONS if any(mark in template.source for mark in notation.openings)]
    return Spoken(told[0], True) if told else None


def _reads(notation: Notation, reply: str) -> bool:
    """Return whether a notation reads a reply, and would write the marks and names that it has."""
    written = [*notation.openings, *(key for key in ('"arguments"', '"parameters"') if key in notation.head)]
    if any(text not in reply for text in written):
        return False
    reader = CallReader(notation, _NAMES)
    calls = [part for part in (*reader.put(reply), *reader.finish()) if not isinstance(part, str)]
    try:
        made = json.loads("".join(arguments for _, arguments in calls))
    except ValueError:
        return False
    return made == _ARGUMENTS and {call.name for call, _ in calls} == set(_NAMES[:1])


def _reply(template: ChatTemplate, question: list[Mapping[str, Any]], prompt: str, names: Sequence[str]) -> str | None:
    """Return what a template writes of a reply that is calls."""
    for arguments in (_ARGUMENTS, json.dumps(_ARGUMENTS)):
        calls = [
            {"id": f"call0000{at}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for at, name in enumerate(names)
        ]
        text = _render(template, [*question, {"role": "assistant", "content": "", "tool_calls": calls}], begins=False)
        if text is not None:
            return text[common_length(prompt, text) :]
    return None


def _render(
    template: ChatTemplate, messages: list[Mapping[str, Any]], begins: bool, tools: object = _TOOLS
) -> str | None:
    try:
        return template.render(messages, add_generation_prompt=begins, variables={"tools": tools})
    except ElutqError:
        return None
