"""What a text has to be: a JSON schema, a grammar or a regular expression, compiled for a model's vocabulary.

Masks come from llguidance, an extra; nothing else here imports it. A schema is honoured as a whole or refused: no
keyword is passed over that llguidance knows of and cannot enforce, but for formats that it does not know.
"""

import copy
import json
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from elutq_cli.generation.constraint import Constraint
from elutq_formats.errors import ElutqError
from elutq_formats.tokenizer import Tokenizer

Schema = Mapping[str, Any] | bool

ANY_OBJECT: Schema = {"type": "object"}
"""What ``json_object`` asks for."""

LARGEST_SOURCE = 1 << 18
"""Characters of the longest grammar."""

MOST_LOOKED_AT = 1 << 20
"""Characters of the parts of a schema that are compiled to find the one at fault."""

JSON_LAYOUT = {"whitespace_pattern": r" ?|\n[ \t]{0,32}", "lenient": False}
"""A space, or a line end and an indentation, where JSON may have white space: a text of nothing else would not end."""

COMPACT_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": False}
"""JSON in one line, as Python and chat templates write it."""

_SCHEMAS_BY_NAME = ("properties", "patternProperties", "$defs", "definitions")
_SCHEMAS_IN_ORDER = ("anyOf", "allOf", "oneOf", "prefixItems", "items")
_SCHEMAS = ("items", "additionalProperties", "additionalItems")


class GrammarError(ElutqError):
    """A grammar is wrong, or asks for what cannot be enforced."""


class Vocabulary:
    """A model's tokens as llguidance wants them.

    Attributes:
        size: of the model's vocabulary; logits have as many values.
        eos_token_ids: tokens that end a text; grammars know nothing of them.
        tokens: what llguidance made of it.
    """

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        """Prepare; a vocabulary of 150,000 tokens takes half a second.

        Args:
            tokenizer: of the model.
            size: of its vocabulary.

        Raises:
            ElutqError: llguidance is not installed.
        """
        library = _library()
        self.size = size
        self.eos_token_ids = tuple(sorted(token for token in set(tokenizer.eos_token_ids) if token < size))
        self.tokens = library.LLTokenizer(library.TokenizerWrapper(_Tokens(tokenizer, size)), n_vocab=size)


class _Tokens:
    """What llguidance asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self._tokenizer = tokenizer
        hidden = [token for token in range(size) if tokenizer.is_hidden(token)]
        # Constraint sees to the end of a text; llguidance wants some token for it all the same.
        self.eos_token_id = next((token for token in tokenizer.eos_token_ids if token < size), next(iter(hidden), 0))
        self.special_token_ids = hidden
        self.tokens = [tokenizer.token_bytes(token) for token in range(size)]

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode(text.decode("utf-8", "replace"))


class Grammar:
    """A compiled grammar: each text that has to match it starts a ``Constraint``.

    Attributes:
        schema: the JSON schema that it was made from, if it was.
    """

    schema: Schema | None = None

    def __init__(self, vocabulary: Vocabulary, source: str) -> None:
        """Compile; the classmethods make sources.

        Args:
            vocabulary: of the model.
            source: a grammar as llguidance writes them.

        Raises:
            GrammarError: it is wrong, cannot be enforced, or the model has no tokens for it.
        """
        self._vocabulary = vocabulary
        self._matcher = _library().LLMatcher(vocabulary.tokens, source, log_level=0)
        if self._matcher.is_error():
            raise GrammarError(_one_line(self._matcher.get_error()))
        start = self.start()
        try:
            if not start.complete:
                start.allowed(may_end=True)
        except ElutqError as error:
            raise GrammarError(str(error)) from error

    def start(self) -> Constraint:
        """Return the constraint of a text at its start."""
        return Constraint(self._matcher.deep_copy(), self._vocabulary.size, self._vocabulary.eos_token_ids)

    @classmethod
    def of_json_schema(cls, vocabulary: Vocabulary, schema: Schema) -> "Grammar":
        """Compile a JSON schema.

        Raises:
            GrammarError: it cannot be honoured; the message names the part.
        """
        try:
            grammar = cls(vocabulary, json_schema_source(schema))
        except GrammarError as error:
            place = _place(vocabulary, schema)
            raise GrammarError(f"the JSON schema cannot be honoured{place}: {error}") from error
        grammar.schema = schema
        return grammar

    @classmethod
    def of_text(cls, vocabulary: Vocabulary, text: str) -> "Grammar":
        """Compile a grammar in llama.cpp's notation (GBNF) or in Lark's.

        Raises:
            GrammarError: it is wrong.
        """
        _check_size(text)
        try:
            return cls(vocabulary, _library().grammar_from("gbnf", text))
        except (ValueError, RecursionError, GrammarError) as error:
            raise GrammarError(f"the grammar cannot be honoured: {_one_line(error)}") from error

    @classmethod
    def of_lark(cls, vocabulary: Vocabulary, text: str) -> "Grammar":
        """Compile a grammar of our own making, in Lark's notation as llguidance extends it."""
        return cls(vocabulary, _library().LLMatcher.grammar_from_lark(text))

    @classmethod
    def of_regex(cls, vocabulary: Vocabulary, pattern: str) -> "Grammar":
        """Compile a regular expression, which the whole text has to match.

        Raises:
            GrammarError: it is wrong.
        """
        _check_size(pattern)
        try:
            return cls(vocabulary, _library().LLMatcher.grammar_from_regex(pattern))
        except GrammarError as error:
            raise GrammarError(f"the regular expression cannot be honoured: {error}") from error

    @classmethod
    def of_choice(cls, vocabulary: Vocabulary, texts: list[str]) -> "Grammar":
        """Compile a choice of texts.

        Raises:
            GrammarError: there are none, or the model has no tokens for them.
        """
        if not texts:
            raise GrammarError("there is nothing to choose from: give one text or more")
        lark = "start: " + " | ".join(lark_string(text) for text in texts)
        _check_size(lark)
        return cls.of_lark(vocabulary, lark)


