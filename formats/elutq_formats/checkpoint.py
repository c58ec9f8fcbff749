"""A Hugging Face checkpoint folder: configuration, tokenizer, and weights read one tensor at a time."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from elutq_formats.bitnet import rounds_online
from elutq_formats.config import ModelConfig
from elutq_formats.errors import CheckpointError, UnsupportedModelError
from elutq_formats.expert_stack import gather_experts
from elutq_formats.family import Parts
from elutq_formats.file_system import reachable
from elutq_formats.folder_texts import (
    card_base_models,
    card_license,
    read_card,
    read_chat_template,
    read_json,
    read_optional_json,
    read_tokenizer,
)
from elutq_formats.huggingface_config import read_parts
from elutq_formats.model_tensors import EMBEDDING, HEAD, are_plain, model_names, name_prefix
from elutq_formats.multimodal import is_of_text
from elutq_formats.origin import BaseModel, Origin, find_snapshot
from elutq_formats.other_folders import check_folder, refuse_adapter, refuse_path
from elutq_formats.part import arrange
from elutq_formats.quantized_checkpoint import assemble, describe_coarseness
from elutq_formats.quantized_settings import SETTINGS_FILES, QuantizationSettings
from elutq_formats.sampling_defaults import SamplingDefaults, read_sampling_defaults
from elutq_formats.source import ModelSource
from elutq_formats.special_tokens import read_special_tokens, vocabulary_ids
from elutq_formats.stored_weights import StoredTensor, Tensor, WeightFile, open_weights

_MODEL = "model."


class Checkpoint(ModelSource):
    """An open checkpoint folder: see ``ModelSource``."""

    def __init__(
        self,
        path: Path,
        config: ModelConfig,
        tensors: Mapping[str, StoredTensor],
        special_tokens: Mapping[str, str] | None = None,
        sampling: SamplingDefaults | None = None,
        quantization: QuantizationSettings | None = None,
        parts: Callable[[ModelConfig], Parts] = lambda _: {},
    ) -> None:
        """Check what ``open`` found.

        Args:
            path: of the folder.
            config: of the model.
            tensors: by their stored names.
            special_tokens: how they are spelled, by name.
            sampling: how the author has tokens drawn.
            quantization: as config.json tells it.
            parts: tells how tensors are stored that are not stored as they are.
        """
        prefix = name_prefix(tensors)
        names = model_names(tensors, prefix)
        stored = {names[name]: tensor for name, tensor in tensors.items()}
        found: dict[str, Tensor] = gather_experts(stored, path) if config.n_experts else dict(stored)
        notes = []
        if quantization is not None and are_plain(found, config) and not rounds_online(quantization):
            method = quantization.method
            notes.append(f"{quantization.file} names a quantization ({method!r:.40}), but no tensor is quantized")
        elif quantization is not None:
            if config.n_experts:
                quantization.refuse("experts that others have quantized are not read: use the original")
            found = assemble(stored, config, parts(config), quantization, path)
            self.coarseness = describe_coarseness(found, quantization)
        if prefix != _MODEL:
            _check_head(found, config, path)
            notes.append(f"the tensors' names begin with {prefix!r}, not {_MODEL!r}: nothing but the names differs")
        tied = _head_is_tied(found, config)
        if config.tie_word_embeddings and not tied:
            notes.append(f"config.json ties the head to the embedding, but another is stored ({HEAD}): it is used")
        elif tied and not config.tie_word_embeddings:
            notes.append(f"no head is stored ({HEAD}), though config.json does not tie it: the embedding is used")
        config = replace(config, tie_word_embeddings=tied)
        self.parts = parts(config)
        super().__init__(path, config, arrange(found, self.parts, path))
        self.chat_template, self.chat_template_place = read_chat_template(path)
        self.tokenizer_place = path / "tokenizer.json"
        self.special_tokens = special_tokens
        self.sampling = sampling or {}
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
        path = reachable(path)
        try:
            return cls._of(path, elsewhere)
        except CheckpointError as error:
            if elsewhere or str(path) in str(error):  # what is elsewhere has a name of its own there
                raise
            raise type(error)(f"{path}: {error}") from error

    @classmethod
    def _of(cls, path: Path, elsewhere: Mapping[str, WeightFile]) -> "Checkpoint":
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
        stored = open_weights(path, elsewhere)
        tensors = {name: tensor for name, tensor in stored.items() if is_of_text(name, config)}
        sampling = read_sampling_defaults(generation_config)
        beside = {name: read_optional_json(path / name) for name in SETTINGS_FILES}
        quantization = QuantizationSettings.of_config(config, beside)
        parts = partial(read_parts, config)
        opened = cls(path, model_config, tensors, special_tokens, sampling, quantization, parts)
        if len(tensors) < len(stored):
            opened.notes += (f"the text model of {config['model_type']} is taken: what it has for images is left out",)
        return opened

    def identity(self) -> str:
        """See ``ModelSource``; how tensors are stored belongs to it."""
        return f"{super().identity()} {self.parts!r}" if self.parts else super().identity()

    @property
    def tokenizer_json(self) -> str:
        """The contents of ``tokenizer.json``; see ``read_tokenizer``."""
        return read_tokenizer(self.path)

    def origin(self) -> Origin:
        """Return the folder's name, or the repository's when it is a snapshot in the Hugging Face cache.

        Of a repository a model file is made; of a folder, which may be a copy of one, it is known what that is made of.
        """
        place, card = self.path.resolve(), read_card(self.path)
        snapshot = find_snapshot(place)
        source, revision, _ = snapshot or (place.name, None, "")
        bases = (source,) if snapshot else card_base_models(card)
        return Origin(
            source,
            source.rpartition("/")[2],
            revision,
            card_license(card),
            base_models=tuple(map(BaseModel.of_repository, bases)),
        )


def _head_is_tied(tensors: Mapping[str, Tensor], config: ModelConfig) -> bool:
    """Whether the head is the embedding: no head stored, or declared tied and stored as an equal copy."""
    head, embedding = tensors.get(HEAD), tensors.get(EMBEDDING)
    if head is None or embedding is None:
        return head is None
    same_kind = head.dtype == embedding.dtype
    return config.tie_word_embeddings and same_kind and _equal(head.pieces(), embedding.pieces())


def _check_head(tensors: Mapping[str, Tensor], config: ModelConfig, path: Path) -> None:
    """Refuse a base model saved without the head that its configuration calls for."""
    if HEAD not in tensors and not config.tie_word_embeddings:
        raise UnsupportedModelError(
            f"{path} is a base model without its head ({HEAD}), and config.json does not tie it to the "
            "embedding: save the whole model for causal language modelling"
        )


def _equal(left: Iterator[npt.NDArray[np.uint8]], right: Iterator[npt.NDArray[np.uint8]]) -> bool:
    """Whether two tensors hold the same bytes, read piece by piece so that a difference is found early."""
    none = np.zeros(0, dtype=np.uint8)
    return all(np.array_equal(ours, theirs) for ours, theirs in zip_longest(left, right, fillvalue=none))
