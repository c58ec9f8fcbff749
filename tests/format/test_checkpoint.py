"""Checkpoint folders: whole ones in every layout, and every way to be incomplete."""

import json
import struct
from dataclasses import replace

import numpy as np
import pytest
from safetensors import deserialize
from safetensors.numpy import save_file
from samples import DATA, GOLDEN, every_family

from elutq_formats import safetensors_file
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.errors import CheckpointError, UnsupportedModelError
from elutq_formats.expert_names import expert_names
from elutq_formats.safetensors_file import DTYPES, SafetensorsFile

CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 48,
    "max_position_embeddings": 64,
}
LAYER = {
    "self_attn.q_proj": (32, 32),
    "self_attn.k_proj": (32, 32),
    "self_attn.v_proj": (32, 32),
    "self_attn.o_proj": (32, 32),
    "mlp.gate_proj": (64, 32),
    "mlp.up_proj": (64, 32),
    "mlp.down_proj": (32, 64),
    "input_layernorm": (32,),
    "post_attention_layernorm": (32,),
}


def random_weights(dtype=np.float32):
    """The tensors of a Llama 1 with its own head and no num_key_value_heads."""
    shapes = {"model.embed_tokens.weight": (48, 32), "model.norm.weight": (32,), "lm_head.weight": (48, 32)}
    shapes |= {f"model.layers.{n}.{name}.weight": shape for n in (0, 1) for name, shape in LAYER.items()}
    rng = np.random.default_rng(1)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def write_checkpoint(path, weights, config=CONFIG):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    save_file(weights, path / "model.safetensors")
    return path


def write_sharded(path, weights):
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    names = sorted(weights)
    weight_map = {}
    for number, part in enumerate((names[:7], names[7:]), start=1):
        shard = f"model-{number:05}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, path / shard)
        weight_map |= dict.fromkeys(part, shard)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path


def write_raw(path, header, data=b""):
    """A safetensors file with whatever header."""
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)


@pytest.fixture
def single(tmp_path):
    return write_checkpoint(tmp_path / "single", random_weights())


@pytest.fixture
def sharded(tmp_path):
    return write_sharded(tmp_path / "sharded", random_weights())


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_single_file(tmp_path, dtype):
    weights = random_weights(dtype)
    with Checkpoint.open(write_checkpoint(tmp_path / "model", weights)) as checkpoint:
        assert set(checkpoint.names) == set(weights)
        assert checkpoint.config.num_key_value_heads == 4
        assert not checkpoint.config.tie_word_embeddings
        for name, values in weights.items():
            loaded = checkpoint.load(name)
            assert (loaded.dtype, loaded.shape) == (np.float32, checkpoint.shape(name))
            assert loaded.flags.owndata or loaded.base.flags.writeable
            np.testing.assert_array_equal(loaded, values.astype(np.float32))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("rows", [slice(0, 16), slice(17, 33), slice(30, 99), slice(48, 64)])
def test_some_rows_are_those_of_the_whole_tensor(tmp_path, monkeypatch, dtype, rows):
    monkeypatch.setattr(safetensors_file, "_PIECE_BYTES", 96)  # rows begin and end within what is read at a time
    with Checkpoint.open(write_checkpoint(tmp_path / "model", random_weights(dtype))) as checkpoint:
        for name in checkpoint.names:
            expected = checkpoint.load(name)[rows]
            found = checkpoint.load(name, rows=rows)
            assert found.shape == expected.shape
            np.testing.assert_array_equal(found, expected)


def test_bfloat16_is_widened_bit_by_bit(tmp_path):
    weights = random_weights()
    path = write_checkpoint(tmp_path / "model", weights)
    bits = {name: (values.view(np.uint32) >> 16).astype(np.uint16) for name, values in weights.items()}
    header, data = {}, b""
    for name, values in bits.items():
        header[name] = {"dtype": "BF16", "shape": values.shape, "data_offsets": [len(data), len(data) + values.nbytes]}
        data += values.tobytes()
    write_raw(path / "model.safetensors", header, data)
    with Checkpoint.open(path) as checkpoint:
        for name, values in weights.items():
            exact = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
            np.testing.assert_array_equal(checkpoint.load(name), exact)


def test_shards_hold_the_same_tensors(single, sharded):
    with Checkpoint.open(single) as one, Checkpoint.open(sharded) as two:
        assert one.names == two.names
        for name in one.names:
            np.testing.assert_array_equal(one.load(name), two.load(name))


