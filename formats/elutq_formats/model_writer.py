"""Writes a model file: the metadata and records first, then the tensors one at a time."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from elutq_formats.atomic import atomic_output
from elutq_formats.config import ModelConfig
from elutq_formats.errors import FormatError
from elutq_formats.gguf import ValueType
from elutq_formats.gguf_writer import GGUFWriter, encode_entry
from elutq_formats.model_file import PROVENANCE_PREFIX
from elutq_formats.model_metadata import CHAT_TEMPLATE, SPECIAL_TOKENS, TOKENIZER, describe_config, describe_sampling
from elutq_formats.names import ROPE_TENSORS, gguf_name
from elutq_formats.origin import Origin
from elutq_formats.sampling_defaults import SamplingDefaults
from elutq_formats.standard_metadata import describe_model, describe_vocabulary
from elutq_formats.tensor_record import TensorRecord, describe_records

TensorSource = tuple[TensorRecord, Callable[[], npt.NDArray[Any]]]
"""A tensor to write: its record, and a function that returns its contents when their turn comes. Contents are the
blocks of an HLQ matrix (uint8, any shape) or the values of a plain tensor (any float dtype, in C order)."""

Provenance = Mapping[str, str | int | float | bool | list[str]]

_CHECKED_AT_ONCE = 1 << 20


def write_model(
    path: Path,
    config: ModelConfig,
    tensors: Iterable[TensorSource],
    *,
    origin: Origin,
    tokenizer_json: str | None,
    chat_template: str | None = None,
    special_tokens: Mapping[str, str] | None = None,
    sampling: SamplingDefaults | None = None,
    provenance: Provenance | None = None,
    force: bool = False,
) -> None:
    """Write a model file, whole or not at all; one tensor is in memory at a time.

    Args:
        path: where to.
        config: of the model; its head counts as tied unless ``output.weight`` is among the tensors.
        tensors: every tensor of the model, in the order they are to have in the file; the divisors of scaled RoPE
            frequencies are added here.
        origin: where the weights come from, and what the model is called.
        tokenizer_json: contents of ``tokenizer.json``.
        chat_template: Jinja source of the chat template.
        special_tokens: how the tokenizer spells special tokens, by name; None: it says nothing about them.
        sampling: how the model's author has tokens drawn.
        provenance: where the file came from, by key without ``elutq.``.
        force: replace a file that is already there.

    Raises:
        ElutqError: a file is there and ``force`` is not set, or the disk refuses.
        FormatError: a tensor holds values that fp16 or the format cannot.
        ValueError: the tensors are not those of the model.
    """
    sources = list(tensors)
    for name, divisors in config.rope_divisors().items():
        sources.append((TensorRecord.of_floats(name, divisors.shape), partial(_itself, divisors)))
    records = [record for record, _ in sources]
    _check_records(config, records)
    with atomic_output(path, force) as temporary, GGUFWriter(temporary) as writer:
        n_weights = sum(record.n_weights for record in records if record.name not in ROPE_TENSORS)
        for entry in (
            *describe_model(origin, n_weights),
            *describe_config(config),
            *describe_sampling(sampling or {}),
            *describe_records(records),
            *describe_vocabulary(tokenizer_json, config.vocab_size, special_tokens),
        ):
            writer.add_metadata(*entry)
        spellings = None if special_tokens is None else json.dumps(dict(special_tokens), ensure_ascii=False)
        for key, text in ((TOKENIZER, tokenizer_json), (CHAT_TEMPLATE, chat_template), (SPECIAL_TOKENS, spellings)):
            if text is not None:
                writer.add_metadata(key, text, ValueType.STRING)
        for key, value in (provenance or {}).items():
            writer.add_metadata(PROVENANCE_PREFIX + key, value, _value_type(value))
        for record in records:
            writer.add_tensor(record.name, record.dims, record.ggml_type)
        writer.write_header()
        for record, contents in sources:
            writer.write_tensor(record.name, _encode(record, contents()))


def texts_bytes(
    n_tokens: int, tokenizer_json: str | None, chat_template: str | None, special_tokens: Mapping[str, str] | None
) -> int:
    """Return what a model's texts take in its file: nearly all of the metadata.

    Args:
        n_tokens: rows of the embedding.
        tokenizer_json: contents of ``tokenizer.json``; they are in the file as they are, and as GGUF's arrays.
        chat_template: Jinja source of the chat template.
        special_tokens: how the tokenizer spells special tokens, by name.
    """
    found = sum(len(text.encode()) for text in (tokenizer_json, chat_template) if text is not None)
    return found + sum(
        len(encode_entry(*entry)) for entry in describe_vocabulary(tokenizer_json, n_tokens, special_tokens)
    )


def _check_records(config: ModelConfig, records: list[TensorRecord]) -> None:
    expected = {gguf_name(name): math.prod(shape) for name, shape in config.tensor_shapes().items()}
    found = {record.name: record.n_weights for record in records if record.name not in ROPE_TENSORS}
    if "output.weight" in found:
        expected["output.weight"] = config.vocab_size * config.hidden_size
    if found != expected or len(records) != len({record.name for record in records}):
        wrong = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
        raise ValueError(f"tensors missing, unknown, repeated or of the wrong size: {sorted(wrong)}")


def _itself(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return values


def _encode(record: TensorRecord, contents: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if record.group_size is not None:
        return contents
    dtype = "<f2" if record.bits == 16 else "<f4"
    with np.errstate(over="ignore"):
        encoded = contents.astype(dtype, copy=False)
    values = encoded.reshape(-1)
    parts = (values[first : first + _CHECKED_AT_ONCE] for first in range(0, values.size, _CHECKED_AT_ONCE))
    if not all(np.isfinite(part).all() for part in parts):
        raise FormatError(
            f"tensor {record.name} holds values that {record.bits} bits cannot: it needs more, or is damaged"
        )
    return encoded


def _value_type(value: object) -> ValueType:
    match value:
        case bool():
            return ValueType.BOOL
        case int():
            return ValueType.INT64
        case float():
            return ValueType.FLOAT64
    return ValueType.STRING
