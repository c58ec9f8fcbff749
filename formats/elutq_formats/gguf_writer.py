"""Writes a GGUF container in two steps: declare everything, then hand over the tensors' bytes one at a time."""

from collections import deque
from collections.abc import Sequence
from enum import Enum, auto
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from elutq_formats.constants import GGUF_ALIGNMENT, GGUF_MAGIC, GGUF_VERSION
from elutq_formats.errors import disk_error
from elutq_formats.gguf import ALIGNMENT_KEY, SCALAR_LAYOUTS, TensorInfo, ValueType, align

_U32 = SCALAR_LAYOUTS[ValueType.UINT32]
_U64 = SCALAR_LAYOUTS[ValueType.UINT64]


class _State(Enum):
    DECLARING = auto()
    WRITING = auto()
    CLOSED = auto()


def encode_entry(key: str, value: Any, value_type: ValueType) -> bytes:  # noqa: ANN401 (the type decides)
    """Return a metadata entry as it is in a file; a list or tuple becomes an array of ``value_type``."""
    if isinstance(value, list | tuple):
        elements = [_encode(element, value_type) for element in value]
        header = _U32.pack(ValueType.ARRAY) + _U32.pack(value_type) + _U64.pack(len(elements))
        encoded = header + b"".join(elements)
    else:
        encoded = _U32.pack(value_type) + _encode(value, value_type)
    return _encode(key, ValueType.STRING) + encoded


class GGUFWriter:
    """A container being written; a context manager that closes the file.

    The calls come in this order: ``add_metadata`` and ``add_tensor`` in any number, ``write_header`` once,
    ``write_tensor`` for every declared tensor in the declared order, ``close``. Any other order is a ValueError.
    """

    def __init__(self, path: Path, alignment: int = GGUF_ALIGNMENT) -> None:
        """Create the file.

        Raises:
            ElutqError: it cannot be created.
        """
        self._path = path
        self._alignment = alignment
        self._state = _State.DECLARING
        self._metadata: dict[str, bytes] = {}
        self._tensors: dict[str, TensorInfo] = {}
        self._data_bytes = 0
        self._unwritten: deque[TensorInfo] = deque()
        try:
            self._file: BinaryIO = path.open("wb")
        except OSError as error:
            raise disk_error(f"cannot write {path}", error) from error
        self.add_metadata(ALIGNMENT_KEY, alignment, ValueType.UINT32)

    def __enter__(self) -> "GGUFWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._state = _State.CLOSED
            self._file.close()

    def add_metadata(self, key: str, value: Any, value_type: ValueType) -> None:  # noqa: ANN401 (the type decides)
        """Declare a metadata entry; a list or tuple becomes an array of ``value_type``."""
        self._require(_State.DECLARING)
        if key in self._metadata:
            raise ValueError(f"metadata key {key} added twice")
        self._metadata[key] = encode_entry(key, value, value_type)

    def add_tensor(self, name: str, dims: Sequence[int], ggml_type: int) -> None:
        """Declare the next tensor; ``dims`` has the fastest dimension first."""
        self._require(_State.DECLARING)
        if name in self._tensors:
            raise ValueError(f"tensor {name} added twice")
        info = TensorInfo(name, tuple(dims), ggml_type, align(self._data_bytes, self._alignment))
        self._tensors[name] = info
        self._data_bytes = info.offset + info.n_bytes

    def write_header(self) -> None:
        """Write everything but the tensors' data."""
        self._require(_State.DECLARING)
        self._state = _State.WRITING
        self._unwritten.extend(self._tensors.values())
        numbers = _U32.pack(GGUF_MAGIC) + _U32.pack(GGUF_VERSION)
        numbers += _U64.pack(len(self._tensors)) + _U64.pack(len(self._metadata))
        header = numbers + b"".join(self._metadata.values()) + b"".join(map(_encode_info, self._tensors.values()))
        self._write(header.ljust(align(len(header), self._alignment), b"\0"))

    def write_tensor(self, name: str, data: npt.NDArray[Any]) -> None:
        """Write the next declared tensor's data, as the bytes of a C-contiguous array."""
        self._require(_State.WRITING)
        if not self._unwritten or self._unwritten[0].name != name:
            declared = self._unwritten[0].name if self._unwritten else "nothing"
            raise ValueError(f"tensor {name} written where {declared} was declared")
        info = self._unwritten.popleft()
        if data.nbytes != info.n_bytes:
            raise ValueError(f"tensor {name} was declared with {info.n_bytes} bytes, not {data.nbytes}")
        self._write(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)
        self._write(b"\0" * (align(info.n_bytes, self._alignment) - info.n_bytes))

    def close(self) -> None:
        """Finish the file."""
        self._require(_State.WRITING)
        if self._unwritten:
            raise ValueError(f"{len(self._unwritten)} declared tensors were not written")
        self._state = _State.CLOSED
        try:
            self._file.close()
        except OSError as error:
            raise disk_error(f"cannot write {self._path}", error) from error

    def _write(self, data: bytes | memoryview) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise disk_error(f"cannot write {self._path}", error) from error

    def _require(self, state: _State) -> None:
        if self._state is not state:
            raise ValueError(f"the writer is {self._state.name}, not {state.name}")


def _encode(value: Any, value_type: ValueType) -> bytes:  # noqa: ANN401 (the type decides)
    if value_type is ValueType.STRING:
        text = str(value).encode("utf-8")
        return _U64.pack(len(text)) + text
    return SCALAR_LAYOUTS[value_type].pack(value)


def _encode_info(info: TensorInfo) -> bytes:
    dims = b"".join(map(_U64.pack, info.dims))
    return (
        _encode(info.name, ValueType.STRING)
        + _U32.pack(len(info.dims))
        + dims
        + _U32.pack(info.ggml_type)
        + _U64.pack(info.offset)
    )
