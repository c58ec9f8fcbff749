"""Fields of a JSON object, read with their type checked."""

from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from elutq_formats.errors import CheckpointError

SMALLEST_FLOAT32, LARGEST_FLOAT32 = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


class Fields:
    """A JSON object of a checkpoint; a field that is null counts as absent.

    Every method raises CheckpointError, naming the place and the field, when the value is not what it should be.
    """

    def __init__(self, values: Mapping[str, Any], place: str, defaults: Mapping[str, Any] | None = None) -> None:
        """Wrap ``values``, found at ``place``; ``defaults`` stand in for keys that it lacks altogether."""
        self._values = {**(defaults or {}), **values}
        self._place = place

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 (a JSON value)
        return self._values.get(name)

    def replaced(self, values: Mapping[str, Any]) -> "Fields":
        """Return the object with other values of some fields."""
        return Fields({**self._values, **values}, self._place)

    def integer(self, name: str, default: int | None = None, minimum: int = 1) -> int:
        """Return an integer of at least ``minimum`` that fits 31 bits."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value < 2**31:
            self._refuse(name, value, f"an integer from {minimum}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Return a positive number that float32 can hold."""
        return self._positive(name, self._value(name, default))

    def numbers(self, name: str) -> tuple[float, ...]:
        """Return a list of positive numbers, of at least one."""
        value = self._value(name, None)
        if not isinstance(value, list) or not value:
            self._refuse(name, value, "a list of positive numbers")
        return tuple(self._positive(name, number) for number in value)

    def boolean(self, name: str, default: bool) -> bool:
        """Return true or false."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            self._refuse(name, value, "true or false")
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        """Return an object; empty when absent."""
        value = self._value(name, {})
        if not isinstance(value, dict):
            self._refuse(name, value, "an object")
        return value

    def token_ids(self, name: str) -> tuple[int, ...]:
        """Return token ids, written as one integer or a list; empty when absent."""
        value = self._value(name, [])
        ids = value if isinstance(value, list) else [value]
        if not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
            self._refuse(name, value, "a token id or a list of them")
        return tuple(ids)

    def _positive(self, name: str, value: object) -> float:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not SMALLEST_FLOAT32 <= value <= LARGEST_FLOAT32
        ):
            self._refuse(name, value, "a positive number")
        return float(value)

    def _value(self, name: str, default: Any) -> Any:  # noqa: ANN401 (a JSON value)
        value = self._values.get(name)
        if value is None and default is None:
            raise CheckpointError(f"{self._place} has no {name}")
        return default if value is None else value

    def _refuse(self, name: str, value: object, wanted: str) -> NoReturn:
        raise CheckpointError(f"{self._place}: {name} must be {wanted}, found {value!r:.60}")
