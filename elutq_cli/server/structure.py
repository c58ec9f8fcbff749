"""What a text has to match: OpenAI's ``response_format``, and the fields that other servers have for the same."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from elutq_cli.generation import LanguageModel
from elutq_cli.generation.grammar import ANY_OBJECT, Grammar, GrammarError
from elutq_cli.server.errors import RequestError
from elutq_cli.server.fields import Fields

Reader = Callable[[Any, LanguageModel, str], Grammar | None]
"""Reads a field's value, for a model, under the name by which errors call it."""


def read_structure(fields: Fields, model: LanguageModel) -> Grammar | None:
    """Return the grammar that a body asks for, if it does.

    Raises:
        RequestError: it is wrong, cannot be honoured, or is asked for twice.
        ElutqError: llguidance is not installed.
    """
    asked = {name: fields.get(name) for name in READERS}
    grammars = {name: READERS[name](value, model, name) for name, value in asked.items() if value not in _NOTHING}
    found = [(name, grammar) for name, grammar in grammars.items() if grammar is not None]
    if len(found) > 1:
        raise RequestError(
            f"{found[0][0]} and {found[1][0]} both say what the text has to match: give one", found[1][0]
        )
    return found[0][1] if found else None


_NOTHING: tuple[object, ...] = (None, "", [])


def _response_format(value: object, model: LanguageModel, name: str) -> Grammar | None:
    form = Fields(value, name)
    match form.get("type"):
        case "text":
            return None
        case "json_object":  # llama.cpp takes a schema beside it
            schema = form.get("schema")
            return _schema(ANY_OBJECT if schema is None else schema, model, name)
        case "json_schema":
            inner = Fields(form.get("json_schema"), f"{name}.json_schema")
            schema = inner.get("schema")
            if schema is None:
                raise RequestError(f"{name}.json_schema needs a schema", name)
            return _schema(schema, model, name)
    raise RequestError(f"the type of {name} must be text, json_object or json_schema", name)


def _structured_outputs(value: object, model: LanguageModel, name: str) -> Grammar | None:
    """Read vLLM's object, which has one of several entries."""
    inner = Fields(value, name)
    known = {"json": _schema, "regex": _regex, "choice": _choice, "grammar": _grammar}
    given = {entry: asked for entry, asked in inner.items() if asked not in (*_NOTHING, False)}
    if len(given) > 1 or not set(given) <= {*known, "json_object"}:
        raise RequestError(f"{name} takes one of {', '.join(known)} and json_object", name)
    for entry, asked in given.items():
        return _schema(ANY_OBJECT, model, name) if entry == "json_object" else known[entry](asked, model, name)
    return None


def _schema(value: object, model: LanguageModel, name: str) -> Grammar:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{name} has a schema that is not JSON", name) from error
    if not isinstance(value, Mapping | bool):
        raise RequestError(f"{name} has a schema that is no JSON object", name)
    return _compiled(lambda: Grammar.of_json_schema(model.vocabulary, value), name)


def _grammar(value: object, model: LanguageModel, name: str) -> Grammar:
    text = _text(value, name)
    return _compiled(lambda: Grammar.of_text(model.vocabulary, text), name)


def _regex(value: object, model: LanguageModel, name: str) -> Grammar:
    text = _text(value, name)
    return _compiled(lambda: Grammar.of_regex(model.vocabulary, text), name)


def _choice(value: object, model: LanguageModel, name: str) -> Grammar:
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise RequestError(f"{name} must be a list of strings", name)
    return _compiled(lambda: Grammar.of_choice(model.vocabulary, value), name)


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise RequestError(f"{name} must be a string", name)
    return value


def _compiled(compile_grammar: Callable[[], Grammar], name: str) -> Grammar:
    try:
        return compile_grammar()
    except GrammarError as error:
        raise RequestError(f"{name}: {error}", name) from error


READERS: Mapping[str, Reader] = {
    "response_format": _response_format,
    "structured_outputs": _structured_outputs,
    "json_schema": _schema,
    "guided_json": _schema,
    "guided_regex": _regex,
    "regex": _regex,
    "guided_choice": _choice,
    "guided_grammar": _grammar,
    "grammar": _grammar,
    "grammar_string": _grammar,
    "ebnf": _grammar,
}
"""What OpenAI, vLLM, llama.cpp's server, SGLang and text-generation-webui call it."""
