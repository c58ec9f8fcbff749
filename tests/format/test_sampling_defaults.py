"""The author's sampling: from generation_config.json into a model file, and out of it."""

import json
import math
import shutil

import pytest
from gguf import GGUFReader as PeerReader
from gguf import Keys
from samples import GOLDEN, tensor_sources

from elutq_formats.checkpoint import Checkpoint
from elutq_formats.errors import CheckpointError, FormatError
from elutq_formats.gguf import ValueType
from elutq_formats.metadata import Metadata
from elutq_formats.model_file import ModelFile
from elutq_formats.model_metadata import read_sampling
from elutq_formats.model_writer import write_model
from elutq_formats.origin import Origin
from elutq_formats.sampling_defaults import read_sampling_defaults

QWEN = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.1, "min_p": 0}
OURS = {"temp": 0.7, "top_k": 20, "top_p": 0.8, "repeat_penalty": 1.1, "min_p": 0.0}
X = Origin("x", "x")


def test_values_are_read_under_our_names():
    assert read_sampling_defaults(QWEN) == OURS
    assert read_sampling_defaults({"temperature": 1, "top_k": None, "max_length": 20}) == {"temp": 1.0}
    assert read_sampling_defaults({}) == {}


def test_no_sampling_is_greedy_and_minus_one_keeps_all_tokens():
    assert read_sampling_defaults({"do_sample": False, "temperature": 0.7, "top_p": 0.8}) == {"temp": 0, "top_p": 0.8}
    assert read_sampling_defaults({"top_k": -1}) == read_sampling_defaults({"top_k": 0.0}) == {"top_k": 0}


@pytest.mark.parametrize(
    ("field", "values", "wanted"),
    [
        ("temperature", [-0.1, "0.7", True, math.nan, math.inf, 1e300], "a number from 0"),
        ("top_k", [-2, 1.5, "5", 2**31], "an integer from 0"),
        ("top_p", [0, 1.01, [0.9]], "a number above 0 to 1"),
        ("min_p", [-1, 2], "a number from 0 to 1"),
        ("repetition_penalty", [0, -1, {}], "a number above 0"),
    ],
)
def test_impossible_values_are_refused(field, values, wanted):
    for value in values:
        with pytest.raises(CheckpointError, match=rf"generation_config\.json: {field} must be {wanted}, found"):
            read_sampling_defaults({field: value})


def test_values_travel_in_the_keys_of_llama_cpp(tmp_path):
    folder, path = shutil.copytree(GOLDEN / "smollm-tied", tmp_path / "checkpoint"), tmp_path / "model.gguf"
    (folder / "generation_config.json").write_text(json.dumps(QWEN))
    with Checkpoint.open(folder) as checkpoint:
        sources = tensor_sources(checkpoint)
        write_model(path, checkpoint.config, sources, origin=X, tokenizer_json=None, sampling=checkpoint.sampling)
    assert ModelFile.open(path).sampling == OURS
    reader, keys = PeerReader(path), Keys.General
    peers = (
        keys.SAMPLING_TEMP,
        keys.SAMPLING_TOP_K,
        keys.SAMPLING_TOP_P,
        keys.SAMPLING_PENALTY_REPEAT,
        keys.SAMPLING_MIN_P,
    )
    assert [reader.get_field(key).contents() for key in peers] == pytest.approx(list(OURS.values()))


def test_a_file_may_say_all_tokens_as_other_engines_do():
    metadata = Metadata({"general.sampling.top_k": -1}, {"general.sampling.top_k": ValueType.INT32}, "x.gguf")
    assert read_sampling(metadata) == {"top_k": 0}


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("temp", -1.0, ValueType.FLOAT32),
        ("temp", math.nan, ValueType.FLOAT32),
        ("temp", 1, ValueType.INT32),
        ("top_p", 0.0, ValueType.FLOAT32),
        ("top_k", -5, ValueType.INT32),
        ("top_k", 5, ValueType.UINT32),
        ("penalty_repeat", 0.0, ValueType.FLOAT32),
    ],
)
def test_a_damaged_file_is_refused(key, value, kind):
    name = f"general.sampling.{key}"
    with pytest.raises(FormatError, match=rf"x\.gguf is damaged: general\.sampling\.{key}"):
        read_sampling(Metadata({name: value}, {name: kind}, "x.gguf"))
