"""Ternary and binary models in GGUF files and as floats: their levels are found, and kept to the last bit."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from safetensors.numpy import save_file
from ternary_folders import Q1_0, draw_levels, write_gguf

from elutq_formats.errors import CheckpointError
from elutq_formats.levels_of_floats import find_levels
from elutq_formats.open_source import open_source
from elutq_formats.stored_weights import open_weights

QUERY = "model.layers.0.self_attn.q_proj.weight"
TQ1_0, TQ2_0, Q4_0 = GGMLQuantizationType.TQ1_0, GGMLQuantizationType.TQ2_0, GGMLQuantizationType.Q4_0


# ---- floats on levels


def tensor_of(folder, weights):
    folder.mkdir(exist_ok=True)
    save_file({"w": weights}, folder / "model.safetensors")
    return open_weights(folder)["w"]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize(
    ("columns", "scale_for", "group_size"),
    [(512, 512, 256), (512, 256, 256), (512, 128, 128), (384, 384, 128), (192, 64, 64), (96, 96, 32), (64, 32, 32)],
)
def test_levels_of_floats_are_found_in_the_largest_groups(dtype, binary, columns, scale_for, group_size, rng, tmp_path):
    weights = draw_levels(rng, 40, columns, scale_for, binary, dtype)
    found = find_levels("w", tensor_of(tmp_path, weights))
    assert (found.bits, found.group_size) == (1 if binary else 2, group_size)
    levels = found.levels()
    assert (levels.bits, levels.group_size, levels.kind.name) == (found.bits, group_size, "even16")
    rounded = 0 if dtype == np.float16 else 2.0**-11
    np.testing.assert_allclose(levels.dequantize(), weights.astype(np.float32), rtol=rounded, atol=0)
    np.testing.assert_array_equal(found.load(rows=slice(2, 9)), weights[2:9])


@pytest.mark.parametrize("value", [0.5, -1e-4, np.nan, np.inf])
def test_one_weight_off_its_levels_is_seen(value, rng, tmp_path, monkeypatch):
    monkeypatch.setattr("elutq_formats.levels_of_floats.PIECE_WEIGHTS", 640)
    weights = draw_levels(rng, 64, 64, 32)
    assert find_levels("w", tensor_of(tmp_path, weights)) is not None
    weights[63, 63] = value
    assert find_levels("w", tensor_of(tmp_path / "other", weights)) is None


def test_columns_that_no_groups_fit_have_no_levels(tmp_path):
    assert find_levels("w", tensor_of(tmp_path, np.ones((8, 48), np.float16))) is None


def test_an_ordinary_matrix_is_given_up_after_its_first_row(rng, tmp_path, monkeypatch):
    tensor = tensor_of(tmp_path, rng.standard_normal((64, 64)).astype(np.float16))
    read, load = [], tensor.file.load
    monkeypatch.setattr(tensor.file, "load", lambda name, run, rows: read.append(rows) or load(name, run, rows))
    assert find_levels("w", tensor) is None
    assert read == [slice(0, 1)]


# ---- GGUF


@pytest.mark.parametrize(
    ("kind", "layout", "bits_per_weight"),
    [
        (TQ2_0, (2, 256, "even16"), 2.0625),
        (TQ1_0, (2, 256, "even16"), 2.0625),
        (Q1_0, (1, 128, "even16"), 1.125),
        (Q4_0, (4, 32, "even16c"), 4.75),
    ],
)
def test_levels_of_gguf_are_kept_to_the_last_bit(kind, layout, bits_per_weight, rng, tmp_path):
    weights = write_gguf(tmp_path / "model.gguf", rng, kind)
    with open_source(tmp_path / "model.gguf") as source:
        for name, wanted in weights.items():
            loaded = source.load(name)
            if kind != Q4_0:
                np.testing.assert_array_equal(loaded, wanted)
            levels = source.levels(name)
            np.testing.assert_array_equal(levels.dequantize(), loaded)
            assert (levels.bits, levels.group_size, levels.kind.name) == layout
            matrix = source.quantized(name)
            assert (matrix.dtype, matrix.bits) == (kind.name, layout[0])
        assert source.levels("model.embed_tokens.weight") is None
        told = f"bits already ({kind.name}), and what that lost stays lost"
        assert [told in note for note in source.notes_on(keeps_levels=False)] == [True]
        assert source.notes_on(keeps_levels=True) == ()


def patched(folder, rng, kind, offset, replacement):
    """A file with bytes of the first block of its first query matrix replaced."""
    folder.mkdir()
    write_gguf(folder / "model.gguf", rng, kind)
    with open_source(folder / "model.gguf") as source:
        weights = source.quantized(QUERY).tensor.file
        begin = weights._data_start + weights._infos[QUERY].offset + offset
    data = bytearray((folder / "model.gguf").read_bytes())
    data[begin : begin + len(replacement)] = replacement
    (folder / "model.gguf").write_bytes(data)
    return folder / "model.gguf"


@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E01])
@pytest.mark.parametrize(("kind", "scale_at"), [(TQ2_0, 64), (TQ1_0, 52), (Q1_0, 0), (Q4_0, 0)])
def test_a_scale_of_gguf_that_is_not_finite_is_refused(kind, scale_at, bits, rng, tmp_path):
    path = patched(tmp_path / "new", rng, kind, scale_at, bits.to_bytes(2, "little"))
    with (
        open_source(path) as source,
        pytest.raises(CheckpointError, match=r"q_proj\.weight: it holds a scale that is not"),
    ):
        source.levels(QUERY)


@pytest.mark.parametrize("scale", [-0.5, 0.5, 0.0, -0.0])
def test_a_fourth_code_and_a_negative_scale_of_tq2_0_mean_what_they_mean_there(scale, rng, tmp_path):
    block = bytes(range(64)) + np.float16(scale).tobytes()
    path = patched(tmp_path / "new", rng, TQ2_0, 0, block)
    with open_source(path) as source:
        loaded = source.load(QUERY)
        assert set(np.unique(loaded[0] / 0.5)) >= ({-1.0, 0.0, 1.0} if scale else {0.0})
        np.testing.assert_array_equal(source.levels(QUERY).dequantize(), loaded)
