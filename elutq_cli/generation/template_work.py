"""What one rendering of a chat template may do: its work is counted, and ends within a bound."""

import re
import string
from collections.abc import Generator, ItemsView, Iterable, KeysView, Mapping, Sequence, ValuesView
from numbers import Integral, Real
from types import GeneratorType

import jinja2

LARGEST_WORK = 1 << 28
"""Work of one rendering: a character that is made costs 1, and what takes a processor as long costs as much."""

LARGEST_VALUE = 1 << 24
"""Weight of the largest value that a template may make."""

STEP = 64
"""Work of a statement."""

LARGEST_NUMBER = 1024
"""Bits of the largest number that a template may make, or have in it."""

CALL = 256
"""Work of a call, a filter or a test, without what it makes."""

_ELEMENT = 8
"""Weight of a value that is no text, without what is in it."""

_SCALAR = 32
"""Characters of a number and the like."""

_CHARACTERS = 10
"""Characters that Python writes for one of a string in a list: ``\\U0001f600``."""

_CONTAINERS = (dict, list, tuple, KeysView, ValuesView, ItemsView)


class ExcessError(jinja2.TemplateError):
    """A template does more than a conversation needs."""

    def __init__(self) -> None:
        super().__init__("it does more than a conversation needs")


class Work:
    """The work that a rendering has left. Counted, not timed: what is refused is refused on every machine.

    Weight of a value: its characters, and ``_ELEMENT`` for each list, mapping, number in it. A list that holds one list
    twice weighs that list twice, as ``str`` and ``==`` would meet it: forty such lists make a text of a trillion
    characters. So all that a template makes is weighed when it is made.
    """

    def __init__(self) -> None:
        """Begin."""
        self._left = LARGEST_WORK
        self._known: dict[int, int] = {}

    def spend(self, amount: int) -> None:
        """Take work off.

        Raises:
            ExcessError: there is no more.
        """
        self._left -= amount
        if self._left < 0:
            raise ExcessError

    def admit(self, value: object) -> object:
        """Return a caller's value as lists, mappings, texts and numbers of its own, which are known from then on.

        Nothing else reaches a template: other objects have methods that a sandbox does not know to be harmful.

        Raises:
            TypeError: it is something else.
        """
        if isinstance(value, str):
            return str.__str__(value)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, Real):
            return int(value) if isinstance(value, Integral) else float(value)
        plain: dict[object, object] | list[object]
        if isinstance(value, Mapping):
            plain = {self.admit(name): self.admit(entry) for name, entry in value.items()}
            inner = [*plain, *plain.values()]
        elif isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
            plain = inner = [self.admit(entry) for entry in value]
        else:
            raise TypeError(f"a message holds texts, numbers, lists and mappings, not {type(value).__name__}")
        self._known[id(plain)] = _ELEMENT + sum(map(self.weigh, inner))
        return plain

    def weigh(self, value: object) -> int:
        """Return the weight of a value, with all that is in it.

        Raises:
            ExcessError: it is too much.
        """
        if not isinstance(value, _CONTAINERS):
            return (
                len(value)
                if isinstance(value, str)
                else _ELEMENT * len(value)
                if isinstance(value, range)
                else _ELEMENT
            )
        weight, rest = 0, list[object]([value])
        while rest:
            inner = rest.pop()
            if (known := self._known.get(id(inner))) is not None:
                weight += known
            elif isinstance(inner, str):
                weight += len(inner)
            elif isinstance(inner, _CONTAINERS):
                self.spend(STEP // 2 * len(inner))
                weight += _ELEMENT
                rest.extend(inner)
                if isinstance(inner, dict):
                    rest.extend(inner.values())
            else:
                weight += _ELEMENT
            if weight > LARGEST_VALUE and inner is not value:
                raise ExcessError
        return weight

    def made(self, value: object) -> object:
        """Count a value that a template made; return it."""
        if isinstance(value, GeneratorType):
            return self._counted(value)
        if isinstance(value, str):
            self.spend(len(value))
        elif isinstance(value, _CONTAINERS):
            self.weigh(value)
        elif isinstance(value, int):
            check_number(value)
        return value

    def compare(self, value: object) -> None:
        """Count a comparison with a value, or a search in it."""
        self.spend(STEP + self.weigh(value) // 16)

    def text_size(self, value: object) -> int:
        """Return how many characters ``str`` of a value may have."""
        if isinstance(value, str):
            return len(value)
        if isinstance(value, _CONTAINERS):
            return self.weigh(value) * _CHARACTERS
        return _SCALAR + (value.bit_length() // 3 if isinstance(value, int) else 0)

    def printf_size(self, form: str, arguments: object) -> int:
        """Return how many characters ``form % arguments`` may have."""
        values = arguments if isinstance(arguments, tuple) else (arguments,)
        width = widest(values) if "*" in form else 0
        return self._format_size(form, form.count("%"), width, values)

    def format_size(self, form: str, arguments: Sequence[object]) -> int:
        """Return how many characters ``form.format(...)`` may have.

        Raises:
            ExcessError: a width is an argument: it can hide anywhere in one.
        """
        fields = [field for field in string.Formatter().parse(form) if field[1] is not None]
        if any("{" in (spec or "") for _, _, spec, _ in fields):
            raise ExcessError
        return self._format_size(form, len(fields), 0, arguments)

    def _format_size(self, form: str, n_fields: int, width: int, arguments: Sequence[object]) -> int:
        """Return what is written when each field writes all arguments, and every number in the form is a width."""
        widths = (int(digits) if len(digits) < 10 else LARGEST_WORK for digits in re.findall(r"\d+", form))
        return len(form) + sum(widths) + n_fields * (width + _SCALAR + sum(map(self.text_size, arguments)))

    def _counted(self, items: Iterable[object]) -> Generator[object, None, None]:
        for item in items:
            self.spend(STEP)
            yield self.made(item)


def check_number(value: int) -> None:
    """Refuse a number of too many digits.

    Raises:
        ExcessError: it is one.
    """
    if value.bit_length() > LARGEST_NUMBER:
        raise ExcessError


def widest(values: Iterable[object]) -> int:
    """Return the largest integer among values, as a width."""
    return max((abs(value) for value in values if isinstance(value, int)), default=0)
