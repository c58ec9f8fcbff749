"""The weight files of a checkpoint folder: which there are, and the tensors that they hold."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from elutq_formats.errors import CheckpointError
from elutq_formats.folder_texts import read_json
from elutq_formats.pytorch_file import PyTorchFile
from elutq_formats.safetensors_file import ALL_ROWS, Run, SafetensorsFile

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SAFETENSORS, PYTORCH = ".safetensors", ".bin"
PYTORCH_SINGLE, PYTORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"

LAYOUTS = (SINGLE, INDEX), (PYTORCH_SINGLE, PYTORCH_INDEX)
"""What is looked for, in this order: safetensors before PyTorch's format, a single file before an index, as
transformers does."""


class WeightFile(Protocol):
    """A file of tensors: see ``SafetensorsFile``."""

    path: Path
    identity: str

    @property
    def package_bytes(self) -> int:
        """Memory of the package that reads it, where that takes much for itself."""

    @property
    def dtypes(self) -> Collection[str]:
        """The types of tensors that ``load`` takes."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape, by name."""

    def dtype(self, name: str) -> str:
        """Return a tensor's dtype as the header names it."""

    def load(self, name: str, run: Run = map, rows: slice = ALL_ROWS) -> npt.NDArray[np.float32]:
        """Return a tensor, or some of its rows, in a new float32 array."""

    def pieces(self, name: str) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield a tensor's bytes, some at a time."""

    def read(self, name: str) -> npt.NDArray[Any]:
        """Return a tensor of integers as it is stored."""


class Tensor(Protocol):
    """A tensor of a source, stored as it is or in parts."""

    @property
    def files(self) -> tuple[WeightFile, ...]:
        """The files that hold it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def dtype(self) -> str:
        """Its type, such as ``BF16``."""

    @property
    def dtypes(self) -> Collection[str]:
        """The types that ``load`` takes."""

    def load(self, run: Run = map, rows: slice = ALL_ROWS) -> npt.NDArray[np.float32]:
        """Return it, or some of its rows, in a new float32 array."""

    def pieces(self) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield its bytes, some at a time."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor where it is stored: see ``Tensor``.

    Attributes:
        file: that holds it.
        name: which it has there.
    """

    file: WeightFile
    name: str

    @property
    def files(self) -> tuple[WeightFile, ...]:
        """The file that holds it."""
        return (self.file,)

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.file.shapes[self.name]

    @property
    def dtype(self) -> str:
        """Its type as the file names it, such as ``BF16``."""
        return self.file.dtype(self.name)

    @property
    def dtypes(self) -> Collection[str]:
        """The types that ``load`` takes."""
        return self.file.dtypes

    def load(self, run: Run = map, rows: slice = ALL_ROWS) -> npt.NDArray[np.float32]:
        """Return it, or some of its rows, in a new float32 array."""
        return self.file.load(self.name, run, rows)

    def pieces(self) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield its bytes, some at a time."""
        return self.file.pieces(self.name)

    def read(self) -> npt.NDArray[Any]:
        """Return it, of integers, as it is stored."""
        return self.file.read(self.name)


def open_weights(folder: Path, elsewhere: Mapping[str, WeightFile] = MappingProxyType({})) -> dict[str, StoredTensor]:
    """Open every weight file of a folder; return each tensor by its stored name.

    Args:
        folder: which holds one of them.
        elsewhere: files that are not in the folder, by name.

    Raises:
        UnsupportedModelError: they are of PyTorch's format, and torch is not installed.
        CheckpointError: a file is missing or damaged, or the index is.
    """

    def open_file(name: str) -> WeightFile:
        kind = SafetensorsFile if name.endswith(SAFETENSORS) else PyTorchFile
        return elsewhere.get(name) or kind(folder / name)

    for single, index in LAYOUTS:
        if single in elsewhere or (folder / single).exists():
            break
        if (folder / index).exists():
            return _open_shards(folder, index, open_file)
    else:
        single = SINGLE  # which then is missing
    file = open_file(single)
    return {name: StoredTensor(file, name) for name in file.shapes}


def _open_shards(folder: Path, index: str, open_file: Callable[[str], WeightFile]) -> dict[str, StoredTensor]:
    """Open the files that the index names, and take all that they hold, as transformers does: it may leave some out."""
    weight_map = read_weight_map(folder / index)
    found: dict[str, StoredTensor] = {}
    for shard in sorted(set(weight_map.values())):
        file = open_file(shard)
        for name in file.shapes:
            if weight_map.get(name, shard) != shard:  # the index says which of two counts
                continue
            if name in found:
                both = f"{found[name].file.path.name} and {shard}"
                raise CheckpointError(
                    f"{folder} is damaged: {both} both hold tensor {name!r:.80}, and {index} no place for it"
                )
            found[name] = StoredTensor(file, name)
    for name, shard in weight_map.items():
        if name not in found or found[name].file.path.name != shard:
            raise CheckpointError(f"{folder} is damaged: {shard} does not hold tensor {name!r:.80}; download it again")
    return found


def read_weight_map(index: Path) -> dict[str, str]:
    """Read which file holds each tensor.

    Raises:
        CheckpointError: the index is damaged, or names a file outside its folder.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{index} is damaged: it has no weight_map from tensors to files")
    suffix, kind = (PYTORCH, "PyTorch") if index.name == PYTORCH_INDEX else (SAFETENSORS, "safetensors")
    for shard in weight_map.values():
        if Path(shard).name != shard or not shard.endswith(suffix):
            raise CheckpointError(f"{index} is damaged: {shard!r:.80} is not the name of a {kind} file")
    return weight_map
