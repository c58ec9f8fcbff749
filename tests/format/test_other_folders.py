"""What is given in the place of a checkpoint or of its files is said by name; what differs only in names is taken."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from samples import GOLDEN

from elutq_formats.checkpoint import Checkpoint
from elutq_formats.errors import CheckpointError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22\nsize 1234567\n"
UNTIED, TIED = GOLDEN / "llama-linear-rope", GOLDEN / "llama32-tied-head-dim"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(UNTIED, tmp_path / "model")


def refusal(path):
    with pytest.raises(CheckpointError) as refused:
        Checkpoint.open(path)
    assert str(refused.value).isprintable()
    assert str(path) in str(refused.value)
    return str(refused.value)


def rename(folder, source, new_name):
    """Write a checkpoint's tensors in float32 under other names."""
    with Checkpoint.open(source) as checkpoint:
        tensors = {new_name(name): checkpoint.load(name) for name in checkpoint.names}
    shutil.copytree(source, folder)
    save_file(tensors, folder / "model.safetensors")
    return folder


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
)
def test_git_lfs_pointers_are_named_as_such(folder, name):
    (folder / name).write_bytes(POINTER)
    with pytest.raises(CheckpointError, match=rf"{name} is a Git LFS pointer, not the file itself: run git lfs pull"):
        _ = Checkpoint.open(folder).tokenizer_json


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (POINTER, "is a Git LFS pointer"),
        (b"<!DOCTYPE html>", "is damaged: the tokenizer cannot be read"),
        (b"{}", "is damaged: the tokenizer cannot be read"),
        (b"\xff\xfe{}", "is damaged: it is not UTF-8"),
    ],
)
def test_a_tokenizer_that_is_none_is_refused(folder, contents, message):
    (folder / "tokenizer.json").write_bytes(contents)
    with Checkpoint.open(folder) as checkpoint, pytest.raises(CheckpointError, match=rf"tokenizer\.json {message}"):
        checkpoint.tokenizer()


def test_an_index_or_a_shard_that_is_a_git_lfs_pointer(tmp_path):
    for name in ("model.safetensors.index.json", "model-00002-of-00002.safetensors"):
        folder = shutil.copytree(GOLDEN / "llama2-gqa-sharded", tmp_path / name)
        (folder / name).write_bytes(POINTER)
        assert f"{name} is a Git LFS pointer" in refusal(folder)


@pytest.mark.parametrize(
    ("prefix", "head"),
    [
        ("", "lm_head"),
        ("language_model.model.", "language_model.lm_head"),
        ("model.language_model.", "lm_head"),
        ("base_model.model.model.", "base_model.model.lm_head"),
        ("_orig_mod.model.", "_orig_mod.lm_head"),
    ],
)
def test_a_decoder_under_another_prefix_is_the_same_model(tmp_path, prefix, head):
    def new_name(name):
        return f"{head}.weight" if name == "lm_head.weight" else prefix + name.removeprefix("model.")

    with Checkpoint.open(rename(tmp_path / "other", UNTIED, new_name)) as other, Checkpoint.open(UNTIED) as original:
        assert other.names == original.names
        assert other.config == original.config
        assert all((other.load(name) == original.load(name)).all() for name in original.names)
        assert any(f"begin with {prefix!r}, not 'model.'" in note for note in other.notes)
        assert original.notes == ()


def test_a_base_model_is_taken_where_its_head_is_the_embedding_and_refused_where_it_lacks_one(tmp_path):
    with Checkpoint.open(rename(tmp_path / "tied", TIED, lambda name: name.removeprefix("model."))) as checkpoint:
        assert checkpoint.config.tie_word_embeddings
    folder = rename(tmp_path / "untied", UNTIED, lambda name: name.removeprefix("model."))
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors")
    assert "is a base model without its head (lm_head.weight)" in refusal(folder)


def test_what_stands_beside_a_prefixed_decoder_is_refused(tmp_path):
    folder = rename(tmp_path / "vision", TIED, lambda name: "language_model." + name)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"vision_tower.patch.weight": np.ones(4, np.float32)}, folder / "model.safetensors")
    assert "'vision_tower.patch.weight' is not part of a llama model" in refusal(folder)
    twice = tensors | {"model.norm.weight": tensors["language_model.model.norm.weight"]}
    save_file(twice, folder / "model.safetensors")
    assert "is not part of a llama model" in refusal(folder)


