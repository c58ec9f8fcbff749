"""Reads a GGUF container that nobody vouches for: every count, length and offset is checked before it is used."""

import hashlib
import math
import stat
import struct
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from elutq_formats.constants import (
    GGUF_MAGIC,
    GGUF_VERSION,
    MAX_ARRAY_LENGTH,
    MAX_DIMENSIONS,
    MAX_METADATA_ENTRIES,
    MAX_NAME_BYTES,
    MAX_STRING_BYTES,
    MAX_TENSORS,
)
from elutq_formats.errors import FormatError
from elutq_formats.file_system import reachable
from elutq_formats.gguf import (
    ALIGNMENT_KEY,
    DEFAULT_ALIGNMENT,
    GGML_TYPES,
    SCALAR_LAYOUTS,
    TensorInfo,
    ValueType,
    align,
)
from elutq_formats.lfs_pointer import refuse_pointer

_U32 = SCALAR_LAYOUTS[ValueType.UINT32]
_U64 = SCALAR_LAYOUTS[ValueType.UINT64]

FINGERPRINT_BYTES = 4096

_START_BYTES = 256  # more than a Git LFS pointer has in common with another
_MAX_ELEMENTS = 2**60  # so that sizes and offsets in bytes fit 63 bits


class TruncatedHeaderError(FormatError):
    """A container ends inside its header."""


class GGUFReader:
    """A mapped container.

    Attributes:
        path: where it is.
        metadata: the values by key, in the order of the file; arrays are lists.
        value_types: their types by key; of an array, its elements' type.
        tensors: the tensors by name, in the order of the file.
        alignment: every tensor's data begin at a multiple of it in the data section.
        size_bytes: size of the file.
    """

    def __init__(self, path: Path, available: int | None = None, without: str | None = None) -> None:
        """Map the file and validate everything but the tensors' values.

        Args:
            path: where it is.
            available: bytes that are there, of a file of which only the start has been downloaded; None: all.
            without: what names of arrays of strings begin with that are left empty: those of a vocabulary take a while.

        Raises:
            TruncatedHeaderError: the header is not all there.
            FormatError: the file cannot be read or is not a sound container.
            CheckpointError: it is a Git LFS pointer.
        """
        self.path = path
        try:
            status = reachable(path).stat()
            if not stat.S_ISREG(status.st_mode):
                raise FormatError(f"cannot read {path}: it is a folder, a pipe or a device")
            if status.st_size == 0:
                raise FormatError(f"{path} is empty")
            self._bytes: npt.NDArray[np.uint8] = np.memmap(reachable(path), dtype=np.uint8, mode="r")
        except OSError as error:
            raise FormatError(f"cannot read {path}: {error.strerror}") from error
        self.size_bytes = self._bytes.size
        cursor = _Cursor(path, self._bytes[:available], without)
        n_tensors, n_entries = _read_preamble(cursor)
        self.metadata, self.value_types = _read_metadata(cursor, n_entries)
        alignment = self.metadata.get(ALIGNMENT_KEY, DEFAULT_ALIGNMENT)
        value_type = self.value_types.get(ALIGNMENT_KEY, ValueType.UINT32)
        if type(alignment) is not int or value_type is not ValueType.UINT32:
            cursor.refuse(f"{ALIGNMENT_KEY} {alignment!r:.40} is not of type UINT32")
        if alignment < 8 or alignment & (alignment - 1):
            cursor.refuse(f"{ALIGNMENT_KEY} {alignment} is not a power of two from 8")
        self.tensors = _read_tensor_infos(cursor, n_tensors)
        self.alignment = alignment
        self._data_start = align(cursor.position, alignment)
        self._check_places(cursor)

    @property
    def data_start(self) -> int:
        """Where the data section begins, in bytes from the start of the file."""
        return self._data_start

    def data(self, name: str) -> npt.NDArray[np.uint8]:
        """Return a tensor's bytes, in place: (n_bytes,) uint8, read-only."""
        info = self.tensors[name]
        start = self._data_start + info.offset
        return self._bytes[start : start + info.n_bytes]

    def fingerprint(self) -> bytes:
        """Return the SHA-256 of all before the tensors' data, and of the first FINGERPRINT_BYTES of each tensor's."""
        digest = hashlib.sha256(self._bytes[: self._data_start].tobytes())
        for name in self.tensors:
            digest.update(self.data(name)[:FINGERPRINT_BYTES].tobytes())
        return digest.digest()

    def _check_places(self, cursor: "_Cursor") -> None:
        available = self.size_bytes - self._data_start
        end, last = 0, ""
        for info in self.tensors.values():
            if info.offset % self.alignment:
                cursor.refuse(f"tensor {info.name} begins at {info.offset}, not a multiple of {self.alignment}")
            if (excess := info.offset + info.n_bytes - available) > 0:
                raise FormatError(
                    f"{self.path} is truncated or damaged: tensor {info.name} ends {excess} bytes past the end of the "
                    "file; copy or download it again"
                )
            if info.offset < end:
                cursor.refuse(f"tensor {info.name} begins before the end of {last}")
            end, last = info.offset + info.n_bytes, info.name