def test_the_bundled_checkpoint():
    with Checkpoint.open(DATA / "novels-6m") as checkpoint:
        assert checkpoint.config.tie_word_embeddings
        assert not checkpoint.has("lm_head.weight")
        assert checkpoint.shape("model.embed_tokens.weight") == (4096, 256)
        assert json.loads(checkpoint.tokenizer_json)["version"] == "1.0"
        assert checkpoint.chat_template is None


@every_family
def test_every_golden_checkpoint_opens_as_the_safetensors_package_reads_it(family):
    stored = dict(entry for file in family.glob("*.safetensors") for entry in deserialize(file.read_bytes()))
    with Checkpoint.open(family) as checkpoint:
        for name in checkpoint.names:
            if name in checkpoint.parts:
                continue  # a family's own way: the logits of transformers tell
            values = checkpoint.load(name)
            assert checkpoint.shape(name) == values.shape
            if values.ndim == 3:
                for own, expert in zip(expert_names(name, len(values)), values, strict=True):
                    assert_holds(stored[own], expert)
            else:
                assert_holds(stored[name], values)


def assert_holds(stored, values):
    """Check that these are the numbers of a tensor as the safetensors package reads it."""
    assert values.shape == tuple(stored["shape"])
    match stored["dtype"]:
        case "BF16":
            assert (values.view(np.uint32) >> 16).astype("<u2").tobytes() == stored["data"]
        case "F16":
            assert values.astype("<f2").tobytes() == stored["data"]
        case "F32":
            assert values.tobytes() == stored["data"]
        case other:
            pytest.fail(f"unexpected {other}")


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_model_of_a_multimodal_checkpoint_is_taken(prefix, tmp_path):
    """Gemma 3's names, of transformers 4 and 5; tokens that end a text are said outside of text_config."""
    folder = GOLDEN / "gemma3"
    config = json.loads((folder / "config.json").read_text())
    inner = {name: value for name, value in config.items() if name != "eos_token_id"}
    outer = {"model_type": "gemma3", "eos_token_id": [1, 106], "text_config": inner, "vision_config": {}}
    file = SafetensorsFile(folder / "model.safetensors")
    weights = {prefix + name.removeprefix("model."): file.load(name) for name in file.shapes}
    before = "" if prefix.startswith("language_model") else "model."
    weights |= {
        f"{before}{name}": np.ones((3, 2), np.float32) for name in ("vision_tower.x", "multi_modal_projector.y")
    }
    path = write_checkpoint(tmp_path / "model", weights, outer)
    with Checkpoint.open(folder) as alone, Checkpoint.open(path) as text:
        assert text.config == replace(alone.config, eos_token_ids=(1, 106))
        assert any("the text model of gemma3 is taken" in note for note in text.notes)
        for name in alone.names:
            np.testing.assert_array_equal(text.load(name), alone.load(name))


class TestTiedHead:
    def test_no_head_is_tied_whatever_the_config_says(self, tmp_path):
        weights = random_weights()
        del weights["lm_head.weight"]
        config = {**CONFIG, "tie_word_embeddings": False}
        checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "model", weights, config))
        assert checkpoint.config.tie_word_embeddings
        (note,) = checkpoint.notes
        assert note == "no head is stored (lm_head.weight), though config.json does not tie it: the embedding is used"

    @pytest.mark.parametrize("equal", [True, False])
    def test_a_stored_head_is_tied_only_when_equal(self, tmp_path, equal):
        weights = random_weights()
        if equal:
            weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
        config = {**CONFIG, "tie_word_embeddings": True}
        checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "model", weights, config))
        assert checkpoint.config.tie_word_embeddings is equal
        assert checkpoint.has("lm_head.weight") is not equal
        said = "config.json ties the head to the embedding, but another is stored (lm_head.weight): it is used"
        assert checkpoint.notes == (() if equal else (said,))

    def test_an_equal_head_stays_when_declared_untied(self, tmp_path):
        weights = random_weights()
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
        checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "model", weights))
        assert (checkpoint.config.tie_word_embeddings, checkpoint.notes) == (False, ())


def test_stored_rope_frequencies_are_passed_over(tmp_path):
    weights = random_weights()
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float64)
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "model", weights))
    assert not any("rotary" in name for name in checkpoint.names)


def test_a_vocabulary_padded_past_the_tokenizer(tmp_path):
    weights = random_weights()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = np.pad(weights[name], [(0, 16), (0, 0)])
    config = {**CONFIG, "vocab_size": 64}
    assert Checkpoint.open(write_checkpoint(tmp_path / "model", weights, config)).shape("lm_head.weight") == (64, 32)


