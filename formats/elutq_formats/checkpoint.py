"""A Hugging Face checkpoint folder: configuration, tokenizer, and weights read one tensor at a time."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from types import MappingProxyType, TracebackType

import numpy as np
import numpy.typing as npt

from elutq_formats.config import ModelConfig, quantization_method
from elutq_formats.errors import CheckpointError, FormatError, UnsupportedModelError
from elutq_formats.folder_texts import read_chat_template, read_json, read_optional_json, read_tokenizer
from elutq_formats.model_tensors import EMBEDDING, HEAD, are_plain, check_tensors, model_names, name_prefix
from elutq_formats.other_folders import check_folder, refuse_adapter, refuse_path
from elutq_formats.safetensors_file import ALL_ROWS, Run
from elutq_formats.sampling_defaults import SamplingDefaults, read_sampling_defaults
from elutq_formats.special_tokens import read_special_tokens, vocabulary_ids
from elutq_formats.stored_weights import StoredTensor, WeightFile, open_weights
from elutq_formats.tokenizer import Tokenizer

_MODEL = "model."


class Checkpoint:
    """An open checkpoint; a context manager.

    Attributes:
        path: the folder.
        config: its hyper-parameters; the head counts as tied when the checkpoint has none of its own.
        names: every tensor of the model, block by block.
        chat_template: the Jinja source of its chat template, if it has one.
        special_tokens: how its tokenizer spells special tokens, by name; None when it says nothing about them.
        sampling: how its author has tokens drawn.
        notes: what its user may not expect of how it was read, each in one line.
    """

    def __init__(
        self,
        path: Path,
        config: ModelConfig,
        tensors: Mapping[str, StoredTensor],
        special_tokens: Mapping[str, str] | None = None,
        sampling: SamplingDefaults | None = None,
        quantization: str | None = None,
    ) -> None:
        """Check what ``open`` found: ``tensors`` by their stored names, ``quantization`` by what config.json says."""
        self.path = path
        self.special_tokens = special_tokens
        self.sampling = sampling or {}
        prefix = name_prefix(tensors)
        names = model_names(tensors, prefix)
        self._tensors = {names[stored]: tensor for stored, tensor in tensors.items()}
        notes = []
        if prefix != _MODEL:
            self._check_head(config)
            notes.append(f"the tensors' names begin with {prefix!r}, not {_MODEL!r}: nothing but the names differs")
        if quantization is not None:
            self._check_plain(config, quantization)
            notes.append(f"config.json names a quantization ({quantization!r:.40}), but no tensor is quantized")
        self.config = replace(config, tie_word_embeddings=self._head_is_tied(config))
        if config.tie_word_embeddings and not self.config.tie_word_embeddings:
            notes.append(f"config.json ties the head to the embedding, but another is stored ({HEAD}): it is used")
        elif self.config.tie_word_embeddings and not config.tie_word_embeddings:
            notes.append(f"no head is stored ({HEAD}), though config.json does not tie it: the embedding is used")
        check_tensors(self._tensors, self.config, path)
        self.names = tuple(self.config.tensor_shapes())
        self._tensors = {name: self._tensors[name] for name in self.names}
        self.chat_template = read_chat_template(path)
        self.notes = tuple(notes)

    @classmethod
    def open(cls, path: Path, elsewhere: Mapping[str, WeightFile] = MappingProxyType({})) -> "Checkpoint":
        """Open a checkpoint and check that it is complete.

        Args:
            path: the folder.
            elsewhere: weight files that are not in the folder, by name.

        Raises:
            UnsupportedModelError: the model needs something that is not implemented.
            CheckpointError: a file is missing, truncated or damaged, or a tensor does not fit the configuration.
        """
        if not path.is_dir():
            raise refuse_path(path)
        refuse_adapter(path, path)
        if not elsewhere:
            check_folder(path)
        config = read_json(path / "config.json")
        generation_config = read_optional_json(path / "generation_config.json")
        tokenizer_config = read_optional_json(path / "tokenizer_config.json")
        special_tokens = read_special_tokens(tokenizer_config, read_optional_json(path / "special_tokens_map.json"))
        ids: dict[str, int] = {}
        if special_tokens:
            by_spelling = vocabulary_ids(read_optional_json(path / "tokenizer.json"), special_tokens.values())
            ids = {name: by_spelling[token] for name, token in special_tokens.items() if token in by_spelling}
        model_config = ModelConfig.from_huggingface(config, generation_config, ids)
        tensors = open_weights(path, elsewhere)
        sampling = read_sampling_defaults(generation_config)
        return cls(path, model_config, tensors, special_tokens, sampling, quantization_method(config))

    def identity(self) -> str:
        """Return a hash of the configuration and of the weight files: their headers, sizes and times of last change."""
        digest = hashlib.sha256(repr(self.config).encode())
        for file in self._weight_files():
            digest.update(f"{file.path.name!r} {file.identity}\n".encode())
        return digest.hexdigest()

    def weight_files(self) -> tuple[Path, ...]:
        """Return the files that hold the tensors."""
        return tuple(file.path for file in self._weight_files())

    def close(self) -> None:
        """Forget the files; arrays already loaded stay valid."""
        self._tensors = {}

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def tokenizer_json(self) -> str:
        """The contents of ``tokenizer.json``; see ``read_tokenizer``.

        Raises:
            CheckpointError: there is none, or it cannot be read.
        """
        return read_tokenizer(self.path)

    def tokenizer(self) -> Tokenizer:
        """Return its tokenizer.

        Raises:
            CheckpointError: there is none, or it cannot be read.
        """
        text = self.tokenizer_json
        try:
            return Tokenizer.from_json(text, self.config, self.special_tokens)
        except FormatError as error:
            raise CheckpointError(f"{self.path / 'tokenizer.json'} is damaged: {error}") from error

    def has(self, name: str) -> bool:
        """Whether the model has this tensor."""
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self._tensor(name).shape

    def load(self, name: str, run: Run = map, rows: slice = ALL_ROWS) -> npt.NDArray[np.float32]:
        """Return a tensor, or some of its rows, in a new float32 array; ``run`` may do so on several threads."""
        return self._tensor(name).load(run, rows)

    def _weight_files(self) -> list[WeightFile]:
        return sorted({tensor.file for tensor in self._tensors.values()}, key=lambda file: file.path)

    def _tensor(self, name: str) -> StoredTensor:
        if name not in self._tensors:
            raise CheckpointError(f"{self.path} has no tensor {name}")
        return self._tensors[name]

    def _head_is_tied(self, config: ModelConfig) -> bool:
        """Whether the head is the embedding: no head stored, or declared tied and stored as an equal copy."""
        head, embedding = self._tensors.get(HEAD), self._tensors.get(EMBEDDING)
        if head is None or embedding is None:
            return head is None
        same_kind = head.dtype == embedding.dtype
        return config.tie_word_embeddings and same_kind and _equal(head.pieces(), embedding.pieces())

    def _check_head(self, config: ModelConfig) -> None:
        """Refuse a base model saved without the head that its configuration calls for."""
        if HEAD not in self._tensors and not config.tie_word_embeddings:
            raise UnsupportedModelError(
                f"{self.path} is a base model without its head ({HEAD}), and config.json does not tie it to the "
                "embedding: save the whole model for causal language modelling"
            )

    def _check_plain(self, config: ModelConfig, quantization: str) -> None:
        """Refuse a checkpoint that is quantized, and not merely called so by a left-over of its configuration."""
        if not are_plain(self._tensors, config):
            raise UnsupportedModelError(f"the checkpoint is already quantized ({quantization!r:.40}): use the original")


def _equal(left: Iterator[npt.NDArray[np.uint8]], right: Iterator[npt.NDArray[np.uint8]]) -> bool:
    """Whether two tensors hold the same bytes, read piece by piece so that a difference is found early."""
    none = np.zeros(0, dtype=np.uint8)
    return all(np.array_equal(ours, theirs) for ours, theirs in zip_longest(left, right, fillvalue=none))
