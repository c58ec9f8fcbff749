"""Checkpoints in PyTorch's own format: the same as from safetensors, with torch; one line without it."""

import json
import pickle
import shutil
import sys

import numpy as np
import pytest
from conftest import GOLDEN

from elutq_cli.pipeline.compute.backend import native_backend
from elutq_cli.pipeline.recipe import Recipe
from elutq_cli.pipeline.run.quantize import quantize
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.errors import CheckpointError, ElutqError, UnsupportedModelError

LLAMA, TIED = GOLDEN / "llama2-gqa-sharded", GOLDEN / "smollm-tied"
BIN, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch's format needs torch: pip install 'elutq[torch]'")


def without_weights(folder, path):
    """A copy of a checkpoint folder, but for its weights."""
    shutil.copytree(folder, path, ignore=shutil.ignore_patterns("*.safetensors*"))
    return path


def tensors_of(torch, folder, dtype="float32"):
    with Checkpoint.open(folder) as checkpoint:
        return {name: torch.from_numpy(checkpoint.load(name)).to(getattr(torch, dtype)) for name in checkpoint.names}


def refused(folder):
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_torch_one_line_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    folder = without_weights(LLAMA, tmp_path / "model")
    (folder / BIN).write_bytes(b"PK")
    with pytest.raises(
        UnsupportedModelError, match=r"pytorch_model.bin is PyTorch's format, which needs torch: pip inst"
    ):
        Checkpoint.open(folder)
    shutil.copy(TIED / "model.safetensors", folder)
    assert "model.safetensors" not in refused(folder)  # which come first: their shapes are refused


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_tensors_are_those_of_safetensors(dtype, tmp_path, torch):
    folder = without_weights(LLAMA, tmp_path / "model")
    wanted = tensors_of(torch, LLAMA, dtype)
    torch.save(wanted, folder / BIN)
    with Checkpoint.open(folder) as checkpoint, native_backend(2) as backend:
        assert checkpoint.weight_files() == (folder / BIN,)
        for name in checkpoint.names:
            whole = wanted[name].float().numpy()
            np.testing.assert_array_equal(checkpoint.load(name, backend.crew.map), whole)
            np.testing.assert_array_equal(checkpoint.load(name, rows=slice(3, 9)), whole[3:9])


def test_shards_are_read_by_their_index(tmp_path, torch):
    folder = without_weights(LLAMA, tmp_path / "model")
    wanted = tensors_of(torch, LLAMA)
    names = sorted(wanted)
    shards = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for shard, its in shards.items():
        torch.save({name: wanted[name] for name in its}, folder / shard)
    weight_map = {name: shard for shard, its in shards.items() for name in its}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with Checkpoint.open(folder) as checkpoint:
        assert [path.name for path in checkpoint.weight_files()] == list(shards)
        assert all(np.array_equal(checkpoint.load(name), wanted[name].numpy()) for name in names)
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    assert "cannot read" in refused(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "model.safetensors")}))
    assert "'model.safetensors' is not the name of a PyTorch file" in refused(folder)


def test_a_tied_head_that_is_stored_is_the_embedding(tmp_path, torch):
    folder = without_weights(TIED, tmp_path / "model")
    tensors = tensors_of(torch, TIED)
    torch.save(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}, folder / BIN)
    with Checkpoint.open(folder) as checkpoint:
        assert checkpoint.config.tie_word_embeddings
        assert checkpoint.notes == ()
    torch.save(tensors | {"lm_head.weight": 2 * tensors["model.embed_tokens.weight"]}, folder / BIN)
    with Checkpoint.open(folder) as checkpoint:
        assert not checkpoint.config.tie_word_embeddings


def test_the_model_file_is_the_same(tmp_path, torch):
    folder = without_weights(LLAMA, tmp_path / "a" / LLAMA.name)
    torch.save(tensors_of(torch, LLAMA), folder / BIN)
    made = []
    for number, place in enumerate((LLAMA, folder)):
        made.append(tmp_path / f"{number}.gguf")
        with Checkpoint.open(place) as checkpoint, native_backend(1) as backend:
            quantize(checkpoint, made[-1], Recipe(group_size=32), None, backend)
    assert made[0].read_bytes() == made[1].read_bytes()


class Program:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_program_in_a_file_is_not_run(tmp_path, torch):
    folder = without_weights(LLAMA, tmp_path / "model")
    torch.save(tensors_of(torch, LLAMA) | {"x": Program(tmp_path / "made")}, folder / BIN)
    assert "holds more than tensors, which is never loaded: load it with transformers" in refused(folder)
    (folder / BIN).write_bytes(pickle.dumps(Program(tmp_path / "made")))
    assert BIN in refused(folder)
    assert not (tmp_path / "made").exists()


def test_files_that_are_no_checkpoint_are_named(tmp_path, torch):
    folder = without_weights(LLAMA, tmp_path / "model")
    tensors = tensors_of(torch, LLAMA)
    norm = "model.norm.weight"
    for content, said in (
        ({"state_dict": tensors}, "does not hold tensors by name, and nothing else"),
        (list(tensors.values()), "does not hold tensors by name, and nothing else"),
        (tensors | {norm: tensors[norm].to(torch.int8)}, "tensor model.norm.weight is 'I8': only F32, F16, BF16 are"),
        (tensors | {norm: tensors[norm].to_sparse()}, "tensor model.norm.weight is 'torch.sparse_coo': only F32"),
        (tensors | {norm: tensors[norm][1:]}, "tensor model.norm.weight has shape [63], the configuration says [64]"),
        ({name: tensors[name] for name in tensors if name != norm}, "has no tensor model.norm.weight"),
    ):
        torch.save(content, folder / BIN)
        assert said in refused(folder)
    torch.save(tensors, folder / BIN)
    whole = (folder / BIN).read_bytes()
    for content in (b"", whole[:1000], whole[:-100], b"\x80" + whole):
        (folder / BIN).write_bytes(content)
        assert "is damaged, or of an old format" in refused(folder)
    (folder / BIN).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "is a Git LFS pointer" in refused(folder)


def test_a_file_that_changes_is_noticed(tmp_path, torch):
    folder = without_weights(LLAMA, tmp_path / "model")
    torch.save(tensors_of(torch, LLAMA), folder / BIN)
    with Checkpoint.open(folder) as checkpoint:
        before = checkpoint.identity()
        assert checkpoint.package_bytes() > 1e8
        torch.save(tensors_of(torch, LLAMA), folder / "new.bin")
        (folder / "new.bin").replace(folder / BIN)
        with pytest.raises(ElutqError, match="changed while it was being read: start again"):
            checkpoint.load("model.norm.weight")
    with Checkpoint.open(folder) as checkpoint:
        assert checkpoint.identity() != before
