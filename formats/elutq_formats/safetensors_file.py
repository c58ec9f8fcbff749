"""One safetensors file: its header checked by the safetensors package, its tensors widened to float32 one at a time.

The package is the reference for what a sound header is, and reads no more than that here. To numpy it cannot hand
bfloat16, in which most checkpoints are; and it maps files: one that shrinks under a run of hours, or whose disk fails,
would kill the process. So the tensors' bytes are read from where the header says they are.
"""

import hashlib
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from elutq_formats.errors import CheckpointError
from elutq_formats.lfs_pointer import refuse_pointer
from elutq_formats.unchanged_file import UnchangedFile

_MAX_HEADER_BYTES = 100_000_000  # the package's limit
_PIECE_BYTES = 1 << 22
_HIGH_HALF = 1 if sys.byteorder == "little" else 0
DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}

Run: TypeAlias = Callable[[Callable[[int], None], Iterable[int]], Iterable[None]]
"""Calls a function for every one of some numbers: ``map``, or what does the same on several threads."""

INTEGERS: dict[str, np.dtype[Any]] = {
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
}
"""Types that ``read`` takes: what others pack codes into."""

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
        dtypes: types of tensors that ``load`` takes.
        package_bytes: memory of the package that reads it, where that takes much for itself.
        shapes: every tensor's shape, by name.
        identity: changes with the file: a hash of its header, its size, and the time of its last change.
    """

    dtypes = tuple(DTYPES)
    package_bytes = 0

    def __init__(self, path: Path) -> None:
        """Read and validate the file's header.

        Raises:
            CheckpointError: the file cannot be read, is truncated, or its header is damaged.
        """
        from safetensors import SafetensorError, safe_open  # 10 ms that what reads no checkpoint need not wait for

        self.path = path
        try:
            with path.open("rb", buffering=0) as file:
                self._file = UnchangedFile.of(path, file.fileno())
                start = file.read(8)
                # Read before it is mapped: a disk that fails says so here.
                header = file.read(min(int.from_bytes(start, "little"), _MAX_HEADER_BYTES))
                refuse_pointer(path, start + header)
                with safe_open(path, "numpy") as checked:
                    self._entries = dict(_entries(checked, 8 + len(header)))
                self._file.check(file.fileno())
        except SafetensorError as error:
            reason = str(error).removeprefix("Error while deserializing header: ")
            raise CheckpointError(
                f"{path} is truncated, damaged or no safetensors file ({reason!r:.120}); download it again"
            ) from error
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{path.parent} is incomplete: {path.name!r:.80} is missing; download it again"
            ) from error
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
        if max((entry.end for entry in self._entries.values()), default=8 + len(header)) != self._file.size:
            raise CheckpointError(f"{path} has tensors of a type whose size this version does not know")
        self.shapes = {name: entry.shape for name, entry in self._entries.items()}
        self.identity = f"{hashlib.sha256(header).hexdigest()} {self._file.size} {self._file.changed}"

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

    def read(self, name: str) -> npt.NDArray[Any]:
        """Return a tensor, whose dtype is one of INTEGERS, as it is stored.

        Raises:
            CheckpointError: the file cannot be read, or is not the one that was opened.
        """
        entry = self._entries[name]
        stored = np.empty(entry.end - entry.begin, dtype=np.uint8)
        first = 0
        for piece in self.pieces(name):
            stored[first : first + piece.size] = piece
            first += piece.size
        return stored.view(INTEGERS[entry.dtype]).reshape(entry.shape)

    def _read(self, begin: int, end: int) -> npt.NDArray[np.uint8]:
        """Return the file's bytes from begin on, _PIECE_BYTES or up to the end."""
        return self._file.read(begin, min(begin + _PIECE_BYTES, end))

    def dtype(self, name: str) -> str:
        """Return a tensor's dtype as the header names it, such as ``BF16``."""
        return self._entries[name].dtype


def _entries(checked: Any, begin: int) -> Iterator[tuple[str, _Entry]]:  # noqa: ANN401 (the package has no types)
    """Yield each tensor's name and where it lies in the file: they follow each other from ``begin``, without gaps."""
    for name in checked.offset_keys():
        tensor = checked.get_slice(name)
        dtype, shape = tensor.get_dtype(), tuple(tensor.get_shape())
        end = begin + math.prod(shape) * _bits(dtype) // 8
        yield name, _Entry(dtype, shape, begin, end)
        begin = end


def _bits(dtype: str) -> int:
    """Return the bits of an element, which the format writes into its types' names: 16 for ``BF16``."""
    return 8 if dtype == "BOOL" else int(re.findall(r"\d+", dtype)[0])
