"""GGUF files that are hostile, damaged or of a model that cannot be run: one line each, before a weight is read."""

import os
import struct

import numpy as np
import pytest
from conftest import GOLDEN
from foreign_gguf import describe
from gguf import GGMLQuantizationType, GGUFValueType

from elutq_cli.pipeline.compute.backend import native_backend
from elutq_cli.pipeline.stages.checked_weights import CheckedWeights
from elutq_formats.errors import CheckpointError, ElutqError, FormatError
from elutq_formats.gguf_source import GGUFSource
from elutq_formats.model_file import ModelFile
from elutq_formats.open_source import open_source
from elutq_formats.rope import RopeScaling

LLAMA, LLAMA31, QWEN3 = GOLDEN / "llama2-gqa-sharded", GOLDEN / "llama31-rope-scaling", GOLDEN / "qwen3"

U16, U64, I32, F32 = GGUFValueType.UINT16, GGUFValueType.UINT64, GGUFValueType.INT32, GGUFValueType.FLOAT32


def one_line(path):
    """What opening says."""
    with pytest.raises(CheckpointError) as caught:
        open_source(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path.parent) in text
    assert len(text.replace(str(path.parent), "")) < 600  # the longest lists the pre-tokenizers
    return text


# ---- metadata: key, value (None: without it), what is said

