"""A request body, field by field: each is checked when it is read."""

import json
import math
import re
from collections.abc import ItemsView, Iterable, Mapping
from typing import Any

from elutq_cli.server.errors import RequestError

SYNONYMS = {
    "max_tokens": ("max_completion_tokens", "n_predict", "max_new_tokens", "max_output_tokens"),
    "repeat_penalty": ("repetition_penalty",),
    "thinking_budget_tokens": ("thinking_budget", "thinking_token_budget", "reasoning_budget"),
    "stop": ("stop_sequences", "stopping_strings"),
}
"""Fields that OpenAI (in its two APIs), vLLM, llama.cpp and text-generation-webui call by different names."""

MOST_STOP_STRINGS = 64
LONGEST_STOP_STRING = 1024
"""All of them together are as many characters as ``TextOptions`` takes."""


def parse_json(body: bytes) -> object:
    """Return what a body says.

    Raises:
        RequestError: it is not JSON, or has text that is not Unicode.
    """
    try:
        # Not the bytes: json would take what UTF-8 forbids, and other encodings too.
        parsed: object = json.loads(body.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise RequestError("the body is not JSON in UTF-8") from error
    if re.search(rb"\\u[dD][89a-fA-F]", body):
        try:
            json.dumps(parsed, ensure_ascii=False).encode()
        except (UnicodeEncodeError, RecursionError) as error:
            raise RequestError(
                "the body has half of a surrogate pair (\\ud800 to \\udfff), which is no character: leave it out"
            ) from error
    return parsed


class Fields:
    """A JSON object, read field by field; null is the same as nothing."""

    def __init__(self, body: object, name: str = "the body") -> None:
        """Wrap a parsed object.

        Raises:
            RequestError: it is not an object.
        """
        if not isinstance(body, dict):
            raise RequestError(f"{name} must be a JSON object", None if name == "the body" else name)
        self._body: Mapping[str, Any] = body

    def get(self, name: str) -> Any:  # noqa: ANN401 (whatever the client sent)
        """Return a field as it came, under whichever of its names.

        Raises:
            RequestError: it came under two names, with two values.
        """
        names = self._names(name)
        values = [self._body[given] for given in names]
        if any(value != values[0] for value in values[1:]):
            raise RequestError(f"{' and '.join(names)} are one thing: give one of them", names[0])
        return values[0] if values else None

    def items(self) -> ItemsView[str, Any]:
        """Return all fields as they came."""
        return self._body.items()

    def without(self, names: Iterable[str]) -> dict[str, Any]:
        """Return all other fields, as they came."""
        return {name: value for name, value in self._body.items() if name not in names}

    def mapping(self, name: str) -> dict[str, Any]:
        """Return an object; nothing is an empty one."""
        value, name = self._named(name)
        if value is not None and not isinstance(value, dict):
            raise RequestError(f"{name} must be a JSON object", name)
        return value or {}

    def number(self, name: str) -> float | None:
        """Return a finite number, or None."""
        value, name = self._named(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise RequestError(f"{name} must be a number", name)
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise RequestError(f"{name} must be a finite number", name)
        return number

    def integer(self, name: str, least: int, most: int) -> int | None:
        """Return a whole number between two others, or None; 4.0 is one too."""
        value, name = self._named(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise RequestError(f"{name} must be a whole number from {least} to {most}", name)
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """Return a truth value."""
        value, name = self._named(name)
        if value is not None and not isinstance(value, bool):
            raise RequestError(f"{name} must be true or false", name)
        return default if value is None else value

    def strings(self, name: str) -> tuple[str, ...]:
        """Return a string, or several."""
        value, name = self._named(name)
        if value is None:
            return ()
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(entry, str) for entry in values):
            raise RequestError(f"{name} must be a string or a list of strings", name)
        if len(values) > MOST_STOP_STRINGS or any(len(entry) > LONGEST_STOP_STRING for entry in values):
            limits = f"{MOST_STOP_STRINGS} strings of {LONGEST_STOP_STRING} characters"
            raise RequestError(f"{name} may have at most {limits}", name)
        return tuple(values)

    def refuse(self, unsupported: Mapping[str, tuple[object, ...]]) -> None:
        """Refuse fields that would change the result and are not implemented.

        Args:
            unsupported: names, and the values that ask for nothing.

        Raises:
            RequestError: one is there and asks for something.
        """
        for name, harmless in unsupported.items():
            if self.get(name) not in (None, *harmless):
                raise RequestError(f"{name} is not supported here", name, "unsupported_parameter")

    def given_name(self, name: str) -> str:
        """Return the name that the client gave a field."""
        return next(iter(self._names(name)), name)

    def _named(self, name: str) -> tuple[Any, str]:
        """Return a field, and the name that the client gave it."""
        return self.get(name), self.given_name(name)

    def _names(self, name: str) -> list[str]:
        return [known for known in (name, *SYNONYMS.get(name, ())) if self._body.get(known) is not None]
