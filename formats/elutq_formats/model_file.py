"""A finished model file: a GGUF container whose matrices are HLQ records or fp16, opened and checked as a whole."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from elutq_formats.constants import GGUF_ALIGNMENT, HLQ_VERSION
from elutq_formats.errors import FormatError
from elutq_formats.gguf_reader import GGUFReader
from elutq_formats.hlq import HLQTensor, unpack
from elutq_formats.metadata import Metadata
from elutq_formats.model_metadata import (
    CHAT_TEMPLATE,
    EOS_TOKEN_IDS,
    MODEL_TYPE,
    ROPE_SCALING,
    SPECIAL_TOKENS,
    TOKENIZER,
    read_config,
    read_sampling,
    read_special_tokens,
)
from elutq_formats.names import ROPE_TENSORS, gguf_name
from elutq_formats.safetensors_file import ALL_ROWS
from elutq_formats.tensor_record import HLQ_VERSION_KEY, VECTOR_BITS, TensorRecord, read_records
from elutq_formats.tokenizer import Tokenizer

VOCABULARY_PREFIX = "tokenizer.ggml."
"""Of a vocabulary for other tools; ours is ``TOKENIZER``."""

PROVENANCE_PREFIX = "elutq."
NOT_PROVENANCE = (MODEL_TYPE, ROPE_SCALING, EOS_TOKEN_IDS, SPECIAL_TOKENS)


class ModelFile:
    """An open model file, mapped for as long as this object or an array it handed out lives.

    Attributes:
        path: where it is.
        name: what the model is called.
        config: its hyper-parameters; the head counts as tied when the file has none of its own.
        tensors: every tensor by its name in the file.
        chat_template: the Jinja source of its chat template, if it has one.
        special_tokens: how the tokenizer spells special tokens, by name; None when the file says nothing about them.
        sampling: how the model's author has tokens drawn, by the names of our options.
        provenance: where the file came from, by key without ``elutq.``.
        size_bytes: size of the file.
    """

    def __init__(self, reader: GGUFReader) -> None:
        """Check a container that claims to be a model file.

        Raises:
            FormatError: it is not one, or contradicts itself.
        """
        self._reader = reader
        self._metadata = Metadata(reader.metadata, reader.value_types, reader.path)
        if HLQ_VERSION_KEY not in self._metadata:
            raise FormatError(f"{reader.path} is a GGUF file, but not one of elutq: elutq quantize makes one of it")
        if (version := self._metadata.integer(HLQ_VERSION_KEY)) > HLQ_VERSION:
            raise FormatError(
                f"{reader.path} has HLQ version {version}: this elutq reads 1 to {HLQ_VERSION}; upgrade elutq"
            )
        if reader.alignment != GGUF_ALIGNMENT:
            self._metadata.refuse(f"its alignment is {reader.alignment}, not {GGUF_ALIGNMENT}")
        self.path = reader.path
        self.size_bytes = reader.size_bytes
        self.config = read_config(self._metadata, reader.tensors)
        self.tensors = read_records(self._metadata, reader.tensors)
        self._check_model()
        self.name = self._metadata.string("general.name") if "general.name" in self._metadata else reader.path.stem
        self.chat_template = self._metadata.string(CHAT_TEMPLATE) if CHAT_TEMPLATE in self._metadata else None
        self.special_tokens = read_special_tokens(self._metadata)
        self.sampling = read_sampling(self._metadata)
        self.provenance = {
            key.removeprefix(PROVENANCE_PREFIX): value
            for key, value in reader.metadata.items()
            if key.startswith(PROVENANCE_PREFIX) and key not in NOT_PROVENANCE
        }

    @classmethod
    def open(cls, path: Path) -> "ModelFile":
        """Open a model file and validate everything but the values of its matrices.

        Raises:
            FormatError: the file cannot be read, is damaged, or is not a model file of elutq.
        """
        return cls(GGUFReader(path, without=VOCABULARY_PREFIX))

    @property
    def tokenizer_json(self) -> str:
        """The contents of the model's ``tokenizer.json``.

        Raises:
            FormatError: the file has none.
        """
        if TOKENIZER not in self._metadata:
            raise FormatError(
                f"{self.path} has no tokenizer, so it takes no text: elutq bench can time it, elutq quantize makes one"
            )
        return self._metadata.string(TOKENIZER)

    def tokenizer(self) -> Tokenizer:
        """Return the model's tokenizer.

        Raises:
            FormatError: the file has none, or it cannot be read.
        """
        return Tokenizer.from_json(self.tokenizer_json, self.config, self.special_tokens)

    def has(self, name: str) -> bool:
        """Whether the model has this tensor, by its Hugging Face name."""
        return gguf_name(name) in self.tensors

    def load(self, name: str, *, rows: slice = ALL_ROWS) -> npt.NDArray[np.float32]:
        """Return a tensor, by its Hugging Face name, or part of its first axis, in a new float32 array.

        Raises:
            FormatError: the tensor is not there, or holds values that no model has.
        """
        record = self._record(gguf_name(name))
        if record.group_size is not None:
            if record.n_experts is None:
                return self.hlq(record.name).dequantize()[rows]
            return np.stack([self.hlq(record.name, e).dequantize() for e in range(record.n_experts)[rows]])
        stored = self._reader.data(record.name)
        if record.bits == VECTOR_BITS:
            return np.array(stored.view("<f4"), dtype=np.float32).reshape(record.shape)[rows]
        matrix = np.array(stored.view("<f2"), dtype=np.float32).reshape(record.shape)[rows]
        if not np.isfinite(matrix).all():
            raise FormatError(f"{self.path}: tensor {record.name} holds a value that is not a finite number")
        return matrix

    def hlq(self, name: str, expert: int = 0) -> HLQTensor:
        """Return a quantized matrix, by its name in the file; of a stack that of an expert.

        Raises:
            FormatError: the tensor is not there or not HLQ, or holds impossible scales.
        """
        record = self._record(name)
        if record.group_size is None:
            raise FormatError(f"{self.path}: tensor {name} is not an HLQ matrix")
        try:
            own = slice(expert * record.matrix_bytes, (expert + 1) * record.matrix_bytes)
            stored = self._reader.data(name)[own]
            return unpack(stored, record.rows, record.columns, record.bits, record.group_size, record.kind)
        except FormatError as error:
            raise FormatError(f"{self.path}: tensor {name}: {error}") from error

    def fingerprint(self) -> bytes:
        """Return 32 bytes that tell this file from every other one, without reading all of it."""
        return self._reader.fingerprint()

    def bits_per_weight(self) -> float:
        """Return the mean over every tensor of the model, norms and biases included."""
        records = [record for record in self.tensors.values() if record.name not in ROPE_TENSORS]
        return 8 * sum(record.n_bytes for record in records) / sum(record.n_weights for record in records)

    def block_bits_per_weight(self) -> float:
        """Return the mean over the blocks' matrices, which is what papers quote."""
        records = [record for record in self.tensors.values() if record.name.startswith("blk.") and record.bits <= 16]
        return 8 * sum(record.n_bytes for record in records) / sum(record.n_weights for record in records)

    def _record(self, name: str) -> TensorRecord:
        if name not in self.tensors:
            raise FormatError(f"{self.path} has no tensor {name}")
        return self.tensors[name]

    def _check_model(self) -> None:
        """Check that the tensors are those of the configuration, each of its shape."""
        expected = {gguf_name(name): shape for name, shape in self.config.tensor_shapes().items()}
        divisors = self.config.rope_divisors()
        plain = {gguf_name(name) for name in self.config.float_names()} | divisors.keys()
        expected |= {name: values.shape for name, values in divisors.items()}
        for name, shape in expected.items():
            if name not in self.tensors:
                self._metadata.refuse(f"tensor {name} is missing")
            record = self.tensors[name]
            if record.shape != shape:
                self._metadata.refuse(f"tensor {name} has shape {list(record.shape)}, the metadata say {list(shape)}")
            if (record.bits == VECTOR_BITS) != (name in plain):
                self._metadata.refuse(f"tensor {name} has {record.bits} bits")
            if record.bits == VECTOR_BITS and not np.isfinite(self._reader.data(name).view("<f4")).all():
                self._metadata.refuse(f"tensor {name} holds a value that is not a finite number")
        if unknown := self.tensors.keys() - expected.keys():
            self._metadata.refuse(f"tensor {min(unknown)} is not part of the model that the metadata describe")
        for name, values in divisors.items():
            if not np.allclose(self._reader.data(name).view("<f4"), values, rtol=1e-5, atol=0):
                self._metadata.refuse(f"{name} differs from what {ROPE_SCALING} says")
