"""The tensors of a GGUF file as weights: dequantized to float32, some rows at a time, under the model's names.

F32, F16 and BF16 are widened here, and types of evenly spaced levels unpacked (``gguf_levels``); every other type is
dequantized by the ``gguf`` package, which is needed for nothing else.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from elutq_formats.errors import CheckpointError, UnsupportedModelError
from elutq_formats.gguf import GGML_TYPES
from elutq_formats.gguf_levels import LEVELS
from elutq_formats.gguf_reader import GGUFReader
from elutq_formats.safetensors_file import ALL_ROWS, DTYPES, Run
from elutq_formats.unchanged_file import UnchangedFile

PIECE_WEIGHTS = 1 << 18
"""Weights that a thread dequantizes at once: the package takes up to 25 bytes for each."""

RowOrder = Callable[[str, int], npt.NDArray[np.intp] | None]
"""From a tensor's name and its number of rows to the stored row of each of the model's; None: they are in its order."""

Rows = npt.NDArray[np.uint8]
Dequantize = Callable[[Rows], npt.NDArray[np.float32]]


class GGUFWeights:
    """The tensors of one GGUF file: see ``stored_weights.WeightFile``.

    Attributes:
        path: where it is.
        dtypes: types of tensors that ``load`` takes: all that the file has.
        package_bytes: memory of the package that reads it, where that takes much for itself.
        shapes: every tensor's shape, by the model's name.
        identity: changes with the file: a hash of its header, its size, and the time of its last change.
    """

    package_bytes = 0

    def __init__(self, reader: GGUFReader, names: Mapping[str, str], row_order: RowOrder) -> None:
        """Take what a reader has validated.

        Args:
            reader: of the file.
            names: the model's name of each tensor, by its name in the file; others are left out.
            row_order: of each tensor, by the model's name.

        Raises:
            CheckpointError: the file cannot be read.
            UnsupportedModelError: a tensor is of a type that cannot be dequantized here.
        """
        self.path = reader.path
        self._row_order = row_order
        self._data_start = reader.data_start
        self._infos = {theirs: reader.tensors[ours] for ours, theirs in names.items()}
        self.shapes = {name: tuple(reversed(info.dims)) for name, info in self._infos.items()}
        self._dequantize: dict[str, Dequantize] = {}
        for name in self._infos:
            kind = self.dtype(name)
            if kind not in self._dequantize:
                self._dequantize[kind] = _dequantizer(kind, f"{self.path}: tensor {name}")
        self.dtypes = frozenset(self._dequantize)
        try:
            with self.path.open("rb", buffering=0) as file:
                self._file = UnchangedFile.of(self.path, file.fileno())
                header = file.read(self._data_start)
        except OSError as error:
            raise CheckpointError(f"cannot read {self.path}: {error.strerror}") from error
        self.identity = f"{hashlib.sha256(header).hexdigest()} {self._file.size} {self._file.changed}"

    def dtype(self, name: str) -> str:
        """Return a tensor's type as GGUF tools write it, such as ``Q4_K``."""
        return GGML_TYPES[self._infos[name].ggml_type].name

    def load(self, name: str, run: Run = map, rows: slice = ALL_ROWS) -> npt.NDArray[np.float32]:
        """Return a tensor, or some of its rows, in a new float32 array.

        Args:
            name: of the tensor.
            run: ``map``, or what does the same on several threads.
            rows: which of its first axis, in one run; only they are read, and what lies between them.

        Raises:
            CheckpointError: the file cannot be read, or is not the one that was opened.
        """
        shape, dequantize = self.shapes[name], self._dequantize[self.dtype(name)]
        first, end, _ = rows.indices(shape[0])
        if len(shape) == 1:  # one row: a block may hold several elements of it
            order = self._row_order(name, shape[0])
            vector = dequantize(self._rows(name, 0, 1)).reshape(-1)
            return np.array((vector if order is None else vector[order])[first:end])
        found = np.empty((max(0, end - first), *shape[1:]), dtype=np.float32)
        of_each = math.prod(shape[1:-1])  # rows of one matrix of a stack
        first, end, flat = first * of_each, end * of_each, found.reshape(-1, shape[-1])
        step = max(1, PIECE_WEIGHTS // max(1, shape[-1]))

        def fill(start: int) -> None:
            stop = min(start + step, end)
            flat[start - first : stop - first] = dequantize(self.read_rows(name, start, stop))

        for _ in run(fill, range(first, end, step)):
            pass
        return found

    def read_rows(self, name: str, first: int, end: int) -> Rows:
        """Return rows first to end - 1 of a matrix, or of all of a stack, at least one, as stored: (rows, row_bytes).

        Raises:
            CheckpointError: see ``load``.
        """
        order = self._row_order(name, self.shapes[name][0])
        if order is None:
            return self._rows(name, first, end)
        wanted = order[first:end]
        lowest = int(wanted.min())
        return self._rows(name, lowest, int(wanted.max()) + 1)[wanted - lowest]

    def pieces(self, name: str) -> Iterator[Rows]:
        """Yield a tensor's bytes, a row at a time.

        Raises:
            CheckpointError: see ``load``.
        """
        return (self._rows(name, row, row + 1) for row in range(math.prod(self.shapes[name][:-1])))

    def read(self, name: str) -> npt.NDArray[Any]:
        """Return the bytes of a tensor, a row of blocks each: (rows, row_bytes) uint8.

        Raises:
            CheckpointError: see ``load``.
        """
        return self._rows(name, 0, math.prod(self.shapes[name][:-1]))

    def _rows(self, name: str, first: int, end: int) -> Rows:
        """Return stored rows first to end - 1 as they are: (rows, row_bytes); a vector is a row."""
        info = self._infos[name]
        n_rows = math.prod(info.dims[1:])
        row_bytes, begin = info.n_bytes // n_rows, self._data_start + info.offset
        return self._file.read(begin + first * row_bytes, begin + end * row_bytes).reshape(end - first, row_bytes)


def unpermuted(n_heads: int, n_rows: int) -> npt.NDArray[np.intp]:
    """Return where llama.cpp's converter has put each row of a query or key matrix of the ``llama`` architecture.

    RoPE turns pairs (i, i + head_dim / 2) of a head in a checkpoint, neighbours (2 i, 2 i + 1) in such a file.

    Source: ``permute`` of ``LlamaModel`` in llama.cpp's convert_hf_to_gguf.py.
    """
    half = n_rows // n_heads // 2
    stored = np.arange(n_rows).reshape(n_heads, half, 2)
    return np.asarray(stored.swapaxes(1, 2).reshape(-1), dtype=np.intp)


def _dequantizer(kind: str, subject: str) -> Dequantize:
    """Return what turns rows (n, row_bytes) of a type into float32 (n, columns).

    Raises:
        UnsupportedModelError: the package that does so is missing, or does not know the type.
    """
    if kind in DTYPES:
        return partial(_widen, kind)
    if kind in LEVELS:
        return LEVELS[kind].dequantize
    block_bytes = next(known.block_bytes for known in GGML_TYPES.values() if known.name == kind)
    try:
        _by_package(kind, np.zeros((1, block_bytes), dtype=np.uint8))
    except ImportError as error:
        raise UnsupportedModelError(f"{subject} is {kind}, which needs gguf: pip install 'elutq[gguf]'") from error
    except (KeyError, NotImplementedError) as error:
        raise UnsupportedModelError(f"{subject} is {kind}, which the gguf package here cannot dequantize") from error
    return partial(_by_package, kind)


def _widen(kind: str, rows: Rows) -> npt.NDArray[np.float32]:
    """Return rows of floats, (n, row_bytes), as float32: (n, columns)."""
    stored = rows.view(DTYPES[kind])
    return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32) if kind == "BF16" else stored.astype(np.float32)


def _by_package(kind: str, rows: Rows) -> npt.NDArray[np.float32]:
    """Return the same of a type that only the gguf package knows."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    with np.errstate(all="ignore"):  # scales that are no numbers are found where weights are checked
        return np.asarray(dequantize(rows, GGMLQuantizationType[kind]), dtype=np.float32)
