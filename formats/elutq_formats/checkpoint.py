"""A Hugging Face checkpoint folder: configuration, tokenizer, and weights read one tensor at a time."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from elutq_formats.config import ModelConfig
from elutq_formats.errors import CheckpointError, UnsupportedModelError
from elutq_formats.safetensors_file import ALL_ROWS, DTYPES, Run, SafetensorsFile
from elutq_formats.special_tokens import read_special_tokens, vocabulary_ids

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"

# Old Llama checkpoints store the RoPE frequencies, which follow from the configuration.
_IGNORED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


class Checkpoint:
    """An open checkpoint; a context manager.

    Attributes:
        path: the folder.
        config: its hyper-parameters; the head counts as tied when the checkpoint has none of its own.
        names: every tensor of the model, block by block.
        chat_template: the Jinja source of its chat template, if it has one.
        special_tokens: how its tokenizer spells special tokens, by name; None when it says nothing about them.
    """

    def __init__(
        self,
        path: Path,
        config: ModelConfig,
        files: dict[str, SafetensorsFile],
        special_tokens: Mapping[str, str] | None = None,
    ) -> None:
        """Wrap what ``open`` found; ``files`` maps a tensor's name to the file that holds it."""
        self.path = path
        self.special_tokens = special_tokens
        self._files = files
        self.config = replace(config, tie_word_embeddings=self._head_is_tied(config))
        self._check_tensors()
        self.names = tuple(self.config.tensor_shapes())
        self.chat_template = _read_chat_template(path)

    @classmethod
    def open(cls, path: Path) -> "Checkpoint":
        """Open a checkpoint and check that it is complete.

        Raises:
            UnsupportedModelError: the model needs something that is not implemented.
            CheckpointError: a file is missing, truncated or damaged, or a tensor does not fit the configuration.
        """
        if not path.is_dir():
            raise CheckpointError(f"{path} is not a checkpoint folder")
        config = _read_json(path / "config.json")
        generation_config = _read_optional_json(path / "generation_config.json")
        tokenizer_config = _read_optional_json(path / "tokenizer_config.json")
        special_tokens = read_special_tokens(tokenizer_config, _read_optional_json(path / "special_tokens_map.json"))
        ids: dict[str, int] = {}
        if special_tokens:
            by_spelling = vocabulary_ids(_read_optional_json(path / "tokenizer.json"), special_tokens.values())
            ids = {name: by_spelling[token] for name, token in special_tokens.items() if token in by_spelling}
        model_config = ModelConfig.from_huggingface(config, generation_config, ids)
        return cls(path, model_config, _open_weights(path), special_tokens)

    def identity(self) -> str:
        """Return a hash of the configuration and of the weight files: their headers, sizes and times of last change."""
        digest = hashlib.sha256(repr(self.config).encode())
        for file in sorted(set(self._files.values()), key=lambda file: file.path):
            digest.update(f"{file.path.name!r} {file.identity}\n".encode())
        return digest.hexdigest()

    def close(self) -> None:
        """Forget the files; arrays already loaded stay valid."""
        self._files = {}

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def tokenizer_json(self) -> str:
        """The contents of ``tokenizer.json``.

        Raises:
            CheckpointError: there is none, or it cannot be read.
        """
        path = self.path / "tokenizer.json"
        if not path.exists():
            raise CheckpointError(
                f"{self.path} has no tokenizer.json: write one with transformers' "
                "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
            )
        return _read_text(path)

    def has(self, name: str) -> bool:
        """Whether the model has this tensor."""
        return name in self._files

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self._file(name).shapes[name]

    def load(self, name: str, run: Run = map, rows: slice = ALL_ROWS) -> npt.NDArray[np.float32]:
        """Return a tensor, or some of its rows, in a new float32 array; ``run`` may do so on several threads."""
        return self._file(name).load(name, run, rows)

    def _file(self, name: str) -> SafetensorsFile:
        if name not in self._files:
            raise CheckpointError(f"{self.path} has no tensor {name}")
        return self._files[name]

    def _head_is_tied(self, config: ModelConfig) -> bool:
        """Whether the head is the embedding: no head stored, or declared tied and stored as an equal copy."""
        if _HEAD not in self._files or _EMBEDDING not in self._files:
            return _HEAD not in self._files
        head, embedding = self._files[_HEAD], self._files[_EMBEDDING]
        same_kind = head.dtype(_HEAD) == embedding.dtype(_EMBEDDING)
        return config.tie_word_embeddings and same_kind and _equal(head.pieces(_HEAD), embedding.pieces(_EMBEDDING))

    def _check_tensors(self) -> None:
        expected = self.config.tensor_shapes()
        for name, shape in expected.items():
            if self.shape(name) != shape:
                raise CheckpointError(
                    f"{self.path}: tensor {name} has shape {list(self.shape(name))}, config.json says {list(shape)}"
                )
            if (dtype := self._file(name).dtype(name)) not in DTYPES:
                raise UnsupportedModelError(
                    f"{self.path}: tensor {name} is {dtype!r:.20}: only {', '.join(DTYPES)} are supported"
                )
        for name in self._files.keys() - expected.keys():
            if name != _HEAD and not _IGNORED.fullmatch(name):
                raise UnsupportedModelError(
                    f"{self.path}: tensor {name!r:.80} is not part of a {self.config.model_type} model as config.json "
                    "describes it: leaving it out would change what the model says"
                )
        self._files = {name: self._files[name] for name in expected}


def _open_weights(path: Path) -> dict[str, SafetensorsFile]:
    """Open every weight file; return the file that holds each tensor."""
    single, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if single.exists():
        file = SafetensorsFile(single)
        return dict.fromkeys(file.shapes, file)
    if not index.exists():
        raise CheckpointError(
            f"{path} has neither model.safetensors nor model.safetensors.index.json: convert other formats first"
        )
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{index} is damaged: it has no weight_map from tensors to files")
    shards: dict[str, SafetensorsFile] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise CheckpointError(f"{index} is damaged: {shard!r:.80} is not the name of a safetensors file")
        if not (path / shard).exists():
            raise CheckpointError(f"{path} is incomplete: {shard!r:.80} is missing; download it again")
        shards[shard] = SafetensorsFile(path / shard)
    for name, shard in weight_map.items():
        if name not in shards[shard].shapes:
            raise CheckpointError(f"{path} is damaged: {shard} does not hold tensor {name!r:.80}; download it again")
    return {name: shards[shard] for name, shard in weight_map.items()}


def _equal(left: Iterator[npt.NDArray[np.uint8]], right: Iterator[npt.NDArray[np.uint8]]) -> bool:
    """Whether two tensors hold the same bytes, read piece by piece so that a difference is found early."""
    none = np.zeros(0, dtype=np.uint8)
    return all(np.array_equal(ours, theirs) for ours, theirs in zip_longest(left, right, fillvalue=none))


def _read_chat_template(path: Path) -> str | None:
    """Read ``chat_template.jinja``, or the entry of ``tokenizer_config.json``; of several templates the default one."""
    if (path / "chat_template.jinja").exists():
        return _read_text(path / "chat_template.jinja")
    template = _read_optional_json(path / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[0].get("template") if named else None
    return template if isinstance(template, str) else None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is damaged: it is not UTF-8 text") from error


def _read_optional_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a file that is not there says nothing."""
    return _read_json(path) if path.exists() else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: it is not JSON") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged: it is not a JSON object")
    return value