class TestIncomplete:
    """Each of these is one line that names the file or tensor, before any tensor is read."""

    @pytest.fixture(autouse=True)
    def folders(self, single, sharded):
        self.single, self.sharded = single, sharded

    def refuse(self, path, message, kind=CheckpointError):
        with pytest.raises(kind, match=message) as refusal:
            Checkpoint.open(path)
        assert str(refusal.value).isprintable()

    def test_no_folder(self, tmp_path):
        self.refuse(tmp_path / "absent", "absent is not a checkpoint folder")
        self.refuse(self.single / "config.json", "is not a checkpoint folder")

    def test_no_config(self):
        (self.single / "config.json").unlink()
        self.refuse(self.single, r"it has weights, but no config\.json")

    @pytest.mark.parametrize("contents", [b"{", b"[1]", b"\xff\xfe", b'{"a": ' + b"1" * 5000 + b"}", b"[" * 100000])
    def test_damaged_config(self, contents):
        (self.single / "config.json").write_bytes(contents)
        self.refuse(self.single, r"config\.json is damaged")

    def test_no_weights(self):
        (self.single / "model.safetensors").rename(self.single / "model.pt")
        self.refuse(self.single, "'model.pt' is PyTorch's format: load it")

    def test_missing_shard(self):
        (self.sharded / "model-00002-of-00002.safetensors").unlink()
        self.refuse(self.sharded, "'model-00002-of-00002.safetensors' is missing; download it again")

    @pytest.mark.parametrize("length", [0, 7, 8, 100, -1])
    def test_truncated_shard(self, length):
        shard = self.sharded / "model-00001-of-00002.safetensors"
        contents = shard.read_bytes()
        shard.write_bytes(contents[:length])
        self.refuse(self.sharded, r"model-00001-of-00002\.safetensors is truncated, damaged or")

    @pytest.mark.parametrize("weight_map", [None, [], {"a": 1}])
    def test_index_without_map(self, weight_map):
        (self.sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        self.refuse(self.sharded, "it has no weight_map")

    @pytest.mark.parametrize("shard", ["../single/model.safetensors", "/etc/passwd", "a\n/b", "", ".."])
    def test_index_that_leaves_the_folder(self, shard):
        (self.sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": shard}}))
        self.refuse(self.sharded, "is not the name of a safetensors file")

    def test_index_that_names_the_wrong_shard(self):
        index = self.sharded / "model.safetensors.index.json"
        contents = json.loads(index.read_text())
        contents["weight_map"]["lm_head.weight"] = "model-00002-of-00002.safetensors"
        index.write_text(json.dumps(contents))
        self.refuse(self.sharded, "does not hold tensor 'lm_head.weight'")

    def test_missing_tensor(self, tmp_path):
        weights = random_weights()
        del weights["model.layers.1.mlp.up_proj.weight"]
        self.refuse(write_checkpoint(self.single, weights), "has no tensor model.layers.1.mlp.up_proj.weight")

    def test_no_tensor_at_all(self):
        write_raw(self.single / "model.safetensors", {})
        self.refuse(self.single, "has no tensor model.embed_tokens.weight")

    def test_wrong_shape(self):
        config = {**CONFIG, "num_key_value_heads": 2}
        self.refuse(
            write_checkpoint(self.single, random_weights(), config),
            r"k_proj.weight has shape \[32, 32\], the configuration says \[16, 32\]",
        )

    def test_unknown_tensor(self):
        weights = {**random_weights(), "model.layers.0.self_attn.q_proj.bias": np.zeros(32, np.float32)}
        self.refuse(write_checkpoint(self.single, weights), "q_proj.bias' is not part of", UnsupportedModelError)

    def test_unsupported_dtype(self):
        weights = {**random_weights(), "model.norm.weight": np.ones(32, np.float64)}
        self.refuse(write_checkpoint(self.single, weights), "is 'F64': only F32, F16, BF16", UnsupportedModelError)

    def test_no_tokenizer(self):
        with pytest.raises(CheckpointError, match=r"has no tokenizer\.json: write one"):
            _ = Checkpoint.open(self.single).tokenizer_json


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "data", "reason"),
    [
        (b"{", b"", "JSON"),
        (b"[]", b"", "JSON"),
        (b"[" * 100000, b"", "JSON"),
        (b"\xff", b"", "UTF-8"),
        ({"w\n": []}, b"", "JSON"),
        ({"w": {**ENTRY, "shape": [-2]}}, bytes(8), "JSON"),
        ({"w": {**ENTRY, "shape": 2}}, bytes(8), "JSON"),
        ({"w": {**ENTRY, "shape": [2.0]}}, bytes(8), "JSON"),
        ({"w": {**ENTRY, "dtype": 5}}, bytes(8), "JSON"),
        ({"w": {**ENTRY, "dtype": "F99"}}, bytes(8), "JSON"),
        ({"w": {**ENTRY, "data_offsets": [8, 0]}}, bytes(8), "offset"),
        ({"w": {**ENTRY, "data_offsets": [0]}}, bytes(8), "JSON"),
        ({"w": {**ENTRY, "shape": [3]}}, bytes(8), "shape"),
        ({"w": {**ENTRY, "shape": [2**40, 2**40]}}, bytes(8), "overflow"),
        ({"w": {**ENTRY, "data_offsets": [8, 16]}}, bytes(16), "offset"),
        ({"v": ENTRY, "w": ENTRY}, bytes(8), "offset"),
        ({"w\x1b[2J": {**ENTRY, "data_offsets": [8, 16]}}, bytes(16), "offset"),
        ({"w": ENTRY}, bytes(7), "not fully covered"),
        ({"w": ENTRY}, bytes(9), "not fully covered"),
    ],
)
def test_damaged_safetensors(single, header, data, reason):
    write_raw(single / "model.safetensors", header, data)
    with pytest.raises(CheckpointError, match=f"is truncated, damaged or no safetensors file .*{reason}") as refusal:
        Checkpoint.open(single)
    assert str(refusal.value).isprintable()


