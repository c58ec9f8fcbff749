"""GGUF files that other tools made, as sources: configuration, every tensor, the logits, and what is made of them."""

import json
import sys
import tracemalloc
from dataclasses import replace

import gguf
import numpy as np
import pytest
from conftest import GOLDEN, NOVELS
from foreign_gguf import CONVERTED, describe, write_part
from gguf import GGMLQuantizationType
from safetensors.numpy import save_file

from elutq_cli.pipeline.compute.backend import native_backend
from elutq_cli.pipeline.recipe import Recipe
from elutq_cli.pipeline.run.quantize import quantize
from elutq_cli.reference import Transformer
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.errors import CheckpointError, UnsupportedModelError
from elutq_formats.gguf import GGML_TYPES
from elutq_formats.gguf_reader import GGUFReader
from elutq_formats.gguf_source import GGUFSource
from elutq_formats.gguf_start import is_foreign_gguf, is_gguf
from elutq_formats.gguf_weights import GGUFWeights, unpermuted
from elutq_formats.model_file import ModelFile
from elutq_formats.open_source import open_source

KINDS = GGMLQuantizationType
LLAMA = GOLDEN / "llama2-gqa-sharded"


def in_order(name, n_rows):
    return None


@pytest.mark.parametrize("family", CONVERTED)
def test_configuration_and_tensors_are_those_of_the_checkpoint(family, tmp_path):
    path = describe(GOLDEN / family).write(tmp_path / "model.gguf")
    with Checkpoint.open(GOLDEN / family) as checkpoint, open_source(path) as source:
        wanted = checkpoint.config
        if family == "mistral-nemo":  # without a window it computes what llama does
            wanted = replace(wanted, model_type="llama")
        if family == "granite4":  # its tensors have other names in a checkpoint
            wanted = replace(wanted, model_type="granite")
        assert source.config == replace(wanted, rope_scaling=source.config.rope_scaling)
        assert (wanted.rope_scaling is None) == (source.config.rope_scaling is None)
        if wanted.rope_scaling is not None:
            np.testing.assert_equal(source.config.rope_divisors(), wanted.rope_divisors())
        assert source.names == checkpoint.names
        for name in source.names:
            assert source.shape(name) == checkpoint.shape(name)
            np.testing.assert_array_equal(source.load(name), checkpoint.load(name))
        assert source.notes == ()


@pytest.mark.parametrize("family", CONVERTED)
def test_logits_are_those_of_transformers_on_the_checkpoint(family, tmp_path):
    path = describe(GOLDEN / family).write(tmp_path / "model.gguf")
    arrays = np.load(GOLDEN / family / "expected.npz")
    with open_source(path) as source:
        found = Transformer(source).logits(arrays["tokens"])
    assert np.abs(found - arrays["logits"]).max() < 1e-4 * np.sqrt(np.mean(arrays["logits"] ** 2))


def test_every_fourth_layer_of_a_smollm3_does_not_turn_and_its_rows_are_put_back(tmp_path):
    described = describe(GOLDEN / "smollm3")
    del described.metadata["smollm3.attention.sliding_window"]
    for name, array in list(described.tensors.items()):
        if name.startswith("blk.1."):
            described.tensors |= {name.replace("blk.1.", f"blk.{layer}."): array for layer in (2, 3, 4)}
    described.metadata["smollm3.block_count"] = 5
    path = described.write(tmp_path / "model.gguf")
    with Checkpoint.open(GOLDEN / "smollm3") as checkpoint, open_source(path) as source:
        assert source.config.rope_layers == (True, True, True, False, True)
        for name in checkpoint.names:
            np.testing.assert_array_equal(source.load(name), checkpoint.load(name))


@pytest.mark.parametrize(
    ("family", "layers", "slides"),
    [("gemma3", 12, (True,) * 5 + (False,) + (True,) * 5 + (False,)), ("olmo3", 8, (True, True, True, False) * 2)],
)
def test_layers_slide_as_llama_cpp_has_them_where_a_file_does_not_say(family, layers, slides, tmp_path):
    described = describe(GOLDEN / family)
    prefix = described.metadata["general.architecture"]
    del described.metadata[f"{prefix}.attention.sliding_window_pattern"]
    described.metadata[f"{prefix}.block_count"] = layers
    for name, array in list(described.tensors.items()):
        if name.startswith("blk.1."):
            described.tensors |= {name.replace("blk.1.", f"blk.{layer}."): array for layer in range(2, layers)}
    with open_source(described.write(tmp_path / "model.gguf")) as source:
        assert source.config.sliding_layers == slides


