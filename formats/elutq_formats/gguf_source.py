"""A GGUF file that other tools made, as a source of weights: one file, or the parts of a split one."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from elutq_formats.config import ModelConfig
from elutq_formats.errors import CheckpointError, FormatError, UnsupportedModelError
from elutq_formats.gguf import GGML_TYPES, TensorInfo
from elutq_formats.gguf_config import read_architecture, read_gguf_config, reader_of
from elutq_formats.gguf_keys import Keys
from elutq_formats.gguf_matrix import gguf_tensor
from elutq_formats.gguf_parts import open_parts
from elutq_formats.gguf_reader import GGUFReader
from elutq_formats.gguf_tokenizer import GGUFTokenizer, read_gguf_tokenizer
from elutq_formats.gguf_weights import GGUFWeights, unpermuted
from elutq_formats.metadata import Metadata
from elutq_formats.model_metadata import read_sampling
from elutq_formats.names import ROPE_TENSORS, TOKEN_EMBEDDING, huggingface_name
from elutq_formats.origin import BaseModel, Origin, find_snapshot
from elutq_formats.part import arrange
from elutq_formats.sampling_defaults import SamplingDefaults
from elutq_formats.source import ModelSource
from elutq_formats.stored_weights import Tensor
from elutq_formats.tensor_record import HLQ_VERSION_KEY

COARSE_BITS = 5.0
"""A file with no more bits a weight than this, over its blocks' matrices, is one of 4 bits or less: Q4_1 has 5, with
its scales, and Q4_K_M 4.9."""


BASE_MODELS, MOST_BASE_MODELS = "general.base_model.count", 100


class GGUFSource(ModelSource):
    """An open GGUF file: see ``ModelSource``."""

    def __init__(
        self,
        path: Path,
        config: ModelConfig,
        tensors: Mapping[str, Tensor],
        tokenizer: GGUFTokenizer,
        sampling: SamplingDefaults,
        origin: Origin,
        coarseness: str | None,
    ) -> None:
        """Check what ``open`` found; ``tensors`` by the model's names."""
        super().__init__(path, config, tensors)
        self._tokenizer_json = tokenizer.tokenizer_json
        self._origin = origin
        self.chat_template = tokenizer.chat_template
        self.chat_template_place = self.tokenizer_place = path
        self.special_tokens = tokenizer.special_tokens
        self.sampling = sampling
        self.notes = tokenizer.notes
        self.coarseness = coarseness

    @classmethod
    def open(cls, path: Path) -> "GGUFSource":
        """Open a file, or the first part of a split one, and check that it is complete.

        Raises:
            UnsupportedModelError: the model needs something that is not implemented.
            CheckpointError: the file, a part or a tensor is missing, damaged, or does not fit the metadata.
        """
        try:
            return cls._of(path, open_parts(path))
        except UnsupportedModelError as error:
            raise UnsupportedModelError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
        except FormatError as error:
            raise CheckpointError(str(error)) from error

    @classmethod
    def _of(cls, path: Path, readers: Sequence[GGUFReader]) -> "GGUFSource":
        metadata = Metadata(readers[0].metadata, readers[0].value_types, path)
        if HLQ_VERSION_KEY in metadata:
            raise UnsupportedModelError("it is a model file of elutq already: elutq run runs it")
        infos = {name: info for reader in readers for name, info in reader.tensors.items()}
        rows = infos[TOKEN_EMBEDDING].dims[-1] if TOKEN_EMBEDDING in infos else None
        architecture = read_architecture(metadata)
        tokenizer = read_gguf_tokenizer(metadata, rows)
        divisors = _read_divisors(readers)
        config = read_gguf_config(metadata, infos, divisors, tokenizer.bos_token_id, tokenizer.eos_token_ids)
        how = reader_of(architecture)
        order = partial(_row_order, config, how.permuted)
        tensors: dict[str, Tensor] = {}
        for reader in readers:
            names = {name: _model_name(name) for name in reader.tensors if name not in ROPE_TENSORS}
            weights = GGUFWeights(reader, names, order)
            tensors |= {name: gguf_tensor(weights, name) for name in weights.shapes}
        tensors = arrange(tensors, how.parts(Keys(metadata, architecture), config), path)
        origin = _read_origin(metadata, path)
        return cls(path, config, tensors, tokenizer, read_sampling(metadata), origin, _coarseness(infos))

    @property
    def tokenizer_json(self) -> str:
        """A ``tokenizer.json`` made of the file's own vocabulary."""
        return self._tokenizer_json

    def origin(self) -> Origin:
        """Return what the file says of its model."""
        return self._origin


def _read_origin(metadata: Metadata, path: Path) -> Origin:
    def text(key: str) -> str | None:
        return (metadata.string(key) or None) if key in metadata else None

    snapshot = find_snapshot(path.absolute())
    source, revision = (f"{snapshot[0]}:{snapshot[2]}", snapshot[1]) if snapshot else (path.name, None)
    count = metadata.integer(BASE_MODELS, minimum=0) if BASE_MODELS in metadata else 0
    bases = (f"general.base_model.{number}" for number in range(min(count, MOST_BASE_MODELS)))
    return Origin(
        source,
        text("general.name") or path.stem,
        revision,
        text("general.license"),
        text("general.basename"),
        text("general.size_label"),
        tuple(
            BaseModel(name, text(f"{base}.organization"), text(f"{base}.repo_url"))
            for base in bases
            if (name := text(f"{base}.name")) is not None
        ),
    )


def _model_name(name: str) -> str:
    """Return the model's name of a tensor; one that no supported model has keeps its own, to be refused by it."""
    try:
        return huggingface_name(name)
    except FormatError:
        return name


def _read_divisors(readers: Sequence[GGUFReader]) -> dict[str, npt.NDArray[np.float32]]:
    found = {}
    for reader in readers:
        for name in ROPE_TENSORS:
            if (info := reader.tensors.get(name)) is None:
                continue
            if GGML_TYPES[info.ggml_type].name != "F32" or len(info.dims) != 1:
                raise FormatError(f"{reader.path} is damaged: {name} is not a vector of F32")
            found[name] = np.array(reader.data(name).view("<f4"), dtype=np.float32)
    return found


def _row_order(config: ModelConfig, permuted: bool, name: str, n_rows: int) -> npt.NDArray[np.intp] | None:
    """Return where the rows of a tensor are stored, where they are not in the model's order: see ``unpermuted``."""
    if not permuted:
        return None
    for projection, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
        if f".self_attn.{projection}." in name:
            return unpermuted(heads, n_rows)
    return None


def _coarseness(infos: Mapping[str, TensorInfo]) -> str | None:
    """Return how few bits weights have, to begin a line with: their mean over the matrices of the blocks."""
    matrices = [info for name, info in infos.items() if name.startswith("blk.") and len(info.dims) > 1]
    n_weights = sum(math.prod(info.dims) for info in matrices)
    bits = 8 * sum(info.n_bytes for info in matrices) / max(1, n_weights)
    if bits > COARSE_BITS:
        return None
    kinds = sorted({GGML_TYPES[info.ggml_type].name for info in matrices})
    return f"its weights have {bits:.2f} bits already ({', '.join(kinds)})"
