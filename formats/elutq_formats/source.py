"""Where a model comes from: what can be asked of a checkpoint, whatever container it is in.

One file a container opens it: ``checkpoint.py`` a folder in Hugging Face's form, ``gguf_source.py`` a GGUF file. What
wraps a source (checks, a rotation) offers no more than its ``Weights``.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from elutq_formats.config import ModelConfig
from elutq_formats.errors import CheckpointError, FormatError
from elutq_formats.hlq import HLQTensor
from elutq_formats.levels_of_floats import find_levels
from elutq_formats.model_tensors import check_tensors
from elutq_formats.origin import Origin
from elutq_formats.quantized_matrix import QuantizedMatrix
from elutq_formats.safetensors_file import ALL_ROWS, Run
from elutq_formats.sampling_defaults import SamplingDefaults
from elutq_formats.stored_weights import StoredTensor, Tensor, WeightFile
from elutq_formats.tokenizer import Tokenizer

MATRIX_DIMENSIONS = 2

Source = TypeVar("Source", bound="ModelSource")


class Weights(Protocol):
    """Tensors of a model, under their Hugging Face names."""

    @property
    def config(self) -> ModelConfig:
        """Hyper-parameters."""

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""

    def load(self, name: str, run: Run = map, rows: slice = ALL_ROWS) -> npt.NDArray[np.float32]:
        """Return a tensor, or some of its rows, in a new float32 array; ``run`` may do so on several threads."""

    def levels(self, name: str, run: Run = map) -> HLQTensor | None:
        """Return a matrix that others have quantized, with their levels; None where they have not."""


class ModelSource(ABC):
    """An open source of a model; a context manager.

    Attributes:
        path: the folder or the file.
        config: hyper-parameters; the head counts as tied when the source has none of its own.
        names: every tensor of the model, block by block.
        chat_template: the Jinja source of its chat template, if it has one.
        chat_template_place: where that stands, for who has to mend it.
        tokenizer_place: the same of its tokenizer.
        special_tokens: how its tokenizer spells special tokens, by name; None when it says nothing about them.
        sampling: how its author has tokens drawn.
        notes: what its user may not expect of how it was read, each in one line.
        coarseness: how few bits its weights have, where others have quantized it; None where they have not.
    """

    path: Path
    config: ModelConfig
    chat_template: str | None
    chat_template_place: Path
    tokenizer_place: Path
    special_tokens: Mapping[str, str] | None
    sampling: SamplingDefaults
    notes: tuple[str, ...]
    coarseness: str | None = None

    def __init__(self, path: Path, config: ModelConfig, tensors: Mapping[str, Tensor]) -> None:
        """Check that these are the model's tensors, by name, and hold them.

        Raises:
            CheckpointError: they are not.
        """
        check_tensors(tensors, config, path)
        self.path = path
        self.config = config
        self.names = tuple(config.tensor_shapes())
        self._tensors = {name: tensors[name] for name in self.names}

    @property
    @abstractmethod
    def tokenizer_json(self) -> str:
        """The contents of its ``tokenizer.json``.

        Raises:
            CheckpointError: there is none, or it cannot be read.
        """

    @abstractmethod
    def origin(self) -> Origin:
        """Return where it comes from."""

    def tokenizer(self) -> Tokenizer:
        """Return its tokenizer.

        Raises:
            CheckpointError: there is none, or it cannot be read.
        """
        text = self.tokenizer_json
        try:
            return Tokenizer.from_json(text, self.config, self.special_tokens)
        except FormatError as error:
            raise CheckpointError(f"{self.tokenizer_place} is damaged: {error}") from error

    def identity(self) -> str:
        """Return a hash of the configuration and of the weight files: their headers, sizes and times of last change."""
        digest = hashlib.sha256(repr(self.config).encode())
        for file in self._files():
            digest.update(f"{file.path.name!r} {file.identity}\n".encode())
        return digest.hexdigest()

    def weight_files(self) -> tuple[Path, ...]:
        """Return the files that hold the tensors."""
        return tuple(file.path for file in self._files())

    def package_bytes(self) -> int:
        """Return the memory of the package that reads the weights, where it takes much for itself."""
        return max((file.package_bytes for file in self._files()), default=0)

    def has(self, name: str) -> bool:
        """Whether the model has this tensor."""
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self._tensor(name).shape

    def dtype(self, name: str) -> str:
        """Return what a tensor is stored as, such as ``BF16`` or ``Q6_K``."""
        return self._tensor(name).dtype

    def load(self, name: str, run: Run = map, rows: slice = ALL_ROWS) -> npt.NDArray[np.float32]:
        """Return a tensor, or some of its rows, in a new float32 array; ``run`` may do so on several threads.

        Raises:
            CheckpointError: there is none of this name, or the file cannot be read or is another than was opened.
        """
        return self._tensor(name).load(run, rows)

    def quantized(self, name: str) -> QuantizedMatrix | None:
        """Return how others have quantized a matrix, as far as headers tell; None where they have not."""
        tensor = self._tensor(name)
        return tensor if isinstance(tensor, QuantizedMatrix) else None

    def find_levels(self, name: str, run: Run = map) -> bool:
        """Look at every weight of a matrix; from then on one of floats that are on levels is a quantized one.

        Returns:
            Whether it is on levels.

        Raises:
            CheckpointError: see ``load``.
        """
        tensor = self._tensor(name)
        if isinstance(tensor, StoredTensor) and len(tensor.shape) == MATRIX_DIMENSIONS:
            self._tensors[name] = find_levels(name, tensor, run) or tensor
        return self.quantized(name) is not None

    def levels(self, name: str, run: Run = map) -> HLQTensor | None:
        """Return a matrix that others have quantized, with their levels and codes; None where they have not.

        Args:
            name: of the matrix.
            run: ``map``, or what does the same on several threads.

        Raises:
            UnsupportedModelError: no HLQ matrix has these levels.
            CheckpointError: see ``load``.
        """
        matrix = self.quantized(name)
        return None if matrix is None else matrix.levels(run)

    def notes_on(self, keeps_levels: bool) -> tuple[str, ...]:
        """Return the notes on a run that keeps the levels of others, or does not."""
        if keeps_levels or self.coarseness is None:
            return self.notes
        better = "the original checkpoint, or a file of 8 bits, makes a better model"
        if any(self.quantized(name) for name in self.names):
            better = f"elutq import keeps their levels as they are, and {better}"
        return (*self.notes, f"{self.coarseness}, and what that lost stays lost: {better}")

    def notes_on_measuring(self) -> tuple[str, ...]:
        """Return the notes on figures of it, or against it."""
        if self.coarseness is None:
            return self.notes
        return (*self.notes, f"{self.coarseness}: it is taken as what they stand for")

    def close(self) -> None:
        """Forget the files; arrays already loaded stay valid."""
        self._tensors = {}

    def __enter__(self: Source) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _files(self) -> list[WeightFile]:
        files: Iterable[WeightFile] = {file for tensor in self._tensors.values() for file in tensor.files}
        return sorted(files, key=lambda file: file.path)

    def _tensor(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise CheckpointError(f"{self.path} has no tensor {name}")
        return self._tensors[name]