def test_a_header_of_absurd_length(single):
    (single / "model.safetensors").write_bytes(struct.pack("<Q", 2**63) + bytes(100))
    with pytest.raises(CheckpointError, match=r"is truncated, damaged or no safetensors file .*header too large"):
        Checkpoint.open(single)


def test_tensors_are_found_behind_those_of_every_other_type(tmp_path):
    sizes = {"BOOL": 1, "U8": 1, "F8_E4M3": 1, "I16": 2, "BF16": 2, "F64": 8, "I32": 4, "U64": 8, "F16": 2, "F32": 4}
    header, data = {}, b""
    for number, (dtype, size) in enumerate(sizes.items()):
        content = np.full(3, number, DTYPES[dtype]).tobytes() if dtype in DTYPES else bytes(3 * size)
        header[dtype] = {"dtype": dtype, "shape": [3], "data_offsets": [len(data), len(data) + 3 * size]}
        data += content
    header["F4"] = {"dtype": "F4", "shape": [2, 3], "data_offsets": [len(data), len(data) + 3]}
    header["empty"] = {"dtype": "F32", "shape": [0, 3], "data_offsets": [len(data) + 3, len(data) + 3]}
    header["last"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(data) + 3, len(data) + 7]}
    write_raw(tmp_path / "mixed.safetensors", header, data + bytes(3) + np.float32(7).tobytes())
    file = SafetensorsFile(tmp_path / "mixed.safetensors")
    assert file.shapes["F4"] == (2, 3)
    assert file.load("empty").shape == (0, 3)
    assert file.load("last") == 7
    np.testing.assert_array_equal(file.load("F16"), np.full(3, 8, np.float32))
    np.testing.assert_array_equal(file.load("F32"), np.full(3, 9, np.float32))
    assert b"".join(piece.tobytes() for piece in file.pieces("BF16")) == np.full(3, 4, np.uint16).tobytes()


@pytest.mark.parametrize(
    ("files", "template"),
    [
        ({"tokenizer_config.json": {"chat_template": "{{ a }}"}}, "{{ a }}"),
        ({"tokenizer_config.json": {"chat_template": "{{ a }}"}, "chat_template.jinja": "{{ b }}"}, "{{ b }}"),
        (
            {
                "tokenizer_config.json": {
                    "chat_template": [
                        {"name": "tool_use", "template": "{{ t }}"},
                        {"name": "default", "template": "{{ d }}"},
                    ]
                }
            },
            "{{ d }}",
        ),
        ({"tokenizer_config.json": {"chat_template": [{"name": "tool_use", "template": "{{ t }}"}]}}, None),
        ({"tokenizer_config.json": {}}, None),
        ({"tokenizer_config.json": {}, "chat_template.json": {"chat_template": "{{ c }}"}}, "{{ c }}"),
        (
            {"tokenizer_config.json": {"chat_template": "{{ a }}"}, "chat_template.json": {"chat_template": "{{ c }}"}},
            "{{ a }}",
        ),
        ({}, None),
    ],
)
def test_chat_template(single, files, template):
    for name, contents in files.items():
        (single / name).write_text(contents if isinstance(contents, str) else json.dumps(contents))
    checkpoint = Checkpoint.open(single)
    assert checkpoint.chat_template == template
    if template is not None:
        assert template in checkpoint.chat_template_place.read_text()


def test_golden_checkpoints_cover_both_layouts():
    assert list(GOLDEN.glob("*/model.safetensors"))
    assert list(GOLDEN.glob("*/model.safetensors.index.json"))