class _Cursor:
    """A position in the mapped file that never passes its end."""

    def __init__(self, path: Path, contents: npt.NDArray[np.uint8], without: str | None) -> None:
        self.position = 0
        self._without = without
        self.path = path
        self._view = contents.data

    def start(self) -> bytes:
        return bytes(self._view[:_START_BYTES])

    def refuse(self, reason: str) -> NoReturn:
        raise FormatError(f"{self.path} is damaged: {reason}")

    def require(self, n_bytes: int) -> None:
        if n_bytes > len(self._view) - self.position:
            raise TruncatedHeaderError(
                f"{self.path} is truncated: it ends inside the header; copy or download it again"
            )

    def scalar(self, layout: struct.Struct) -> Any:  # noqa: ANN401 (the layout decides)
        self.require(layout.size)
        (value,) = layout.unpack_from(self._view, self.position)
        self.position += layout.size
        return value

    def count(self, limit: int, what: str) -> int:
        value: int = self.scalar(_U64)
        if value > limit:
            self.refuse(f"{value} {what}, more than {limit}")
        return value

    def string(self, limit: int, what: str) -> str:
        length = self.count(limit, f"bytes in {what}")
        self.require(length)
        start, self.position = self.position, self.position + length
        try:
            return str(self._view[start : self.position], "utf-8")
        except UnicodeDecodeError:
            self.refuse(f"{what} is not UTF-8")

    def name(self, what: str) -> str:
        name = self.string(MAX_NAME_BYTES, what)
        if not (name.isascii() and name.isprintable()):
            self.refuse(f"{what} is not printable ASCII")
        return name

    def value_type(self, key: str) -> ValueType:
        number = self.scalar(_U32)
        try:
            return ValueType(number)
        except ValueError:
            self.refuse(f"the value of {key} has unknown type {number}")

    def value(self, key: str) -> tuple[Any, ValueType]:
        """Return a value and its type, or an array's elements and theirs."""
        value_type = self.value_type(key)
        return self._array(key) if value_type is ValueType.ARRAY else (self._single(key, value_type), value_type)

    def _single(self, key: str, value_type: ValueType) -> Any:  # noqa: ANN401 (the type decides)
        if value_type is ValueType.STRING:
            return self.string(MAX_STRING_BYTES, f"the value of {key}")
        number = self.scalar(SCALAR_LAYOUTS[value_type])
        if value_type is ValueType.BOOL:
            if number > 1:
                self.refuse(f"the value of {key} is {number}, neither true nor false")
            return bool(number)
        return number

    def _array(self, key: str) -> tuple[list[Any], ValueType]:
        element_type = self.value_type(key)
        if element_type is ValueType.ARRAY:
            self.refuse(f"the value of {key} is an array of arrays")
        length = self.count(MAX_ARRAY_LENGTH, f"elements in {key}")
        if element_type is ValueType.STRING:
            self.require(length * _U64.size)
            if self._without is not None and key.startswith(self._without):
                self._pass_over(length)
                return [], element_type
            return self._strings(key, length), element_type
        layout = SCALAR_LAYOUTS[element_type]
        self.require(length * layout.size)
        start, self.position = self.position, self.position + length * layout.size
        numbers = np.frombuffer(self._view[start : self.position], dtype=layout.format)
        if element_type is ValueType.BOOL:
            if numbers.max(initial=0) > 1:
                self.refuse(f"the value of {key} has one that is neither true nor false")
            numbers = numbers.astype(bool)
        return numbers.tolist(), element_type

    def _strings(self, key: str, n_strings: int) -> list[str]:
        """Read many strings: vocabularies have some 100,000. Where one is wrong, ``string`` says how."""
        view, read_length, position, longest = self._view, _U64.unpack_from, self.position, 0
        found = []
        try:
            for _ in range(n_strings):
                start = position + _U64.size
                position = start + read_length(view, position)[0]
                found.append(str(view[start:position], "utf-8"))
                longest = max(longest, position - start)
        except (struct.error, OverflowError, UnicodeDecodeError):
            longest = MAX_STRING_BYTES + 1
        if position > len(view) or longest > MAX_STRING_BYTES:
            return [self.string(MAX_STRING_BYTES, f"the value of {key}") for _ in range(n_strings)]
        self.position = position
        return found

    def _pass_over(self, n_strings: int) -> None:
        """Pass strings whose contents nobody asks for; what is wrong with their lengths is wrong with the position."""
        view, read_length, position = self._view, _U64.unpack_from, self.position
        try:
            for _ in range(n_strings):
                position += _U64.size + read_length(view, position)[0]
        except (struct.error, OverflowError):
            position = len(view) + 1
        self.require(position - self.position)
        self.position = position


