"""Shards whose index does not tell all that they hold: the tensors are what the files have, as for transformers."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from samples import GOLDEN

from elutq_formats.checkpoint import Checkpoint
from elutq_formats.config import ModelConfig
from elutq_formats.errors import CheckpointError

LLAMA = GOLDEN / "llama2-gqa-sharded"
SHARDS = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
INDEX = "model.safetensors.index.json"
HEAD = "lm_head.weight"


@pytest.fixture
def stored(rng):
    """Tensors drawn at random, of that model's names and shapes."""
    shapes = ModelConfig.from_huggingface(json.loads((LLAMA / "config.json").read_text())).tensor_shapes()
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


@pytest.fixture
def folder(tmp_path, stored):
    folder = shutil.copytree(LLAMA, tmp_path / "model")
    weight_map = json.loads((LLAMA / INDEX).read_text())["weight_map"]
    for shard in SHARDS:
        save_file({name: stored[name] for name in weight_map if weight_map[name] == shard}, folder / shard)
    return folder


def leave_out(folder, name):
    """Take a tensor out of the index, and leave it in its shard."""
    index = json.loads((folder / INDEX).read_text())
    del index["weight_map"][name]
    (folder / INDEX).write_text(json.dumps(index))


def write_place(folder, name, shard):
    """Have the index say in which shard a tensor is."""
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][name] = shard
    (folder / INDEX).write_text(json.dumps(index))


def add(path, **tensors):
    save_file(load_file(path) | tensors, path)


def refused(folder):
    with pytest.raises(CheckpointError) as error:
        Checkpoint.open(folder)
    return str(error.value)


def test_a_head_that_the_index_leaves_out_is_the_models(folder, stored):
    leave_out(folder, HEAD)
    with Checkpoint.open(folder) as checkpoint:
        assert not checkpoint.config.tie_word_embeddings
        assert checkpoint.notes == ()
        np.testing.assert_array_equal(checkpoint.load(HEAD), stored[HEAD])


def test_a_stranger_that_the_index_leaves_out_is_refused(folder):
    add(folder / SHARDS[0], **{"model.layers.0.self_attn.q_proj.lora_A.weight": np.ones((2, 2), np.float32)})
    assert "holds an adapter beside the model" in refused(folder)


def test_of_a_tensor_in_two_shards_that_which_the_index_names_counts(folder, stored):
    add(folder / SHARDS[0], **{HEAD: -stored[HEAD]})
    add(folder / SHARDS[1], **{HEAD: stored[HEAD]})
    write_place(folder, HEAD, SHARDS[1])
    with Checkpoint.open(folder) as checkpoint:
        np.testing.assert_array_equal(checkpoint.load(HEAD), stored[HEAD])
    leave_out(folder, HEAD)
    assert refused(folder) == (
        f"{folder} is damaged: {SHARDS[0]} and {SHARDS[1]} both hold tensor '{HEAD}', and {INDEX} no place for it"
    )


def test_a_shard_that_the_index_does_not_name_is_not_of_the_model(folder, stored):
    save_file({"stranger": np.ones(3, np.float32)}, folder / "consolidated.safetensors")
    with Checkpoint.open(folder) as checkpoint:
        np.testing.assert_array_equal(checkpoint.load(HEAD), stored[HEAD])


def test_so_it_is_in_pytorchs_format(folder, stored):
    torch = pytest.importorskip("torch", reason="pytorch_model.bin needs torch: pip install 'elutq[torch]'")
    for shard in SHARDS:
        tensors = {name: torch.from_numpy(tensor) for name, tensor in load_file(folder / shard).items()}
        torch.save(tensors, folder / shard.replace("model-", "pytorch_model-").replace(".safetensors", ".bin"))
        (folder / shard).unlink()
    leave_out(folder, HEAD)
    text = (folder / INDEX).read_text().replace("model-0", "pytorch_model-0").replace(".safetensors", ".bin")
    (folder / "pytorch_model.bin.index.json").write_text(text)
    (folder / INDEX).unlink()
    with Checkpoint.open(folder) as checkpoint:
        np.testing.assert_array_equal(checkpoint.load(HEAD), stored[HEAD])
