"""GGUF files that hold a vocabulary and nothing else, written with gguf-py, and the golden tokens of tests/data."""

import json

import tokenizers
from gguf import GGUFWriter
from samples import DATA

from elutq_formats.gguf_reader import GGUFReader
from elutq_formats.gguf_tokenizer import read_gguf_tokenizer
from elutq_formats.metadata import Metadata

CHARSMAP = "precompiled_charsmap"


def golden(name):
    """The golden tokens of ``tokenizer.ggml.model``; made by scripts/make_token_golden.py."""
    return json.loads((DATA / "tokens" / f"{name}.json").read_text())


def write_vocabulary(path, metadata):
    """Write metadata; a key without a dot is one of ``tokenizer.ggml``, and one whose value is None is left out."""
    writer = GGUFWriter(path, "llama")
    for name, value in metadata.items():
        key = name if "." in name else f"tokenizer.ggml.{name}"
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif value is not None:
            writer.add_array(key, bytes(value) if key.endswith(CHARSMAP) else value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def read_vocabulary(path, metadata, **arguments):
    """Write metadata, and make a tokenizer of what is read back."""
    reader = GGUFReader(write_vocabulary(path, metadata))
    return read_gguf_tokenizer(Metadata(reader.metadata, reader.value_types, path), **arguments)


def encode(made, text, add_special_tokens=False):
    return tokenizers.Tokenizer.from_str(made.tokenizer_json).encode(text, add_special_tokens=add_special_tokens).ids