def _read_preamble(cursor: _Cursor) -> tuple[int, int]:
    """Read what precedes the metadata; return the numbers of tensors and of metadata entries."""
    refuse_pointer(cursor.path, cursor.start())
    magic = cursor.scalar(_U32)
    if magic != GGUF_MAGIC:
        raise FormatError(f"{cursor.path} is not a GGUF file: it begins with {magic.to_bytes(4, 'little')!r}")
    version = cursor.scalar(_U32)
    if version != GGUF_VERSION:
        found = "big-endian" if version & 0xFFFF == 0 and version else f"version {version}"
        remedy = "; convert it with llama-quantize OLD NEW COPY" if 0 < version < GGUF_VERSION else ""
        raise FormatError(
            f"{cursor.path} is a GGUF file, but {found}: only little-endian version {GGUF_VERSION} is read{remedy}"
        )
    return cursor.count(MAX_TENSORS, "tensors"), cursor.count(MAX_METADATA_ENTRIES, "metadata entries")


def _read_metadata(cursor: _Cursor, n_entries: int) -> tuple[dict[str, Any], dict[str, ValueType]]:
    metadata: dict[str, Any] = {}
    value_types: dict[str, ValueType] = {}
    for _ in range(n_entries):
        key = cursor.name("a metadata key")
        if key in metadata:
            cursor.refuse(f"two metadata entries are called {key}")
        metadata[key], value_types[key] = cursor.value(key)
    return metadata, value_types


def _read_tensor_infos(cursor: _Cursor, n_tensors: int) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for _ in range(n_tensors):
        name = cursor.name("a tensor's name")
        if name in tensors:
            cursor.refuse(f"two tensors are called {name}")
        n_dims = cursor.scalar(_U32)
        if not 1 <= n_dims <= MAX_DIMENSIONS:
            cursor.refuse(f"tensor {name} has {n_dims} dimensions")
        dims = tuple(cursor.scalar(_U64) for _ in range(n_dims))
        if not 1 <= math.prod(dims) <= _MAX_ELEMENTS:
            cursor.refuse(f"tensor {name} has impossible dimensions {list(dims)}")
        ggml_type = cursor.scalar(_U32)
        if ggml_type not in GGML_TYPES:
            raise FormatError(f"{cursor.path}: tensor {name} has GGML type {ggml_type}, which is not known here")
        if dims[0] % GGML_TYPES[ggml_type].block:
            cursor.refuse(f"tensor {name} has rows of {dims[0]}, no multiple of a block of its type")
        tensors[name] = TensorInfo(name, dims, ggml_type, offset=cursor.scalar(_U64))
    return tensors
