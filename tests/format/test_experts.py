"""Experts: gathered from what checkpoints store, stacked in a model file, and read from a GGUF file."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from foreign_gguf import describe
from gguf import GGMLQuantizationType as Kinds
from samples import GOLDEN, write_random_model
from test_model_file import rewrite

from elutq_cli.reference import Transformer
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.errors import CheckpointError, FormatError, UnsupportedModelError
from elutq_formats.expert_names import expert_names, split_expert
from elutq_formats.expert_stack import TensorStack, gather_experts
from elutq_formats.gguf_source import GGUFSource
from elutq_formats.hlq import tensor_bytes
from elutq_formats.model_file import ModelFile
from elutq_formats.stored_weights import open_weights

MIXTURES = "qwen3-moe", "mixtral", "olmoe", "qwen2-moe"


@pytest.mark.parametrize("family", MIXTURES)
def test_a_stack_holds_the_stored_experts_in_their_order(family):
    stored = open_weights(GOLDEN / family)
    with Checkpoint.open(GOLDEN / family) as checkpoint:
        config = checkpoint.config
        layer = next(layer for layer in range(config.num_hidden_layers) if config.has_experts(layer))
        names = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"} if family == "mixtral" else {}
        block = "block_sparse_moe" if family == "mixtral" else "mlp"
        for part in ("gate_proj", "up_proj", "down_proj"):
            stack = f"model.layers.{layer}.mlp.experts.{part}.weight"
            theirs = f"model.layers.{layer}.{block}.experts.{names.get(part, part)}.weight"
            whole = checkpoint.load(stack)
            assert whole.shape == checkpoint.shape(stack) == config.tensor_shapes()[stack]
            for number, name in enumerate(expert_names(theirs, config.n_experts)):
                np.testing.assert_array_equal(whole[number], stored[name].load())
                some = slice(number, number + 1)
                np.testing.assert_array_equal(checkpoint.load(stack, rows=some), whole[some])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda names: names.pop(2), "has no tensor a.experts.2.w1.weight"),
        (lambda names: names.pop(0), "has no tensor a.experts.0.w1.weight"),
        (lambda names: names.append("a.experts.9.w1.weight"), "has no tensor a.experts.4.w1.weight"),
    ],
)
def test_an_expert_that_is_missing_is_named(change, said):
    names = expert_names("a.experts.w1.weight", 4)
    change(names)
    with Checkpoint.open(GOLDEN / "olmoe") as checkpoint:
        tensor = checkpoint._tensors["model.norm.weight"]
        with pytest.raises(CheckpointError, match=said):
            gather_experts(dict.fromkeys(names, tensor), "it")


def test_an_expert_of_another_shape_is_named():
    with Checkpoint.open(GOLDEN / "olmoe") as checkpoint:
        own, other = (checkpoint._tensors[f"model.{name}.weight"] for name in ("norm", "embed_tokens"))
        with pytest.raises(CheckpointError, match=r"tensor e\.experts\.1\.w has shape"):
            gather_experts({"e.experts.0.w": own, "e.experts.1.w": other}, "it")
        assert isinstance(gather_experts({"e.experts.0.w": own}, "it")["e.experts.w"], TensorStack)


@pytest.mark.parametrize("name", ["mlp.experts.w1", "mlp.experts.01.w1", "mlp.experts.-1.w1", "mlp.expert.1.w1"])
def test_a_name_without_a_number_is_no_experts(name):
    assert split_expert(name) is None


def test_too_few_experts_are_too_few(tmp_path):
    folder = shutil.copytree(GOLDEN / "olmoe", tmp_path / "olmoe")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_experts": 7}))
    with pytest.raises(CheckpointError, match=r"has shape \[6, 32, 32\], the configuration says \[7, 32, 32\]"):
        Checkpoint.open(folder)


def test_experts_that_others_have_quantized_are_refused_by_name(tmp_path):
    folder = shutil.copytree(GOLDEN / "mixtral", tmp_path / "mixtral")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(UnsupportedModelError, match="experts that others have quantized are not read"):
        Checkpoint.open(folder)


# ---- model files


def test_an_expert_of_a_stack_has_the_bytes_of_its_matrix_alone(tmp_path):
    write_random_model(tmp_path / "model.gguf", GOLDEN / "qwen2-moe")
    model = ModelFile.open(tmp_path / "model.gguf")
    stack = model.tensors["blk.1.ffn_up_exps.weight"]
    assert (stack.n_experts, stack.rows, stack.columns) == (5, 32, 32)
    assert stack.matrix_bytes == tensor_bytes(32, 32, stack.bits, 32, stack.kind)
    assert stack.n_bytes == 5 * stack.matrix_bytes
    assert stack.n_weights == 5 * 32 * 32
    router, gate = (model.tensors[f"blk.1.ffn_gate_inp{name}.weight"] for name in ("", "_shexp"))
    assert (router.bits, router.dims, gate.bits, gate.dims) == (32, (32, 5), 32, (32,))


DAMAGE = [
    ({"changes": {"olmoe.expert_count": 7}}, r"has shape \[6, 32, 32\], the metadata say \[7, 32, 32\]"),
    ({"changes": {"olmoe.expert_used_count": 7}}, "of 6 experts 7 are used"),
    ({"changes": {"olmoe.expert_used_count": 0}}, "expert_used_count is 0"),
    ({"changes": {"olmoe.expert_used_count": None}}, "it has no olmoe.expert_used_count"),
    ({"changes": {"olmoe.expert_count": None}}, "it has no olmoe.expert_count"),
    ({"changes": {"olmoe.expert_feed_forward_length": 64}}, r"the metadata say \[6, 64, 32\]"),
    ({"changes": {"olmoe.expert_shared_feed_forward_length": 64}}, "shexp.weight is missing"),
    ({"changes": {"olmoe.expert_gating_func": 2}}, "olmoe.expert_gating_func' is not known here"),
    ({"drop_tensors": ["blk.0.ffn_gate_inp.weight"]}, "none of the layers has any of the 6 experts"),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGE)
def test_model_files_whose_experts_contradict_themselves_are_refused(damage, said, tmp_path):
    write_random_model(tmp_path / "model.gguf", GOLDEN / "olmoe")
    with pytest.raises(FormatError, match=said):
        ModelFile.open(rewrite(tmp_path / "model.gguf", tmp_path / "damaged.gguf", **damage))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("expert_used_count", 2),
        ("expert_feed_forward_length", 32),
        ("expert_shared_feed_forward_length", 32),
        ("expert_weights_norm", True),
    ],
)
def test_a_model_file_without_experts_says_nothing_of_them(key, value, tmp_path):
    """As the C runtime has it: of experts all numbers are there, or none."""
    write_random_model(tmp_path / "model.gguf", GOLDEN / "qwen3")
    with pytest.raises(FormatError, match=r"it has no qwen3\.expert_count"):
        ModelFile.open(rewrite(tmp_path / "model.gguf", tmp_path / "other.gguf", changes={f"qwen3.{key}": value}))


# ---- GGUF files


def test_qwen2_with_experts_is_read_from_a_gguf_file(tmp_path):
    """Such a file says nothing of windows in some layers: here all have it, or none."""
    described = describe(GOLDEN / "qwen2-moe")
    del described.metadata["qwen2moe.attention.sliding_window"]
    with Checkpoint.open(GOLDEN / "qwen2-moe") as checkpoint:
        with GGUFSource.open(described.write(tmp_path / "model.gguf")) as source:
            dense = {"sliding_window": None, "sliding_layers": None}
            assert replace(source.config, eos_token_ids=()) == replace(checkpoint.config, **dense, eos_token_ids=())
            for name in checkpoint.names:
                np.testing.assert_array_equal(source.load(name), checkpoint.load(name))
        gate = described.tensors["blk.0.ffn_gate_inp_shexp.weight"]
        described.tensors["blk.0.ffn_gate_inp_shexp.weight"] = gate[None]  # as some converters leave it
        with GGUFSource.open(described.write(tmp_path / "model.gguf")) as source:
            assert source.shape("model.layers.0.mlp.shared_expert_gate.weight") == gate.shape


@pytest.mark.parametrize("family", ["qwen3-moe", "mixtral", "olmoe"])
def test_quantized_experts_are_dequantized_one_by_one(family, tmp_path):
    described = describe(GOLDEN / family).quantized(Kinds.Q8_0)
    with Checkpoint.open(GOLDEN / family) as exact, GGUFSource.open(described.write(tmp_path / "m.gguf")) as source:
        stacks = [name for name in source.names if ".mlp.experts." in name]
        assert stacks
        for name in stacks:
            assert source.dtype(name) == "Q8_0"
            whole = source.load(name)
            np.testing.assert_allclose(whole, exact.load(name), atol=np.abs(whole).max() / 200)
            np.testing.assert_array_equal(source.load(name, rows=slice(1, 3)), whole[1:3])
        assert np.isfinite(Transformer(source).logits(np.arange(8))).all()


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("olmoe", {"olmoe.expert_gating_func": 2}, "expert_gating_func that is no softmax is not supported"),
        ("olmoe", {"olmoe.expert_group_count": 2}, "expert_group_count is not known here"),
        ("olmoe", {"olmoe.expert_used_count": 7}, "of 6 experts 7 are used"),
        ("qwen2", {"qwen2.expert_count": 4}, "mixtures of experts .* are not supported in qwen2"),
        ("qwen3", {"qwen3.expert_used_count": 4}, r"expert_used_count is above 0, but there are no experts"),
    ],
)
def test_experts_of_another_kind_are_refused_by_name(family, changes, said, tmp_path):
    described = describe(GOLDEN / family)
    described.metadata |= changes
    with pytest.raises(CheckpointError, match=said):
        GGUFSource.open(described.write(tmp_path / "model.gguf"))


def test_an_old_file_with_a_tensor_for_each_expert_is_refused_by_name(tmp_path):
    described = describe(GOLDEN / "mixtral")
    for name in [name for name in described.tensors if "_exps." in name]:
        for number, matrix in enumerate(described.tensors.pop(name)):
            described.tensors[name.replace("_exps", f".{number}")] = matrix
    with pytest.raises(UnsupportedModelError, match="an old file with a tensor for each expert is not supported"):
        GGUFSource.open(described.write(tmp_path / "model.gguf"))
