"""Repositories with weights in PyTorch's own format, against a stand-in for the hub on loopback."""

import io
import json
import sys
from pathlib import Path

import pytest
from conftest import GOLDEN
from hub_server import serving, use_here

import elutq
from elutq_cli import hub_headers
from elutq_cli.hub_sources import find_checkpoint, open_headers
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.errors import ElutqError, UnsupportedModelError
from elutq_formats.model_file import ModelFile

LLAMA = GOLDEN / "llama2-gqa-sharded"
TINY = Path("someone/tiny")
BIN, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
SHARDS = {"pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"}
RECIPE = elutq.Recipe(group_size=32)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A repository of a checkpoint's small files, without weights."""
    files = {path.name: path.read_bytes() for path in LLAMA.iterdir() if "safetensors" not in path.name}
    with serving(files) as server:
        use_here(server, tmp_path, monkeypatch)
        yield server


@pytest.fixture
def save():
    """Returns a function that gives a file of these tensors of the checkpoint, as torch writes it."""
    torch = pytest.importorskip("torch", reason="PyTorch's format needs torch: pip install 'elutq[torch]'")

    def pack(names=None):
        with Checkpoint.open(LLAMA) as checkpoint:
            tensors = {name: torch.from_numpy(checkpoint.load(name)).half() for name in names or checkpoint.names}
        torch.save(tensors, file := io.BytesIO())
        return file.getvalue()

    return pack


def put_shards(hub, save):
    with Checkpoint.open(LLAMA) as checkpoint:
        names = checkpoint.names
    parts = dict(zip(sorted(SHARDS), (names[::2], names[1::2]), strict=True))
    hub.files |= {shard: save(part) for shard, part in parts.items()}
    weight_map = {name: shard for shard, part in parts.items() for name in part}
    hub.files[INDEX] = json.dumps({"weight_map": weight_map}).encode()


def weights_asked_for(hub):
    return {name for name in hub.downloads() if name.endswith(".bin")}


def test_without_torch_one_line_says_what_to_do_and_nothing_is_downloaded(hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    hub.files[BIN] = b"PK"
    with pytest.raises(
        UnsupportedModelError, match=r"^someone/tiny/pytorch_model\.bin is .* pip install 'elutq\[torch"
    ):
        elutq.quantize(TINY, "out.gguf", RECIPE, threads=1)
    assert weights_asked_for(hub) == set()


@pytest.mark.parametrize("is_sharded", [False, True], ids=["single", "sharded"])
def test_it_becomes_the_model_file_that_the_folder_becomes(is_sharded, hub, save, tmp_path):
    hub.files |= {} if is_sharded else {BIN: save()}
    if is_sharded:
        put_shards(hub, save)
    elutq.quantize(TINY, tmp_path / "hub.gguf", RECIPE, threads=1)
    assert weights_asked_for(hub) == (SHARDS if is_sharded else {BIN})
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, contents in hub.files.items():
        (folder / name).write_bytes(contents)
    elutq.quantize(folder, tmp_path / "folder.gguf", RECIPE, threads=1)
    there, here = (ModelFile.open(tmp_path / f"{name}.gguf") for name in ("hub", "folder"))
    assert there.provenance["source"] == "someone/tiny"
    with Checkpoint.open(folder) as checkpoint:
        assert all((there.load(name) == here.load(name)).all() for name in checkpoint.names)
    hub.requested.clear()
    assert find_checkpoint(TINY, offline=True) == find_checkpoint(TINY)
    assert weights_asked_for(hub) == set()


def test_both_ends_alone_say_what_the_file_holds(hub, save, tmp_path, monkeypatch):
    hub.files[BIN] = save()
    monkeypatch.setattr(hub_headers, "END_BYTES", 1 << 14)
    assert len(hub.files[BIN]) > 3 << 14
    with open_headers(TINY) as remote:
        assert weights_asked_for(hub) == set()
        assert hub.headers_read() == [BIN, BIN]
        with Checkpoint.open(find_checkpoint(TINY)) as here:
            assert {name: remote.shape(name) for name in remote.names} == {
                name: here.shape(name) for name in here.names
            }
            assert remote.package_bytes() == here.package_bytes() > 0
        with pytest.raises(ElutqError, match="has not been downloaded"):
            remote.load("lm_head.weight")


def test_what_is_of_no_use_is_refused_before_it_is_downloaded(hub, save, tmp_path):
    def refused(message):
        with pytest.raises(ElutqError, match=message):
            find_checkpoint(TINY, check=lambda source: None)
        assert weights_asked_for(hub) == set()

    hub.files[BIN] = b"<html>" * 99
    refused(r"^someone/tiny/pytorch_model\.bin is damaged")
    with Checkpoint.open(LLAMA) as checkpoint:
        hub.files[BIN] = save(checkpoint.names[1:])
    refused("has no tensor model.embed_tokens.weight")


def test_safetensors_come_first(hub):
    hub.files |= {path.name: path.read_bytes() for path in LLAMA.glob("*.safetensors*")} | {BIN: b"PK"}
    folder = find_checkpoint(TINY)
    assert not (folder / BIN).exists()
    assert len(list(folder.glob("*.safetensors"))) == 2
