"""The tools of a request: which there are, and whether the model may, must or must not call them."""

import re
from dataclasses import dataclass
from typing import Any

from elutq_cli.generation import LanguageModel
from elutq_cli.generation.after_mark import AfterMark
from elutq_cli.generation.constraint import Rule
from elutq_cli.generation.grammar import Grammar, GrammarError
from elutq_cli.server.calls.choose import spoken
from elutq_cli.server.calls.notation import Notation, Tool
from elutq_cli.server.errors import RequestError
from elutq_cli.server.fields import Fields

MOST_TOOLS = 128
"""As OpenAI has it."""

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True)
class ToolUse:
    """What a reply may call.

    Attributes:
        described: the tools, as the client described them, for the chat template.
        names: of the tools.
        notation: of the model's calls.
        grammar: of a reply that has to be calls, or calls or an answer of a given form, or whose
            calls are strict; None: it may be anything.
        parallel: whether a reply may have several.
        forced: whether it has to be calls and nothing else.
    """

    described: list[dict[str, Any]]
    names: frozenset[str]
    notation: Notation
    grammar: Rule | None
    parallel: bool
    forced: bool = False


def read_tools(fields: Fields, model: LanguageModel, structure: Grammar | None = None) -> ToolUse | None:
    """Return what a reply may call; None: nothing.

    Args:
        fields: of the body.
        model: replies.
        structure: what the reply has to match where it does not call.

    Raises:
        RequestError: the tools or the choice are wrong, or this model cannot call.
        ElutqError: calls are to be forced, and llguidance is not installed.
    """
    described = fields.get("tools") or []
    if not isinstance(described, list) or len(described) > MOST_TOOLS:
        raise RequestError(f"tools must be a list of at most {MOST_TOOLS} functions", "tools")
    tools = [_tool(entry, f"tools.{at}") for at, entry in enumerate(described)]
    names = frozenset(tool.name for tool in tools)
    if len(names) < len(tools):
        raise RequestError("two tools have one name", "tools")
    chosen = _choice(fields.get("tool_choice"), tools)
    parallel = fields.flag("parallel_tool_calls", True)
    if not tools or chosen is None:
        return None
    how = spoken(model.required_chat_template)
    if how is None:
        raise RequestError("tools are not supported by this model: its chat template does not know of them", "tools")
    if not chosen and structure is not None and structure.schema is None:
        raise RequestError("a reply matches a JSON schema or calls tools, but no other grammar: leave one out", "tools")
    grammar: Rule | None = None
    strict = bool(how.notation.openings) and any(tool.strict for tool in tools)
    if chosen or structure is not None or strict:
        many = parallel and how.many and not isinstance(fields.get("tool_choice"), dict)
        answer = None if chosen or structure is None else structure.schema
        opening = how.notation.openings[0] if not chosen and structure is None else ""
        try:
            grammar = how.notation.grammar(model.vocabulary, model.tokenizer, chosen or tools, many, answer, opening)
        except GrammarError as error:
            raise RequestError(str(error), "tools") from error
        if opening:
            grammar = AfterMark((opening,), grammar, model.tokenizer)
    return ToolUse(described, names, how.notation, grammar, parallel, bool(chosen))


def _tool(entry: object, place: str) -> Tool:
    is_function = isinstance(entry, dict) and entry.get("type", "function") == "function"
    function = entry.get("function") if isinstance(entry, dict) and is_function else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RequestError(f"{place} must be a function with a name", "tools")
    if not _NAME.fullmatch(function["name"]):
        raise RequestError(f"the name of {place} must be 1 to 64 letters, digits, dots, dashes, underscores", "tools")
    parameters = function.get("parameters")
    parameters = {} if parameters is None else parameters
    if not isinstance(parameters, dict):
        raise RequestError(f"the parameters of {place} must be a JSON schema", "tools")
    if parameters.get("type", "object") != "object":
        raise RequestError(f"the parameters of {place} must be of type object", "tools")
    # Nobody wants arguments that were not described, though a schema that does not forbid them has them.
    closed = {"type": "object", "properties": {}, "additionalProperties": False}
    closed = closed if not {"allOf", "anyOf", "oneOf", "$ref"} & set(parameters) else {"type": "object"}
    return Tool(function["name"], closed | parameters, f"{place}.function.parameters", function.get("strict") is True)


def _choice(value: object, tools: list[Tool]) -> list[Tool] | None:
    """Return the tools that have to be called: none of them under auto; None: no tool may be."""
    if value == "none":
        return None
    if value in (None, "auto"):
        return []
    if value == "required":
        if not tools:
            raise RequestError("tool_choice is required, and there are no tools", "tool_choice")
        return tools
    function = value.get("function") if isinstance(value, dict) and value.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise RequestError("tool_choice must be none, auto, required or a function with its name", "tool_choice")
    if not (found := [tool for tool in tools if tool.name == name]):
        raise RequestError(f"tool_choice names {name:.64}, which is none of the tools", "tool_choice")
    return found
