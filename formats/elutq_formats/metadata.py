"""Metadata of a GGUF file that nobody vouches for, read with their types checked."""

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn, cast

import numpy as np

from elutq_formats.errors import FormatError
from elutq_formats.fields import LARGEST_FLOAT32
from elutq_formats.gguf import ValueType

MetadataEntry = tuple[str, Any, ValueType]


class Metadata:
    """Metadata of a file that nobody vouches for, read with their types checked.

    Every method raises FormatError, naming the key, when the value is missing or not what it should be.
    """

    def __init__(self, values: Mapping[str, Any], types: Mapping[str, ValueType], path: object) -> None:
        """Wrap the values of the file at ``path``, and their types; of an array, its elements' type."""
        self._values = values
        self._types = types
        self._path = path

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def has_type(self, key: str, value_type: ValueType) -> bool:
        """Return whether a value, or an array's elements, are of this type."""
        return self._types.get(key) is value_type

    def is_array(self, key: str) -> bool:
        """Return whether there is an array of this name."""
        return isinstance(self._values.get(key), list)

    def __iter__(self) -> Iterator[str]:
        """Return the keys that the file has, in its order."""
        return iter(self._values)

    def string(self, key: str) -> str:
        """Return a STRING."""
        return cast(str, self._value(key, ValueType.STRING))

    def integer(self, key: str, minimum: int = 1) -> int:
        """Return a UINT32 of at least ``minimum`` that fits 31 bits."""
        value = self.unsigned(key)
        if not minimum <= value < 2**31:
            self.refuse(f"{key} is {value}, not an integer from {minimum}")
        return value

    def integers(self, key: str) -> list[int]:
        """Return an array of UINT32 or of INT32, as converters write them."""
        kind = ValueType.INT32 if self.has_type(key, ValueType.INT32) else ValueType.UINT32
        return cast(list[int], self.array(key, kind))

    def number(self, key: str) -> float:
        """Return a positive FLOAT32, as the shortest decimal that stands for it."""
        value = self.real(key)
        if not 0 < value <= LARGEST_FLOAT32:
            self.refuse(f"{key} is {value}, not a positive number")
        return value

    def unsigned(self, key: str) -> int:
        """Return a UINT32."""
        return cast(int, self._value(key, ValueType.UINT32))

    def signed(self, key: str) -> int:
        """Return an INT32."""
        return cast(int, self._value(key, ValueType.INT32))

    def real(self, key: str) -> float:
        """Return a FLOAT32, as the shortest decimal that stands for it."""
        return float(str(np.float32(cast(float, self._value(key, ValueType.FLOAT32)))))

    def boolean(self, key: str, default: bool) -> bool:
        """Return a BOOL; ``default`` when there is none."""
        return cast(bool, self._value(key, ValueType.BOOL)) if key in self else default

    def array(self, key: str, element_type: ValueType) -> list[Any]:
        """Return an array of this type."""
        return cast(list[Any], self._value(key, element_type, is_array=True))

    def refuse(self, reason: str) -> NoReturn:
        """Raise a FormatError that names the file."""
        raise FormatError(f"{self._path} is damaged: {reason}")

    def _value(self, key: str, value_type: ValueType, is_array: bool = False) -> object:
        if key not in self._values:
            self.refuse(f"it has no {key}")
        value = self._values[key]
        if self._types[key] is not value_type or isinstance(value, list) is not is_array:
            self.refuse(f"{key} is not {'an ARRAY of' if is_array else 'of type'} {value_type.name}")
        return value