def test_scores_of_a_mistral3_grow_only_where_its_file_says_so(tmp_path):
    """Ministral 3's do beyond the original context, where contexts end; Mistral Small has the name and no more."""
    described = describe(GOLDEN / "ministral3")
    with (
        Checkpoint.open(GOLDEN / "ministral3") as checkpoint,
        open_source(described.write(tmp_path / "1.gguf")) as source,
    ):
        factor = checkpoint.config.rope_scaling.attention_factor
        assert source.config.rope_scaling.attention_factor == pytest.approx(factor, rel=1e-12)
        assert source.config.max_position_embeddings == 64
    described.metadata |= {
        "mistral3.attention.temperature_scale": 0.0,
        "mistral3.rope.scaling.yarn_log_multiplier": 0.0,
    }
    with open_source(described.write(tmp_path / "2.gguf")) as source:
        assert source.config.max_position_embeddings == 256
        assert source.config.rope_scaling.attention_factor == pytest.approx(0.1 * np.log(4) + 1, rel=1e-12)
    plain = {key: value for key, value in described.metadata.items() if "rope.scaling" not in key and "temp" not in key}
    with open_source(replace(described, metadata=plain).write(tmp_path / "3.gguf")) as source:
        assert (source.config.rope_scaling, source.config.max_position_embeddings) == (None, 256)


@pytest.mark.parametrize("heads", [[2, 1], [0, 0]])
def test_heads_that_differ_between_layers_are_refused(heads, tmp_path):
    file = describe(GOLDEN / "granite4")
    file.metadata["granite.attention.head_count_kv"] = heads
    with pytest.raises(UnsupportedModelError, match="head_count_kv differs from layer to layer"):
        open_source(file.write(tmp_path / "model.gguf"))


def test_a_granite_without_positions_is_refused(tmp_path):
    file = describe(GOLDEN / "granite4")
    file.metadata["granite.rope.scaling.finetuned"] = False
    with pytest.raises(UnsupportedModelError, match="no RoPE is not supported in granite"):
        open_source(file.write(tmp_path / "model.gguf"))
    file.metadata["granite.rope.scaling.finetuned"] = True  # as the converter writes it
    open_source(file.write(tmp_path / "model.gguf")).close()


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_a_growth_of_scores_that_is_no_number_from_0_on_is_refused(value, tmp_path):
    for key in ("attention.temperature_scale", "rope.scaling.yarn_log_multiplier"):
        described = describe(GOLDEN / "ministral3")
        described.metadata[f"mistral3.{key}"] = value
        with pytest.raises(CheckpointError, match=f"mistral3.{key} is .*not a positive number"):
            open_source(described.write(tmp_path / "model.gguf"))


YARN = "olmo2.rope.scaling.yarn_attn_factor"


@pytest.mark.parametrize("value", [1.0, 0.1 * np.log(4) + 1.0])
def test_what_a_converter_copies_of_yarn_is_taken_where_it_changes_nothing(value, tmp_path):
    file = describe(GOLDEN / "olmo3")
    file.metadata |= {YARN: value, "olmo2.rope.scaling.yarn_ext_factor": 1.0, "olmo2.rope.freq_base_swa": 5e4}
    with open_source(file.write(tmp_path / "model.gguf")) as source, Checkpoint.open(GOLDEN / "olmo3") as checkpoint:
        assert source.config.rope.attention_factor == pytest.approx(checkpoint.config.rope.attention_factor)
        assert source.config.local_rope_theta == 5e4


@pytest.mark.parametrize("key", [YARN, "olmo2.rope.scaling.yarn_ext_factor"])
def test_yarn_of_another_kind_is_refused(key, tmp_path):
    file = describe(GOLDEN / "olmo3")
    file.metadata[key] = 1.5
    with pytest.raises(UnsupportedModelError, match=f"{key} is not supported but as"):
        open_source(file.write(tmp_path / "model.gguf"))


