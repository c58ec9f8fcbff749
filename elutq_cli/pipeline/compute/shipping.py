"""How a unit of work travels to another process: a small text of what to call, and the large arrays beside it.

An array is known by its identity: whoever ships several units with the same one can send it once. A backend does not
travel: where a unit arrives it is given that process's own.
"""

import importlib
import io
import pickle
import weakref
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from elutq_cli.pipeline.compute.backend import Backend

LARGE = 1 << 16
"""Bytes from which an array stands beside the text."""

AnyArray: TypeAlias = npt.NDArray[Any]
Place = TypeVar("Place")


class _Packer(pickle.Pickler):
    """Puts what is large aside."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.arrays: list[AnyArray] = []
        self._numbers: dict[int, int] = {}

    def persistent_id(self, value: Any) -> int | str | None:  # noqa: ANN401 (anything may be pickled)
        """Return the number of a large array, and a word in place of a backend."""
        if isinstance(value, Backend):
            return "backend"
        if not isinstance(value, np.ndarray) or value.nbytes < LARGE or value.dtype.hasobject:
            return None
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self.arrays)
            self.arrays.append(value)
        return self._numbers[id(value)]

    def reducer_override(self, value: Any) -> Any:  # noqa: ANN401
        """Let a module travel by its name."""
        return (importlib.import_module, (value.__name__,)) if isinstance(value, ModuleType) else NotImplemented


class _Unpacker(pickle.Unpickler):
    """Puts it back."""

    def __init__(self, text: bytes, arrays: Sequence[AnyArray], backend: Backend) -> None:
        super().__init__(io.BytesIO(text))
        self._arrays, self._backend = arrays, backend

    def persistent_load(self, name: int | str) -> AnyArray | Backend:
        """Return what was put aside under a name."""
        return self._backend if isinstance(name, str) else self._arrays[name]


def pack_unit(function: Callable[[Any], Any], item: object) -> tuple[bytes, list[AnyArray]]:
    """Return the text of a unit, and its large arrays.

    Raises:
        PicklingError, AttributeError, TypeError: it is no module-level function of plain records.
    """
    packer = _Packer(file := io.BytesIO())
    packer.dump((function, item))
    return file.getvalue(), packer.arrays


def run_unit(text: bytes, arrays: Sequence[AnyArray], backend: Backend) -> Any:  # noqa: ANN401
    """Run a unit that has arrived; its arrays may be read-only."""
    function, item = _Unpacker(text, arrays, backend).load()
    return function(item)


class Shelf(Generic[Place]):
    """Where arrays have been put for others to take: each once, for as long as it lives here.

    Attributes:
        shipped_bytes: of all that has been put there.
    """

    def __init__(self, put: Callable[[AnyArray], Place]) -> None:
        """Begin empty; ``put`` sends an array, whose rows are contiguous, and returns what it is found by."""
        self.shipped_bytes = 0
        self._put = put
        self._places: dict[int, tuple[weakref.ref[AnyArray], Place]] = {}

    def place(self, array: AnyArray) -> Place:
        """Return where an array is, which must not have changed since it was first asked for."""
        key = id(array)
        if key not in self._places:
            self.shipped_bytes += array.nbytes
            place = self._put(np.ascontiguousarray(array))
            self._places[key] = weakref.ref(array, lambda _: self._places.pop(key, None)), place
        return self._places[key][1]
