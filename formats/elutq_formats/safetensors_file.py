"""One safetensors file: its header validated in full, its tensors read and widened to float32 one at a time.

The format is a little-endian u64 with the length of a JSON header, the header, and the tensors' bytes without gaps. The
``safetensors`` package cannot hand bfloat16 to numpy, hence this reader. Files are read, not mapped: a mapped one that
shrinks, or whose disk fails, kills the process.
"""

import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from elutq_formats.errors import CheckpointError

_MAX_HEADER_BYTES = 100_000_000
_PIECE_BYTES = 1 << 22
_HIGH_HALF = 1 if sys.byteorder == "little" else 0
DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}

Run: TypeAlias = Callable[[Callable[[int], None], Iterable[int]], Iterable[None]]
"""Calls a function for every one of some numbers: ``map``, or what does the same on several threads."""

ALL_ROWS = slice(None)


@dataclass(frozen=True)
class _Entry:
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """A safetensors file, opened anew for each tensor, so that a file that has been replaced is noticed.

    Attributes:
        path: where it is.
        shapes: every tensor's shape, by name.
        identity: changes with the file: a hash of its header, its size, and the time of its last change.
    """

    def __init__(self, path: Path) -> None:
        """Read and validate the file's header.

        Raises:
            CheckpointError: the file cannot be read, is truncated, or its header is damaged.
        """
        self.path = path
        try:
            with path.open("rb", buffering=0) as file:
                self._state = _state(file.fileno())
                start = file.read(8)
                self._size = self._state[1]
                if len(start) < 8:
                    raise CheckpointError(
                        f"{path} is truncated: {self._size} bytes are no safetensors file; download it again"
                    )
                header_bytes = int.from_bytes(start, "little")
                if header_bytes > _MAX_HEADER_BYTES:
                    raise CheckpointError(f"{path} is no safetensors file: its header would have {header_bytes} bytes")
                if 8 + header_bytes > self._size:
                    raise CheckpointError(f"{path} is truncated inside its header; download it again")
                header = file.read(header_bytes)
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
        self._data_start = 8 + header_bytes
        self._entries = self._read_header(header)
        self.shapes = {name: entry.shape for name, entry in self._entries.items()}
        self.identity = f"{hashlib.sha256(header).hexdigest()} {self._size} {self._state[2]}"

    def load(self, name: str, run: Run = map, rows: slice = ALL_ROWS) -> npt.NDArray[np.float32]:
        """Return a tensor, whose dtype is one of DTYPES, in a new float32 array of its shape.

        Args:
            name: of the tensor.
            run: ``map``, or what does the same on several threads.
            rows: which of its first axis, in one run; only they are read.

        Raises:
            CheckpointError: the file cannot be read, or is not the one that was opened.
        """
        entry = self._entries[name]
        dtype = DTYPES[entry.dtype]
        first_row, end_row, _ = rows.indices(entry.shape[0])
        shape = (max(0, end_row - first_row), *entry.shape[1:])
        row_bytes = math.prod(entry.shape[1:]) * dtype.itemsize
        start, end = (entry.begin + row * row_bytes for row in (first_row, first_row + shape[0]))
        tensor = np.zeros(math.prod(shape), dtype=np.float32)

        def fill(begin: int) -> None:
            stored = self._read(begin, end).view(dtype)
            first = (begin - start) // dtype.itemsize
            target = tensor[first : first + stored.size]
            if entry.dtype == "BF16":
                target.view(np.uint16)[_HIGH_HALF::2] = stored
            else:
                target[:] = stored

        for _ in run(fill, range(start, end, _PIECE_BYTES)):
            pass
        return tensor.reshape(shape)

    def pieces(self, name: str) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield a tensor's bytes, some at a time.

        Raises:
            CheckpointError: the file cannot be read, or is not the one that was opened.
        """
        entry = self._entries[name]
        for begin in range(entry.begin, entry.end, _PIECE_BYTES):
            yield self._read(begin, entry.end)

    def _read(self, begin: int, end: int) -> npt.NDArray[np.uint8]:
        """Return the bytes from begin on, _PIECE_BYTES or up to the end."""
        piece = np.empty(min(_PIECE_BYTES, end - begin), dtype=np.uint8)
        try:
            with self.path.open("rb", buffering=0) as file:
                n_read = os.preadv(file.fileno(), [piece.data], self._data_start + begin)
                if n_read != piece.size or _state(file.fileno()) != self._state:
                    raise CheckpointError(f"{self.path} changed while it was being read: start again")
        except OSError as error:
            raise CheckpointError(f"cannot read {self.path}: {error.strerror}") from error
        return piece

    def dtype(self, name: str) -> str:
        """Return a tensor's dtype as the header names it, such as ``BF16``."""
        return self._entries[name].dtype

    def _read_header(self, text: bytes) -> dict[str, _Entry]:
        try:
            header = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.path} is no safetensors file: its header is not JSON") from error
        if not isinstance(header, dict):
            raise CheckpointError(f"{self.path} is no safetensors file: its header is not a JSON object")
        header.pop("__metadata__", None)
        entries = {name: self._read_entry(name, fields) for name, fields in header.items()}
        end = 0
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
            if entry.begin != end:
                raise CheckpointError(
                    f"{self.path} is damaged: tensor {name!r:.80} does not begin where the one before ends"
                )
            end = entry.end
        if self._data_start + end != self._size:
            raise CheckpointError(
                f"{self.path} is truncated or damaged: {self._data_start + end} bytes expected, found {self._size}; "
                "download it again"
            )
        return entries

    def _read_entry(self, name: str, fields: Any) -> _Entry:  # noqa: ANN401 (a JSON value)
        try:
            dtype, shape, (begin, end) = fields["dtype"], fields["shape"], fields["data_offsets"]
            sound = isinstance(dtype, str) and all(
                type(number) is int and number >= 0 for number in (*shape, begin, end)
            )
        except (KeyError, TypeError, ValueError):
            sound = False
        if not sound or begin > end:
            raise CheckpointError(f"{self.path} is damaged: the header's entry of tensor {name!r:.80} is malformed")
        if dtype in DTYPES and end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
            raise CheckpointError(
                f"{self.path} is damaged: tensor {name!r:.80} has {end - begin} bytes, not those of its shape"
            )
        return _Entry(dtype, tuple(shape), begin, end)


def _state(descriptor: int) -> tuple[int, int, int]:
    """Return what tells an open file from another, or from itself after a change: inode, size, time of change."""
    status = os.fstat(descriptor)
    return status.st_ino, status.st_size, status.st_mtime_ns