@pytest.mark.parametrize("kind", [KINDS.F16, KINDS.BF16])
def test_halves_are_widened_exactly_without_the_package(kind, tmp_path, monkeypatch):
    path = describe(LLAMA, kind).write(tmp_path / "model.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with Checkpoint.open(LLAMA) as checkpoint, open_source(path) as source:
        for name in source.names:
            wanted = checkpoint.load(name)
            if wanted.ndim == 2 and kind == KINDS.F16:
                wanted = wanted.astype(np.float16).astype(np.float32)
            elif wanted.ndim == 2:
                bits = wanted.view(np.uint32)
                rounded = bits + 0x7FFF + ((bits >> 16) & 1)
                wanted = (rounded & np.uint32(0xFFFF0000)).view(np.float32)
            np.testing.assert_array_equal(source.load(name), wanted)


# ---- element types


def test_sizes_of_types_are_those_of_gguf_py():
    ours = {kind.name: (number, kind.block, kind.block_bytes) for number, kind in GGML_TYPES.items()}
    theirs = {kind.name: (int(kind), *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGML_QUANT_SIZES}
    shared = ours.keys() & theirs.keys()
    assert len(shared) >= 30
    assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}


def can_dequantize(kind):
    try:
        gguf.dequantize(np.zeros((1, kind.block_bytes), dtype=np.uint8), GGMLQuantizationType[kind.name])
    except (KeyError, NotImplementedError):
        return False
    return True


QUANTIZED = [kind for kind in GGML_TYPES.values() if kind.block > 1 and kind.name != "Q1_0"]
"""But the one that we read and gguf-py only lists: test_gguf_levels has it."""


@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
def test_every_quantized_type_is_dequantized_as_gguf_py_does_or_refused_by_name(kind, tmp_path):
    stored = np.random.default_rng(7).integers(0, 256, (12, 2 * kind.block_bytes), dtype=np.uint8)
    number = GGMLQuantizationType[kind.name]
    write_part(tmp_path / "one.gguf", {}, {"blk.0.attn_q.weight": (stored, number)})
    reader = GGUFReader(tmp_path / "one.gguf")
    if not can_dequantize(kind):
        with pytest.raises(UnsupportedModelError, match=rf"is {kind.name}, which the gguf package here cannot"):
            GGUFWeights(reader, {"blk.0.attn_q.weight": "q"}, in_order)
        return
    weights = GGUFWeights(reader, {"blk.0.attn_q.weight": "q"}, in_order)
    with np.errstate(all="ignore"):
        wanted = gguf.dequantize(stored, number)
    assert weights.shapes == {"q": (12, 2 * kind.block)}
    np.testing.assert_array_equal(weights.load("q"), wanted)
    np.testing.assert_array_equal(weights.load("q", rows=slice(3, 8)), wanted[3:8])
    reversed_rows = GGUFWeights(reader, {"blk.0.attn_q.weight": "q"}, lambda name, n: np.arange(n)[::-1])
    np.testing.assert_array_equal(reversed_rows.load("q"), wanted[::-1])
    np.testing.assert_array_equal(reversed_rows.load("q", rows=slice(3, 8)), wanted[::-1][3:8])


def test_the_package_is_asked_for_where_a_type_needs_it(tmp_path, monkeypatch):
    path = describe(LLAMA).quantized(KINDS.Q8_0).write(tmp_path / "model.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UnsupportedModelError, match=r"is Q8_0, which needs gguf: pip install 'elutq\[gguf\]'"):
        open_source(path)


# ---- rows, threads, memory


@pytest.mark.parametrize("family", ["llama2-gqa-sharded", "llama-biases", "qwen2"])
def test_rows_are_those_of_the_whole(family, tmp_path, monkeypatch):
    path = describe(GOLDEN / family).quantized(KINDS.Q5_1).write(tmp_path / "model.gguf")
    with open_source(path) as source:
        wholes = {name: source.load(name) for name in source.names}
        monkeypatch.setattr("elutq_formats.gguf_weights.PIECE_WEIGHTS", 100)  # pieces that cut heads
        for name, whole in wholes.items():
            np.testing.assert_array_equal(source.load(name), whole)
            for rows in (slice(0, 1), slice(3, 7), slice(5, len(whole)), slice(2, 2), slice(8, 1000)):
                np.testing.assert_array_equal(source.load(name, rows=rows), whole[rows])


def test_threads_load_what_one_does(tmp_path, monkeypatch):
    path = describe(LLAMA).quantized(KINDS.Q4_0).write(tmp_path / "model.gguf")
    monkeypatch.setattr("elutq_formats.gguf_weights.PIECE_WEIGHTS", 100)
    with open_source(path) as source, native_backend(3) as backend:
        for name in source.names:
            np.testing.assert_array_equal(source.load(name, backend.crew.map), source.load(name))


@pytest.mark.parametrize("kind", ["Q4_K", "Q8_0", "F16"])
def test_loading_takes_the_result_and_a_few_megabytes(kind, tmp_path):
    rows, columns = 4096, 2048
    block, block_bytes = gguf.GGML_QUANT_SIZES[KINDS[kind]]
    stored = np.zeros((rows, columns // block * block_bytes), dtype=np.uint8)
    write_part(tmp_path / "one.gguf", {}, {"blk.0.attn_q.weight": (stored, KINDS[kind])})
    reader = GGUFReader(tmp_path / "one.gguf")
    weights = GGUFWeights(reader, {"blk.0.attn_q.weight": "q"}, lambda name, n: unpermuted(32, n))
    tracemalloc.start()
    loaded = weights.load("q")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert loaded.nbytes < peak < loaded.nbytes + 12e6


# ---- files


def test_a_split_file_is_read_whole_from_its_first_part(tmp_path):
    described = describe(LLAMA).quantized(KINDS.Q8_0)
    whole = described.write(tmp_path / "whole.gguf")
    first, *others = described.write_parts(tmp_path, "model", 3)
    with open_source(whole) as wanted, open_source(first) as source:
        assert source.weight_files() == (first, *others)
        assert source.config == wanted.config
        for name in wanted.names:
            np.testing.assert_array_equal(source.load(name), wanted.load(name))


def test_a_gguf_file_is_one_by_its_contents_too(tmp_path, novels_2bit):
    path = describe(LLAMA).write(tmp_path / "sha256-0123")
    assert is_gguf(path)
    assert is_foreign_gguf(path)
    assert not is_foreign_gguf(novels_2bit)
    assert not is_gguf(LLAMA)
    assert not is_foreign_gguf(LLAMA / "config.json")
    with open_source(path) as source:
        assert isinstance(source, GGUFSource)
        assert source.origin().name == "llama2-gqa-sharded"


def test_a_file_that_changes_is_noticed(tmp_path):
    path = describe(LLAMA).write(tmp_path / "model.gguf")
    with open_source(path) as source:
        before = source.identity()
        path.write_bytes(path.read_bytes())
        with pytest.raises(CheckpointError, match="changed while it was being read: start again"):
            source.load(source.names[0])
    with open_source(path) as source:
        assert source.identity() != before


def test_what_the_file_says_of_itself_is_known(tmp_path):
    described = describe(LLAMA)
    described.metadata |= {"general.sampling.temp": 0.5, "tokenizer.chat_template": "{{ messages }}"}
    with open_source(described.write(tmp_path / "a name.gguf")) as source:
        assert (source.origin().name, source.origin().license) == ("llama2-gqa-sharded", "apache-2.0")
        assert source.sampling == {"temp": 0.5}
        assert source.chat_template == "{{ messages }}"
        assert source.special_tokens["bos_token"] == "<s>"
        assert source.tokenizer().encode("ab")[-1] == 101
    del described.metadata["general.name"], described.metadata["general.license"]
    with open_source(described.write(tmp_path / "a name.gguf")) as source:
        assert (source.origin().name, source.origin().license) == ("a name", None)


@pytest.mark.parametrize(("kind", "told"), [(KINDS.Q4_0, "have 4.50 bits already (Q4_0)"), (KINDS.Q5_0, None)])
def test_a_file_of_few_bits_is_taken_with_a_word(kind, told, tmp_path):
    with open_source(describe(LLAMA).quantized(kind).write(tmp_path / "model.gguf")) as source:
        assert [told in note for note in source.notes_on(keeps_levels=False)] == ([True] if told else [])
        assert source.notes_on(keeps_levels=True) == ()
        assert [told in note for note in source.notes_on_measuring()] == ([True] if told else [])
        assert [("elutq import" in note) for note in source.notes_on(False)] == ([True] if told else [])


# ---- what is made of it


def test_the_model_file_is_that_of_the_checkpoint_with_the_same_weights(tmp_path):
    """But for where it says it comes from, byte by byte: configuration, tokenizer, every matrix."""
    path = describe(LLAMA).quantized(KINDS.Q8_0).write(tmp_path / "model.gguf")
    folder = tmp_path / "converted"
    folder.mkdir()
    with open_source(path) as source:
        save_file({name: source.load(name) for name in source.names}, folder / "model.safetensors")
        (folder / "tokenizer.json").write_text(source.tokenizer_json)
        (folder / "tokenizer_config.json").write_text(json.dumps(source.special_tokens))
    (folder / "config.json").write_bytes((LLAMA / "config.json").read_bytes())
    made = []
    for place in (path, folder):
        made.append(tmp_path / f"{place.name}.out")
        with open_source(place) as source, native_backend(2) as backend:
            quantize(source, made[-1], Recipe(group_size=32), None, backend)
    ours, theirs = (GGUFReader(file) for file in made)
    differ = {key for key in ours.metadata | theirs.metadata if ours.metadata.get(key) != theirs.metadata.get(key)}
    assert differ <= {"general.name", "general.basename", "general.license", "elutq.source", "elutq.license"}
    assert ours.tensors == theirs.tensors
    for name in ours.tensors:
        np.testing.assert_array_equal(ours.data(name), theirs.data(name))
    ModelFile.open(made[0])


def test_a_trained_model_scores_the_same_from_both(tmp_path):
    path = describe(NOVELS).write(tmp_path / "novels.gguf")
    tokens = np.arange(200) * 17 % 4096
    with Checkpoint.open(NOVELS) as checkpoint, open_source(path) as source:
        np.testing.assert_array_equal(Transformer(source).logits(tokens), Transformer(checkpoint).logits(tokens))
