"""Options as Python's callers give them: each becomes what its annotation says, or is refused in one line."""

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import fields
from numbers import Real
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin

import numpy as np

from elutq_formats.errors import ElutqError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class OptionError(ElutqError):
    """An option is of a wrong type, or one of a text is out of range.

    Attributes:
        option: its name in Python: an attribute of ``SamplingOptions``, ``TextOptions`` or ``Recipe``, or an argument.
        problem: what is wrong with it, to be read after a name.
    """

    def __init__(self, option: str, problem: str, name: str | None = None) -> None:
        """Describe it; ``name`` is what a user of the command line knows it by, where that is another."""
        super().__init__(f"{name or option} {problem}")
        self.option, self.problem, self._name = option, problem, name

    def __reduce__(self) -> tuple[Any, ...]:
        """Come through to another process as it is."""
        return type(self), (self.option, self.problem, self._name)


def as_type(name: str, value: object, kind: Any) -> Any:  # noqa: ANN401 (of that type)
    """Return an option as what it is to be: numpy's numbers as Python's, 8.0 as 8; a text is a tuple of one.

    Args:
        name: of the option.
        value: as it was given.
        kind: its annotation: int, float, bool or str, a tuple of any number of these, or one of all that and None.

    Raises:
        OptionError: it is of another type; True is no number.
    """
    if isinstance(kind, UnionType):
        if value is None:
            return None
        (kind,) = (choice for choice in get_args(kind) if choice is not NoneType)
    is_tuple = get_origin(kind) is tuple
    read, what, several = _KINDS[get_args(kind)[0] if is_tuple else kind]
    try:
        return _read_all(value, read) if is_tuple else read(value)
    except (TypeError, ValueError, OverflowError):
        problem = f"is {reprlib.repr(value)}: it must be {several if is_tuple else what}"
        raise OptionError(name, problem) from None


def settle_types(options: "DataclassInstance") -> None:
    """Make each field of a frozen dataclass what its annotation says, see ``as_type``.

    Raises:
        OptionError: one is of another type.
    """
    for field in fields(options):
        object.__setattr__(options, field.name, as_type(field.name, getattr(options, field.name), field.type))


def _whole(value: Any) -> int:  # noqa: ANN401
    if not _number(value).is_integer():  # nor can one be larger than a float
        raise ValueError
    return int(value)


def _number(value: Any) -> float:  # noqa: ANN401
    """Return a number; True is none."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError
    return float(value)


def _truth(value: object) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError
    return bool(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _bias(value: Any) -> tuple[int, float]:  # noqa: ANN401
    """Return a token and what is added to its logit; JSON's names of tokens are texts."""
    token, bias = value
    return int(token) if isinstance(token, str) and token.isdecimal() else _whole(token), _number(bias)


def _read_all(value: Any, read: Callable[[object], object]) -> tuple[object, ...]:  # noqa: ANN401
    if isinstance(value, str):
        value = (value,)
    return tuple(map(read, value.items() if isinstance(value, Mapping) else value))


_KINDS: dict[object, tuple[Callable[[object], object], str, str]] = {
    int: (_whole, "a whole number", "whole numbers"),
    float: (_number, "a number", "numbers"),
    bool: (_truth, "True or False", ""),
    str: (_text, "a text", "a text or several"),
    tuple[int, float]: (_bias, "a token and a number", "token ids and a number for each"),
}
"""How a value is read as a type, and what messages say that it must be: alone, and in a tuple."""
