"""One file of PyTorch's format, ``pytorch_model.bin``: its tensors, by the torch package, and nothing else of it.

Such a file is a pickle, which may hold any program: torch is told to load weights only, and refuses the rest unrun. It
maps the file, so that tensors take no memory before they are widened.
"""

import hashlib
import math
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from elutq_formats.errors import CheckpointError, UnsupportedModelError
from elutq_formats.lfs_pointer import refuse_pointer
from elutq_formats.safetensors_file import ALL_ROWS, DTYPES, Run
from elutq_formats.unchanged_file import UnchangedFile

if TYPE_CHECKING:
    from torch import Tensor

SAVE = "load it with transformers and write it with save_pretrained"

TORCH_BYTES = 160_000_000
"""What torch takes once it is imported; measured: 134 MB."""

PIECE_WEIGHTS = 1 << 20

_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"} | {
    f"{sign}int{bits}": f"{sign.upper()}{'' if sign else 'I'}{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}
"""Types as safetensors files call them: int32 is I32, uint8 U8."""


class PyTorchFile:
    """A file of tensors: see ``stored_weights.WeightFile``.

    Attributes:
        path: where it is.
        dtypes: types of tensors that ``load`` takes.
        package_bytes: memory of the package that reads it, where that takes much for itself.
        shapes: every tensor's shape, by name.
        identity: changes with the file: a hash of what tensors it holds, its size, and the time of its last change.
    """

    dtypes = tuple(DTYPES)
    package_bytes = TORCH_BYTES

    def __init__(self, path: Path) -> None:
        """Map the file.

        Raises:
            UnsupportedModelError: torch is not installed.
            CheckpointError: the file cannot be read, or is none of tensors by name.
        """
        self.path = path
        try:
            with path.open("rb", buffering=0) as file:
                self._file = UnchangedFile.of(path, file.fileno())
                refuse_pointer(path, file.read(256))
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
        self._tensors = _load(path)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        held = repr([(name, shape, self.dtype(name)) for name, shape in self.shapes.items()])
        self.identity = f"{hashlib.sha256(held.encode()).hexdigest()} {self._file.size} {self._file.changed}"

    def dtype(self, name: str) -> str:
        """Return a tensor's type as safetensors names it, such as ``BF16``; torch's name where that has none."""
        tensor = self._tensors[name]
        found = str(tensor.dtype).removeprefix("torch.")
        return _NAMES.get(found, found) if str(tensor.layout) == "torch.strided" else str(tensor.layout)

    def load(self, name: str, run: Run = map, rows: slice = ALL_ROWS) -> npt.NDArray[np.float32]:
        """Return a tensor, whose dtype is one of ``dtypes``, or some of its rows, in a new float32 array.

        Args:
            name: of the tensor.
            run: ``map``, or what does the same on several threads.
            rows: which of its first axis, in one run.

        Raises:
            CheckpointError: the file is not the one that was opened.
        """
        stored = self._tensors[name][rows]
        found = np.empty(tuple(stored.shape), dtype=np.float32)
        step = max(1, PIECE_WEIGHTS // max(1, math.prod(stored.shape[1:])))
        self._check()

        def fill(first: int) -> None:
            found[first : first + step] = stored[first : first + step].float().numpy()

        for _ in run(fill, range(0, len(found), step)):
            pass
        self._check()
        return found

    def pieces(self, name: str) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield a tensor's values, a row at a time, as bytes of float32."""
        return (np.atleast_1d(row.float().numpy()).view(np.uint8) for row in self._tensors[name])

    def read(self, name: str) -> npt.NDArray[Any]:
        """Return a tensor of integers as it is stored.

        Raises:
            CheckpointError: the file is not the one that was opened.
        """
        self._check()
        stored: npt.NDArray[Any] = self._tensors[name].contiguous().numpy().copy()
        self._check()
        return stored

    def __reduce__(self) -> "tuple[Callable[[UnchangedFile], PyTorchFile], tuple[UnchangedFile]]":
        """Travel to another process by the file's path: torch would send all that it maps."""
        return self._again, (self._file,)

    @classmethod
    def _again(cls, file: UnchangedFile) -> "PyTorchFile":
        """Open a file that another process has opened.

        Raises:
            CheckpointError: see ``__init__``; or it is another than it was there.
        """
        opened = cls(file.path)
        opened._file = file
        opened._check()
        return opened

    def _check(self) -> None:
        try:
            with self.path.open("rb", buffering=0) as file:
                self._file.check(file.fileno())
        except OSError as error:
            raise CheckpointError(f"cannot read {self.path}: {error.strerror}") from error


def _load(path: Path) -> "dict[str, Tensor]":
    try:
        import torch
    except ImportError as error:
        raise UnsupportedModelError(
            f"{path} is PyTorch's format, which needs torch: pip install 'elutq[torch]', or {SAVE}"
        ) from error
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UnsupportedModelError(f"{path} holds more than tensors, which is never loaded: {SAVE}") from error
    except Exception as error:  # torch raises what it likes; the file is damaged, or as old as torch 1.5
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(f"{path} is damaged, or of an old format ({reason!r:.120}): {SAVE}") from error
    if not isinstance(found, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in found.values()):
        raise UnsupportedModelError(f"{path} does not hold tensors by name, and nothing else: {SAVE}")
    return {str(name): tensor.detach() for name, tensor in found.items()}
