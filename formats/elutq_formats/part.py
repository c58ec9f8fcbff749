"""Tensors of a model that a checkpoint stores in its own way: as rows of another, less a one, or before a factor."""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from elutq_formats.errors import CheckpointError
from elutq_formats.quantized_matrix import QuantizedMatrix, RowsOfMatrix
from elutq_formats.safetensors_file import ALL_ROWS, Run
from elutq_formats.stored_weights import Tensor, WeightFile


@dataclass(frozen=True)
class Part:
    """What a tensor of the model is: ``factor * (added + rows of a stored tensor)``.

    Attributes:
        name: of the stored tensor, with the model's prefix.
        rows: of it; None: all.
        added: to its numbers.
        factor: that multiplies the sum.
        neighbours: a head's rows, and how many of them turn, where RoPE turns pairs (2 i, 2 i + 1) of the stored rows;
            the model's are in the order in which it turns pairs (i, i + half). None: the stored are, too.
        flat: it is a vector, whatever the dimensions of the stored tensor.
    """

    name: str
    rows: range | None = None
    added: float = 0.0
    factor: float = 1.0
    neighbours: tuple[int, int] | None = None
    flat: bool = False

    def of(self, tensor: Tensor) -> Tensor:
        """Return the model's tensor from the stored one; rows of a quantized matrix are one, too."""
        if self == Part(self.name):
            return tensor
        if isinstance(tensor, QuantizedMatrix) and self.rows is not None and self == Part(self.name, self.rows):
            return RowsOfMatrix(tensor, self.rows)
        return PartOfTensor(tensor, self)


@dataclass(frozen=True)
class PartOfTensor:
    """A tensor that is a part of a stored one: see ``stored_weights.Tensor``."""

    tensor: Tensor
    part: Part

    @property
    def files(self) -> tuple[WeightFile, ...]:
        """The files that hold it."""
        return self.tensor.files

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        if self.part.flat:
            return (math.prod(self.tensor.shape),)
        rows, *others = self.tensor.shape
        return (rows if self.part.rows is None else len(self.part.rows), *others)

    @property
    def dtype(self) -> str:
        """Its type as it is stored."""
        return self.tensor.dtype

    @property
    def dtypes(self) -> Collection[str]:
        """The types that ``load`` takes."""
        return self.tensor.dtypes

    def load(self, run: Run = map, rows: slice = ALL_ROWS) -> npt.NDArray[np.float32]:
        """Return it, or some of its rows, in a new float32 array."""
        if self.part.flat:
            return self.tensor.load(run).reshape(-1)[rows]
        wanted = self._stored_rows()[rows]
        lowest, end = (int(wanted.min()), int(wanted.max()) + 1) if wanted.size else (0, 0)
        found = self.tensor.load(run, slice(lowest, end))
        if self.part.neighbours is not None:
            found = found[wanted - lowest]
        if self.part.added:
            found += np.float32(self.part.added)
        if self.part.factor != 1.0:
            found *= np.float32(self.part.factor)
        return found

    def pieces(self) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield the bytes of what ``load`` returns."""
        yield self.load().reshape(-1).view(np.uint8)

    def _stored_rows(self) -> npt.NDArray[Any]:
        """Return the stored row of each of its own."""
        rows = np.arange(self.tensor.shape[0]) if self.part.rows is None else np.asarray(self.part.rows)
        if self.part.neighbours is None:
            return rows
        head_dim, turned = self.part.neighbours
        heads = rows.reshape(-1, head_dim)
        pairs = heads[:, :turned].reshape(len(heads), turned // 2, 2).swapaxes(1, 2).reshape(len(heads), turned)
        return np.concatenate((pairs, heads[:, turned:]), axis=1).reshape(-1)


def stored_shapes(shapes: Mapping[str, tuple[int, ...]], parts: Mapping[str, Part]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of stored tensors, by their names, from those of the model's.

    Args:
        shapes: of the model's tensors, by name; none of them is ``flat`` where it is stored.
        parts: of which stored ones they are.
    """
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        part = parts.get(name, Part(name))
        first, *others = shape
        before = 0 if part.rows is None else found.get(part.name, (0,))[0]
        found[part.name] = (before + first, *others)
    return found


def arrange(tensors: Mapping[str, Tensor], parts: Mapping[str, Part], place: object) -> dict[str, Tensor]:
    """Return the model's tensors from stored ones; those that no part names keep their names.

    Args:
        tensors: by their stored names, with the model's prefix.
        parts: by the model's names.
        place: where they are.

    Raises:
        CheckpointError: the parts are not all of the tensors that they are parts of.
    """
    lengths: dict[str, int] = {}
    for part in parts.values():
        if part.name in tensors and part.rows is not None:
            lengths[part.name] = lengths.get(part.name, 0) + len(part.rows)
    for name, n_rows in lengths.items():
        if tensors[name].shape[:1] != (n_rows,):
            raise CheckpointError(
                f"{place}: tensor {name} has shape {list(tensors[name].shape)}, the configuration says {n_rows} rows"
            )
    taken = {part.name for part in parts.values()}
    found = {name: tensor for name, tensor in tensors.items() if name not in taken}
    return found | {name: part.of(tensors[part.name]) for name, part in parts.items() if part.name in tensors}