def json_schema_source(schema: Schema, layout: Mapping[str, object] = JSON_LAYOUT) -> str:
    """Return a JSON schema as a grammar.

    Raises:
        GrammarError: it is not a schema, or too large.
    """
    if schema is False:
        raise GrammarError("nothing matches false")
    try:
        _check_size(json.dumps(schema))
        text = json.dumps({} if schema is True else without_unknown_formats(schema))
        source: str = _library().LLMatcher.grammar_from_json_schema(text, overrides=layout)
    except (ValueError, RecursionError) as error:
        raise GrammarError(_one_line(error)) from error
    return source


def without_unknown_formats(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a schema without formats that llguidance does not know, which it refuses.

    To JSON Schema they are annotations that restrict nothing; pydantic writes many (``path``, ``uuid4``, ``binary``).
    """
    kept = copy.deepcopy(schema)
    parts: list[object] = [kept]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            if isinstance(name := part.get("format"), str) and not _knows_format(name):
                del part["format"]
            parts += [inner for _, inner in _parts(part)]
    return kept


def _knows_format(name: str) -> bool:
    library = _library().LLMatcher
    source = library.grammar_from_json_schema(json.dumps({"type": "string", "format": name}))
    return not library.validate_grammar(source)


def lark_string(text: str) -> str:
    """Return a text as a string of a Lark grammar."""
    return json.dumps(text, ensure_ascii=False)


def _place(vocabulary: Vocabulary, schema: Schema) -> str:
    """Return where in a schema the smallest part is that cannot be honoured by itself, for a message."""
    path: list[str] = []
    n_left = MOST_LOOKED_AT
    part: object = schema
    while isinstance(part, Mapping):
        for names, inner in _parts(part):
            try:
                n_left -= len(json.dumps(inner))
            except RecursionError:
                return _spelled(path)
            if n_left < 0:
                return _spelled(path)
            if isinstance(inner, Mapping) and not _holds(vocabulary, inner):
                path.extend(names)
                part = inner
                break
        else:
            break
    return _spelled(path)


def _holds(vocabulary: Vocabulary, schema: Mapping[str, Any]) -> bool:
    """Return whether a part can be honoured, whatever it refers to."""
    try:
        source = json_schema_source(_without_references(schema))
    except (GrammarError, RecursionError):
        return False
    return not _library().LLMatcher.validate_grammar(source, vocabulary.tokens)


def _without_references(value: Any) -> Any:  # noqa: ANN401 (a part of a schema)
    if isinstance(value, Mapping):
        return {} if "$ref" in value else {name: _without_references(inner) for name, inner in value.items()}
    return [_without_references(inner) for inner in value] if isinstance(value, list) else value


def _parts(schema: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], object]]:
    """Yield the schemas within a schema, and their places."""
    for name, value in schema.items():
        if name in _SCHEMAS_BY_NAME and isinstance(value, Mapping):
            yield from (((name, str(key)), inner) for key, inner in value.items())
        elif name in _SCHEMAS_IN_ORDER and isinstance(value, list):
            yield from (((name, str(at)), inner) for at, inner in enumerate(value))
        elif name in _SCHEMAS:
            yield (name,), value


def _spelled(path: list[str]) -> str:
    return f" (at {'.'.join(path):.200})" if path else ""


def _check_size(text: str) -> None:
    if len(text) > LARGEST_SOURCE:
        raise GrammarError(f"it has {len(text)} characters: {LARGEST_SOURCE} are the most")


def _one_line(error: object) -> str:
    """Return what llguidance says, without advice to set options of its own."""
    text = re.sub(r"\.? Enable '\w+' option[^.]*", "", " ".join(str(error).split()))
    return f"{text:.300}"


def _library() -> Any:  # noqa: ANN401 (a package that may be missing)
    """Return llguidance.

    Raises:
        ElutqError: it is not installed.
    """
    try:
        return import_module("llguidance")
    except ImportError as error:
        raise ElutqError(
            "JSON schemas, grammars and forced calls of tools need llguidance: pip install 'elutq[grammar]'"
        ) from error