METADATA = [
    ("general.architecture", "gpt2", "architecture 'gpt2' is not supported: exaone4, gemma"),
    ("general.architecture", "elutq\x00", "architecture 'elutq\\x00' is not supported"),
    ("llama.expert_count", 8, "none of the layers has any of the 8 experts"),
    ("llama.block_count", None, "it has no llama.block_count"),
    ("llama.block_count", 0, "llama.block_count is 0, not an integer from 1"),
    ("llama.block_count", 3, "has no tensor model.layers.2.self_attn.q_proj.weight"),
    ("llama.block_count", 1, "tensor 'model.layers.1.input_layernorm.weight' is not part"),
    ("llama.block_count", 1 << 20, "num_hidden_layers 1048576 is more than 1024"),
    ("llama.block_count", (2, U64), "llama.block_count is not of type UINT32"),
    ("llama.block_count", "2", "llama.block_count is not of type UINT32"),
    ("llama.embedding_length", 66, "llama.embedding_length 66 is not a multiple of 4 heads"),
    ("llama.embedding_length", 128, "llama.rope.dimension_count 16 is not 32, the width of a head"),
    ("llama.feed_forward_length", 96, "gate_proj.weight has shape [64, 64], the configuration says [96, 64]"),
    ("llama.feed_forward_length", [64, 32], "llama.feed_forward_length differs from layer to layer"),
    ("llama.attention.head_count", [4, 2], "llama.attention.head_count differs from layer to layer"),
    ("llama.attention.head_count_kv", [2, 1], "llama.attention.head_count_kv differs from layer to layer"),
    ("llama.attention.head_count_kv", 3, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
    ("llama.attention.head_count_kv", 4, "k_proj.weight has shape [32, 64], the configuration says [64, 64]"),
    ("llama.attention.key_length", 15, "llama.rope.dimension_count 16 is not 15, the width of a head"),
    ("llama.attention.value_length", 8, "llama.attention.value_length 8 is not 16, the width of a head"),
    ("llama.rope.dimension_count", 8, "llama.rope.dimension_count 8 is not 16, the width of a head"),
    ("llama.vocab_size", 200, "llama.vocab_size is 200, but token_embd.weight has 128 rows"),
    ("llama.context_length", 1 << 30, "max_position_embeddings 1073741824 is more than"),
    ("llama.attention.layer_norm_rms_epsilon", None, "it has no llama.attention.layer_norm_rms_epsilon"),
    ("llama.attention.layer_norm_rms_epsilon", (0.0, F32), "layer_norm_rms_epsilon is 0.0, not a positive number"),
    ("llama.attention.layer_norm_rms_epsilon", (float("nan"), F32), "is nan, not a positive number"),
    ("llama.rope.freq_base", (-1.0, F32), "llama.rope.freq_base is -1.0, not a positive number"),
    ("llama.rope.scaling.type", "yarn", "llama.rope.scaling.type is yarn, but there is no llama.rope.scaling.factor"),
    ("llama.rope.scaling.type", "linear", "llama.rope.scaling.type is linear, but there is no llama.rope.scaling"),
    (
        "llama.rope.scaling.attn_factor",
        2.0,
        "rope.scaling.attn_factor is not supported but with yarn and longrope",
    ),
    ("llama.attention.scale", 0.5, "llama.attention.scale is not known here"),
    ("general.alignment", 24, "general.alignment 24 is not a power of two"),
    ("general.license", 7, "general.license is not of type STRING"),
    ("split.count", (2, U16), "is a part of 2, but is not called so: NAME-00001-of-00002.gguf"),
    ("hlq.version", 1, "it is a model file of elutq already: elutq run runs it"),
    ("tokenizer.ggml.model", "bert", "tokenizer.ggml.model is 'bert': only gpt2"),
    ("tokenizer.ggml.pre", "a-new-one", "'a-new-one'"),
    ("tokenizer.ggml.tokens", [f"t{at}" for at in range(100)], "it has 100 tokens, but the embedding has 128 rows"),
    ("tokenizer.ggml.tokens", [f"t{at}" for at in range(200)], "it has 200 tokens, but the embedding has 128 rows"),
    ("tokenizer.ggml.tokens", ["t"] * 128, "tokens 0 and 127 are both 't'"),
    ("tokenizer.ggml.tokens", [b"\xff\xfe"] * 128, "the value of tokenizer.ggml.tokens is not UTF-8"),
    ("tokenizer.ggml.merges", ["a zz"], "merge 0 ('a zz') names 'zz', which is no token"),
    ("tokenizer.ggml.eos_token_id", 128, "tokenizer.ggml.eos_token_id is 128, but the vocabulary ends at 128"),
    ("general.sampling.top_k", (-5, I32), "general.sampling.top_k"),
]


@pytest.mark.parametrize(("key", "value", "said"), METADATA)
def test_metadata_that_cannot_be_used_are_named(key, value, said, tmp_path):
    described = describe(LLAMA)
    if value is None:
        del described.metadata[key]
    else:
        described.metadata[key] = value
    assert said in one_line(described.write(tmp_path / "model.gguf"))


def test_a_number_that_is_the_same_in_all_layers_may_be_there_for_each(tmp_path):
    described = describe(LLAMA)
    with open_source(described.write(tmp_path / "one.gguf")) as source:
        config = source.config
    for key in ("llama.feed_forward_length", "llama.attention.head_count", "llama.attention.head_count_kv"):
        described.metadata[key] = [described.metadata[key]] * 2
    with open_source(described.write(tmp_path / "each.gguf")) as source:
        assert source.config == config


def test_heads_that_rope_cannot_turn_are_refused(tmp_path):
    described = describe(LLAMA)
    widths = ("attention.key_length", "attention.value_length", "rope.dimension_count")
    described.metadata |= {f"llama.{width}": 15 for width in widths}
    assert "head_dim 15 is odd" in one_line(described.write(tmp_path / "model.gguf"))


def test_keys_that_say_nothing_new_may_be_there(tmp_path):
    described = describe(LLAMA)
    described.metadata |= {"llama.expert_count": 0, "llama.attention.sliding_window": 0, "split.count": (1, U16)}
    described.metadata |= {"llama.rope.scaling.type": "none", "general.tags": ["a", "b"], "mradermacher.x": "y"}
    with open_source(described.write(tmp_path / "model.gguf")) as source:
        assert source.config.sliding_window is None


# ---- tensors: a change of them, what is said


def replaced(name, array):
    return lambda tensors: tensors | {name: array}


def without(name):
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


ZEROS, ONES = np.zeros((64, 64), np.float32), np.ones(8, np.float32)

TENSORS = [
    (LLAMA, without("token_embd.weight"), "it has no matrix token_embd.weight"),
    (LLAMA, replaced("token_embd.weight", ONES), "it has 128 tokens, but the embedding has 8 rows"),
    (LLAMA, without("blk.1.ffn_up.weight"), "has no tensor model.layers.1.mlp.up_proj.weight"),
    (LLAMA, without("output_norm.weight"), "has no tensor model.norm.weight"),
    (LLAMA, replaced("blk.0.ffn_gate_inp.weight", ZEROS), "tensor 'model.layers.0.mlp.gate.weight' is not part"),
    (LLAMA, replaced("blk.2.attn_q.weight", ZEROS), "'model.layers.2.self_attn.q_proj.weight' is not part"),
    (LLAMA, replaced("blk.0.attn_q.weight", ZEROS[:63]), "q_proj.weight has shape [63, 64], the configuration says"),
    (LLAMA, replaced("blk.0.attn_q.weight", ZEROS[0]), "q_proj.weight has shape [64], the configuration says"),
    (LLAMA, replaced("blk.0.attn_norm.weight", ZEROS), "input_layernorm.weight has shape [64, 64], the configuration"),
    (LLAMA, replaced("output.weight", ZEROS), "lm_head.weight has shape [64, 64], the configuration says [128, 64]"),
    (LLAMA, replaced("blk.0.attn_q.bias", ZEROS[0]), "has no tensor model.layers.0.self_attn.k_proj.bias"),
    (LLAMA, replaced("blk.0.attn_q.weight", ZEROS.astype(np.int8)), "q_proj.weight is I8, which the gguf package here"),
    (LLAMA, replaced("rope_freqs.weight", 3 * ONES), "the divisors of RoPE frequencies (rope_freqs.weight) are not"),
    (LLAMA31, replaced("rope_freqs.weight", 2 * ONES), "the divisors of RoPE frequencies (rope_freqs.weight) are not"),
    (LLAMA31, replaced("rope_freqs.weight", np.nan * ONES), "the divisors of RoPE frequencies (rope_freqs.weight) are"),
    (LLAMA31, replaced("rope_freqs.weight", 8 * ONES[:3]), "the divisors of RoPE frequencies (rope_freqs.weight) are"),
    (LLAMA31, replaced("rope_freqs.weight", ZEROS), "rope_freqs.weight is not a vector of F32"),
    (
        LLAMA,
        replaced("rope_factors_long.weight", ONES),
        "it has not both of rope_factors_short.weight and",
    ),
    (QWEN3, without("blk.0.attn_q_norm.weight"), "has no tensor model.layers.0.self_attn.q_norm.weight"),
]


@pytest.mark.parametrize(("folder", "change", "said"), TENSORS)
def test_tensors_that_are_not_the_models_are_named(folder, change, said, tmp_path):
    described = describe(folder)
    described.tensors = change(described.tensors)
    assert said in one_line(described.write(tmp_path / "model.gguf"))


def test_frequencies_divided_by_one_are_as_they_were_and_those_scaled_twice_refused(tmp_path):
    described = describe(GOLDEN / "llama-linear-rope")
    described.tensors["rope_freqs.weight"] = np.ones(4, np.float32)
    with open_source(described.write(tmp_path / "m.gguf")) as source:
        assert source.config.rope_scaling == RopeScaling("linear", 4.0)
    described.tensors["rope_freqs.weight"] = np.full(4, 2, np.float32)
    assert "RoPE frequencies that are scaled twice are not supported" in one_line(described.write(tmp_path / "m.gguf"))


# ---- bytes

BYTES = [
    ("empty", lambda data: b"", "is empty"),
    ("text", lambda data: b"# a page\n" + data, "is not a GGUF file: it begins with"),
    (
        "version 1",
        lambda data: data[:4] + struct.pack("<I", 1) + data[8:],
        "but version 1: only little-endian version 3 is read; convert it with llama-quantize OLD NEW COPY",
    ),
    (
        "version 2",
        lambda data: data[:4] + struct.pack("<I", 2) + data[8:],
        "but version 2: only little-endian version 3 is read; convert it with llama-quantize OLD NEW COPY",
    ),
    ("big-endian", lambda data: data[:4] + struct.pack(">I", 3) + data[8:], "but big-endian: only little-endian"),
    ("header cut", lambda data: data[:700], "is truncated: it ends inside the header"),
    ("data cut", lambda data: data[:-9], "past the end of the file; copy or download it again"),
    ("unknown type", lambda data: retyped(data, 77), "has GGML type 77, which is not known here"),
    ("a pointer", lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
]


def retyped(data, number):
    """Another type in the record of a vector of 64."""
    record = b"\x12\x00\x00\x00\x00\x00\x00\x00output_norm.weight" + struct.pack("<IQ", 1, 64)
    at = data.index(record) + len(record)
    return data[:at] + struct.pack("<I", number) + data[at + 4 :]


@pytest.mark.parametrize(("name", "change", "said"), BYTES, ids=[entry[0] for entry in BYTES])
def test_bytes_that_are_no_gguf_file_are_named(name, change, said, tmp_path):
    path = describe(LLAMA).write(tmp_path / "model.gguf")
    path.write_bytes(change(path.read_bytes()))
    assert said in one_line(path)


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    (tmp_path / "folder.gguf").mkdir()
    assert "is not a checkpoint: it is empty" in one_line(tmp_path / "folder.gguf")
    os.mkfifo(tmp_path / "pipe.gguf")
    assert "it is a folder, a pipe or a device" in one_line(tmp_path / "pipe.gguf")
    assert "there is nothing of that name" in one_line(tmp_path / "absent.gguf")


# ---- parts


def split(tmp_path, folder=LLAMA, n_parts=3):
    return describe(folder).write_parts(tmp_path, "model", n_parts)


def test_parts_that_are_not_one_file_are_named(tmp_path):
    parts = split(tmp_path)
    assert "is a part of 3: give the first, model-00001-of-00003.gguf" in one_line(parts[1])
    parts[1].rename(tmp_path / "aside")
    assert "part model-00002-of-00003.gguf of 3 is missing; download it again" in one_line(parts[0])
    parts[1].write_bytes(parts[2].read_bytes())
    assert "00002-of-00003.gguf is not part 2 of 3 of model-00001" in one_line(parts[0])
    parts[1].write_bytes(parts[0].read_bytes())
    assert "00002-of-00003.gguf is not part 2 of 3 of model-00001" in one_line(parts[0])
    describe(LLAMA).write(parts[1])
    assert "00002-of-00003.gguf is not part 2 of 3 of model-00001" in one_line(parts[0])
    (tmp_path / "aside").rename(parts[1])
    parts[2].write_bytes(parts[2].read_bytes()[:-20])
    assert "model-00003-of-00003.gguf is truncated or damaged" in one_line(parts[0])


def test_a_tensor_in_two_parts_is_named(tmp_path):
    described = describe(LLAMA)
    first, second = described.write_parts(tmp_path, "model", 2)
    described.tensors["again.weight"] = described.tensors["token_embd.weight"]
    described.write_parts(tmp_path, "other", 2)
    (tmp_path / "other-00002-of-00002.gguf").replace(second)
    assert "by its own account, but its parts have" in one_line(first)
    del described.tensors["again.weight"]
    names = list(described.tensors)
    described.tensors = {name: described.tensors[name] for name in (names[1], names[0], *names[2:])}
    described.write_parts(tmp_path, "other", 2)
    (tmp_path / "other-00002-of-00002.gguf").replace(second)
    assert f"holds tensor {names[0]}, which another part holds too" in one_line(first)


# ---- what only the weights show, and what is not ours


def test_scales_that_are_no_numbers_are_found_when_weights_are_checked(tmp_path):
    described = describe(LLAMA).quantized(GGMLQuantizationType.Q8_0)
    stored, kind = described.tensors["blk.0.ffn_up.weight"]
    stored[5, :2] = np.array([np.nan], np.float16).view(np.uint8)
    with open_source(described.write(tmp_path / "model.gguf")) as source, native_backend(1) as backend:
        weights = CheckedWeights(source, backend.crew)
        weights.load("model.layers.0.mlp.gate_proj.weight")
        with pytest.raises(ElutqError, match=r"mlp.up_proj.weight holds values that are not finite"):
            weights.load("model.layers.0.mlp.up_proj.weight")
    assert kind == GGMLQuantizationType.Q8_0


def test_a_model_file_of_elutq_is_no_source(novels_2bit):
    assert "it is a model file of elutq already: elutq run runs it" in one_line(novels_2bit)


def test_anothers_file_is_no_model_file(tmp_path):
    path = describe(LLAMA).quantized(GGMLQuantizationType.Q4_0).write(tmp_path / "model.gguf")
    with pytest.raises(FormatError, match="but not one of elutq: elutq quantize makes one of it"):
        ModelFile.open(path)
    GGUFSource.open(path).close()
