"""A matrix that others have quantized, as one tensor of a source: its weights, and the levels that they are on."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from elutq_formats.errors import DamagedWeightsError, UnsupportedModelError
from elutq_formats.even_levels import EVEN_WITH_CENTERS, StoredLevels, fitting_group_size
from elutq_formats.hlq import HLQTensor
from elutq_formats.safetensors_file import ALL_ROWS, Run
from elutq_formats.stored_weights import StoredTensor, WeightFile

PIECE_WEIGHTS = 1 << 20
"""Weights that are unpacked at once."""

INTEGERS = ("I32",)
FLOATS = ("F16", "BF16", "F32")

Result = TypeVar("Result")

ReadRows = Callable[[slice], StoredLevels]
"""Returns the levels of rows of a matrix, first to end - 1."""


@dataclass(frozen=True)
class StoredLayout:
    """How a checkpoint stores the matrices that are quantized.

    Attributes:
        suffixes: what names of their parts end in, in the place of ``weight``.
        open: makes a matrix of its name, its parts by suffix, and its shape.
        holds: whether a matrix of this name, with these parts, at least one, is quantized.
    """

    suffixes: tuple[str, ...]
    open: "Callable[[str, Mapping[str, StoredTensor], tuple[int, ...]], QuantizedMatrix]"
    holds: Callable[[str, Mapping[str, StoredTensor]], bool] = lambda name, parts: True


class QuantizedMatrix(ABC):
    """A matrix stored in parts, such as codes, scales and zero points: see ``stored_weights.Tensor``.

    Attributes:
        name: of the tensor, without what its parts end in.
        parts: tensors that hold it, by what their names end in.
        shape: (rows, columns).
        bits: of a code.
        group_size: columns that share a scale, as far as headers tell.
        kind: of the blocks that hold its levels, as far as headers tell.
    """

    bits: int
    group_size: int
    kind = EVEN_WITH_CENTERS

    def __init__(self, name: str, parts: Mapping[str, StoredTensor], shape: tuple[int, ...]) -> None:
        """Look at headers alone.

        Raises:
            CheckpointError: a part is missing, or its shape or type is not what the others call for.
            UnsupportedModelError: it is stored in a way that is not read.
        """
        self.name = name
        self.parts = parts
        self.shape = shape

    @abstractmethod
    def open_rows(self) -> ReadRows:
        """Read the stored parts, check them, and return what unpacks some rows.

        Raises:
            CheckpointError: they cannot be read, or do not make sense.
        """

    @property
    def files(self) -> tuple[WeightFile, ...]:
        """The files that hold it."""
        return tuple({id(part.file): part.file for part in self.parts.values()}.values())

    @property
    def dtype(self) -> str:
        """What a weight is, such as ``INT4``."""
        return f"INT{self.bits}"

    @property
    def dtypes(self) -> Collection[str]:
        """The types that ``load`` takes: its own."""
        return (self.dtype,)

    def load(self, run: Run = map, rows: slice = ALL_ROWS) -> npt.NDArray[np.float32]:
        """Return it dequantized, or some of its rows, with any positive step, in a new float32 array.

        Raises:
            CheckpointError: see ``open_rows``.
        """
        read, wanted = self.open_rows(), range(*rows.indices(self.shape[0]))
        found = np.empty((len(wanted), self.shape[1]), dtype=np.float32)
        at_once = self.rows_at_once

        def fill(first: int) -> None:
            some = wanted[first : first + at_once]
            found[first : first + len(some)] = read(slice(some.start, some.stop, some.step)).dequantize()

        for _ in run(fill, range(0, len(wanted), at_once)):
            pass
        return found

    def pieces(self) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield the bytes of its parts, some at a time."""
        for suffix in sorted(self.parts):
            yield from self.parts[suffix].pieces()

    def levels(self, run: Run = map) -> HLQTensor:
        """Return it as an HLQ matrix with the same levels and codes; ``run`` may unpack it on several threads.

        Raises:
            UnsupportedModelError: no HLQ matrix has these levels.
            CheckpointError: see ``open_rows``.
        """
        read, at_once = self.open_rows(), self.rows_at_once
        parts: dict[int, StoredLevels] = {}

        def fill(first: int) -> None:
            parts[first] = read(slice(first, min(first + at_once, self.shape[0])))

        for _ in run(fill, range(0, self.shape[0], at_once)):
            pass
        in_order = [parts[first] for first in sorted(parts)]
        return self._importing(type(in_order[0]).concatenate(in_order).to_hlq)

    def fitting_group_size(self) -> int:
        """Return the columns of a group in an HLQ matrix with its levels, as far as headers tell.

        Raises:
            UnsupportedModelError: no groups of ours fit.
        """
        return self._importing(lambda: fitting_group_size(np.arange(self.shape[1]) // self.group_size))

    def _importing(self, function: Callable[[], Result]) -> Result:
        """Return what a function does, and name the matrix where it refuses."""
        try:
            return function()
        except UnsupportedModelError as error:
            raise UnsupportedModelError(f"{self.name} cannot be imported: {error}") from error

    def refuse(self, reason: str) -> NoReturn:
        """Raise a DamagedWeightsError that names the matrix."""
        raise DamagedWeightsError(f"{self.name}: {reason}")

    def part_shape(self, suffix: str, n_dims: int) -> tuple[int, ...]:
        """Return the shape of a part that has so many dimensions, none of them empty.

        Raises:
            CheckpointError: it has not, or there is no such part.
        """
        if suffix not in self.parts:
            self.refuse(f"it has no {suffix}: the checkpoint is incomplete")
        shape = self.parts[suffix].shape
        if len(shape) != n_dims or not all(shape):
            self.refuse(f"its {suffix} has shape {list(shape)}")
        return shape

    def check_part(self, suffix: str, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> None:
        """Check a part's shape and type.

        Raises:
            CheckpointError: they are others, or there is no such part.
        """
        self.part_shape(suffix, len(shape))
        part = self.parts[suffix]
        if part.shape != shape:
            self.refuse(f"its {suffix} has shape {list(part.shape)}, its other parts call for {list(shape)}")
        if part.dtype not in dtypes:
            self.refuse(f"its {suffix} is {part.dtype!r:.20}, not {' or '.join(dtypes)}")

    def read_integers(self, suffix: str) -> npt.NDArray[Any]:
        """Read a part as it is stored.

        Raises:
            CheckpointError: it cannot be read.
        """
        return self.parts[suffix].read()

    def read_words(self, suffix: str) -> npt.NDArray[np.uint32]:
        """Read a part that packs codes into integers of 32 bits.

        Raises:
            CheckpointError: it cannot be read.
        """
        return self.read_integers(suffix).view(np.uint32)

    def read_scales(self, suffix: str) -> npt.NDArray[np.float32]:
        """Read scales.

        Raises:
            CheckpointError: they cannot be read, or one is not finite.
        """
        scales = self.parts[suffix].load()
        if not np.isfinite(scales).all():
            self.refuse(f"its {suffix} holds a scale that is not finite: the checkpoint is damaged")
        return scales

    def check_groups(self, suffix: str, group_of: npt.NDArray[np.intp], n_groups: int) -> npt.NDArray[np.intp]:
        """Return the group of each column, as a part says.

        Raises:
            CheckpointError: it names one that is not there.
        """
        if group_of.min() < 0 or group_of.max() >= n_groups:
            self.refuse(f"its {suffix} names a group that is none of its {n_groups}: the checkpoint is damaged")
        return group_of

    @property
    def rows_at_once(self) -> int:
        """How many rows are unpacked at once."""
        return max(1, PIECE_WEIGHTS // self.shape[1])


class RowsOfMatrix(QuantizedMatrix):
    """Rows of a matrix that holds several of the model, one below the other.

    Attributes:
        whole: that is stored.
        rows: of it.
    """

    def __init__(self, whole: QuantizedMatrix, rows: range) -> None:
        """Take what is known of the whole."""
        super().__init__(whole.name, whole.parts, (len(rows), whole.shape[1]))
        self.whole, self.rows = whole, rows
        self.bits, self.group_size, self.kind = whole.bits, whole.group_size, whole.kind

    @property
    def dtype(self) -> str:
        """See ``stored_weights.Tensor``."""
        return self.whole.dtype

    def load(self, run: Run = map, rows: slice = ALL_ROWS) -> npt.NDArray[np.float32]:
        """See ``QuantizedMatrix``."""
        wanted = self.rows[rows]
        return self.whole.load(run, slice(wanted.start, wanted.stop, wanted.step))

    def open_rows(self) -> ReadRows:
        """See ``QuantizedMatrix``."""
        read, first = self.whole.open_rows(), self.rows.start
        return lambda rows: read(slice(first + rows.start, first + rows.stop, rows.step))


class WholeMatrix(QuantizedMatrix):
    """One that is stored as a single tensor, whose weights, as they are loaded, are on levels.

    Attributes:
        tensor: that holds it.
    """

    def __init__(self, name: str, tensor: StoredTensor, bits: int, group_size: int) -> None:
        """Take what is known of it."""
        super().__init__(name, {"weight": tensor}, tensor.shape)
        self.tensor = tensor
        self.bits, self.group_size = bits, group_size

    @property
    def dtype(self) -> str:
        """See ``stored_weights.Tensor``."""
        return self.tensor.dtype

    @property
    def dtypes(self) -> Collection[str]:
        """See ``stored_weights.Tensor``."""
        return self.tensor.dtypes

    def load(self, run: Run = map, rows: slice = ALL_ROWS) -> npt.NDArray[np.float32]:
        """See ``QuantizedMatrix``."""
        first, end, step = rows.indices(self.shape[0])
        return self.tensor.load(run, slice(first, end))[::step]
