"""One safetensors file, mapped: its header validated in full, its tensors widened to float32 one at a time.

The format is a little-endian u64 with the length of a JSON header, the header, and the tensors' bytes without gaps. The
``safetensors`` package cannot hand bfloat16 to numpy, hence this reader.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from elutq_formats.errors import CheckpointError

_MAX_HEADER_BYTES = 100_000_000
DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


@dataclass(frozen=True)
class _Entry:
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """A mapped safetensors file.

    Attributes:
        path: where it is.
        shapes: every tensor's shape, by name.
    """

    def __init__(self, path: Path) -> None:
        """Map the file and validate its header.

        Raises:
            CheckpointError: the file cannot be read, is truncated, or its header is damaged.
        """
        self.path = path
        try:
            size = path.stat().st_size
            if size < 8:
                raise CheckpointError(f"{path} is truncated: {size} bytes are no safetensors file; download it again")
            self._bytes: npt.NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="r")
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
        self._entries, self._data_start = self._read_header()
        self.shapes = {name: entry.shape for name, entry in self._entries.items()}

    def load(self, name: str) -> npt.NDArray[np.float32]:
        """Return a tensor, whose dtype is one of DTYPES, in a new float32 array of its shape."""
        entry = self._entries[name]
        stored = self.raw(name).view(DTYPES[entry.dtype]).reshape(entry.shape)
        if entry.dtype != "BF16":
            return np.array(stored, dtype=np.float32)
        tensor: npt.NDArray[np.float32] = np.left_shift(stored, 16, dtype=np.uint32).view(np.float32)
        return tensor

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """Return a tensor's bytes, in place: (n_bytes,) uint8, read-only."""
        entry = self._entries[name]
        return self._bytes[self._data_start + entry.begin : self._data_start + entry.end]

    def dtype(self, name: str) -> str:
        """Return a tensor's dtype as the header names it, such as ``BF16``."""
        return self._entries[name].dtype

    def _read_header(self) -> tuple[dict[str, _Entry], int]:
        header_bytes = int.from_bytes(self._bytes[:8].tobytes(), "little")
        start = 8 + header_bytes
        if header_bytes > _MAX_HEADER_BYTES:
            raise CheckpointError(f"{self.path} is no safetensors file: its header would have {header_bytes} bytes")
        if start > self._bytes.size:
            raise CheckpointError(f"{self.path} is truncated inside its header; download it again")
        try:
            header = json.loads(self._bytes[8:start].tobytes())
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
        if start + end != self._bytes.size:
            raise CheckpointError(
                f"{self.path} is truncated or damaged: {start + end} bytes expected, found {self._bytes.size}; "
                "download it again"
            )
        return entries, start

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