def test_adapters_are_to_be_merged_first(folder, tmp_path):
    with Checkpoint.open(UNTIED) as checkpoint:
        tensors = {f"base_model.model.{name}": checkpoint.load(name) for name in checkpoint.names}
    tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"] = np.ones((4, 4), np.float32)
    save_file(tensors, folder / "model.safetensors")
    assert "holds an adapter beside the model" in refusal(folder)

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/base"}))
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    assert "is a LoRA adapter of 'someone/base': merge it into its base model first" in refusal(adapter)
    shutil.copytree(UNTIED, adapter, dirs_exist_ok=True)
    assert "is a LoRA adapter" in refusal(adapter)
    (adapter / "adapter_config.json").write_text("{}")
    assert "is a LoRA adapter: merge" in refusal(adapter)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "it is empty"),
        (["README.md"], "it has neither model.safetensors nor model.safetensors.index.json"),
        (
            ["config.json", "a.gguf", "b.gguf"],
            "'a.gguf' (and 1 more) is GGUF: say which (--gguf-file), or give the file itself",
        ),
        (["config.json", "pytorch_model-1.bin", "README.md"], "'pytorch_model-1.bin' is PyTorch's format"),
        (["params.json", "consolidated.00.pth"], "'consolidated.00.pth' is PyTorch's format"),
        (["config.json", "tf_model.h5"], "'tf_model.h5' is TensorFlow's format"),
        (["params.json", "consolidated.safetensors"], "'consolidated.safetensors' belongs to neither"),
        (["config.json", "model-00001-of-00002.safetensors"], "'model-00001-of-00002.safetensors' belongs to neither"),
        (["model.safetensors"], "it has weights, but no config.json"),
        (["final/config.json", "final/model.safetensors"], "it has one in 'final': give that"),
        (["snapshots/0ab1/config.json", "refs/main"], "it has one in 'snapshots/0ab1': give that"),
    ],
)
def test_a_folder_that_is_no_checkpoint_is_said_by_what_it_holds(tmp_path, names, message):
    folder = tmp_path / "given"
    folder.mkdir()
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    assert f"is not a checkpoint: {message}" in refusal(folder)


def test_a_file_that_is_given_for_its_folder_is_said_by_what_it_is(folder, tmp_path):
    for name, message in [
        ("model.safetensors", f"but one of its files: give {folder}, with config.json"),
        ("model.gguf", "'model.gguf' is GGUF"),
        ("pytorch_model.bin", "'pytorch_model.bin' is PyTorch's format"),
        ("config.json", "but a file"),
    ]:
        (folder / name).touch()
        assert f"is not a checkpoint folder{'' if ' is ' not in message else ':'} {message}" in refusal(folder / name)
    assert "there is nothing of that name" in refusal(tmp_path / "absent")


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_a_left_over_quantization_config_is_passed_over_with_a_note(folder, key):
    change_config(folder, **{key: {"quant_method": "fp8"}})
    with Checkpoint.open(folder) as checkpoint:
        assert checkpoint.notes == ("config.json names a quantization ('fp8'), but no tensor is quantized",)
        assert checkpoint.load(checkpoint.names[0]).size


@pytest.mark.parametrize(
    ("method", "change"),
    [
        ("hqq", lambda tensors: tensors | {"model.layers.0.mlp.up_proj.W_q": np.ones((4, 4), np.int32)}),
        ("fp8", lambda tensors: tensors | {"model.layers.0.mlp.up_proj.weight_scale_inv": np.ones(1, np.float32)}),
        ("bitsandbytes", lambda tensors: tensors | {"model.layers.0.mlp.up_proj.weight": np.ones((4, 1), np.uint8)}),
        ("aqlm", lambda tensors: {name: values for name, values in tensors.items() if "up_proj" not in name}),
    ],
)
def test_quantized_tensors_are_refused_by_their_method(tmp_path, method, change):
    folder = rename(tmp_path / "model", UNTIED, lambda name: name)
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")
    change_config(folder, quantization_config={"quant_method": method})
    with pytest.raises(
        CheckpointError, match=rf"the checkpoint is already quantized by '{method}', .*: use the original"
    ):
        Checkpoint.open(folder)


def test_a_single_weight_file_comes_before_an_index_and_shards_have_any_name(tmp_path):
    folder = shutil.copytree(GOLDEN / "llama2-gqa-sharded", tmp_path / "model")
    index = folder / "model.safetensors.index.json"
    for number in (1, 2):
        old, new = f"model-0000{number}-of-00002.safetensors", f"weights.{number}.safetensors"
        (folder / old).rename(folder / new)
        index.write_text(index.read_text().replace(old, new))
    (folder / "model-extra.safetensors").write_bytes(b"not of this model")
    with Checkpoint.open(folder) as checkpoint:
        tensors = {name: checkpoint.load(name) for name in checkpoint.names}
    save_file(tensors, folder / "model.safetensors")
    index.write_text("{}")
    with Checkpoint.open(folder) as checkpoint:
        assert (checkpoint.load("model.norm.weight") == tensors["model.norm.weight"]).all()
