"""GGUF's evenly spaced types: their codes and scales are what gguf-py, or llama.cpp, makes weights of."""

import sys

import gguf
import numpy as np
import pytest
from conftest import GOLDEN
from foreign_gguf import describe
from gguf import GGMLQuantizationType
from typer.testing import CliRunner

from elutq_cli.app import app
from elutq_formats.gguf import GGML_TYPES
from elutq_formats.gguf_levels import LEVELS
from elutq_formats.model_file import ModelFile
from elutq_formats.open_source import open_source

ROWS, BLOCKS = 24, 3


def stored_rows(name):
    """Blocks of random bytes: every code and scale there is, among them negative ones and some that are no numbers."""
    block_bytes = next(kind.block_bytes for kind in GGML_TYPES.values() if kind.name == name)
    return np.random.default_rng(3).integers(0, 256, (ROWS, BLOCKS * block_bytes), dtype=np.uint8)


@pytest.mark.parametrize("name", sorted(LEVELS.keys() - {"Q1_0"}))
def test_weights_are_those_of_gguf_py_bit_for_bit(name):
    stored = stored_rows(name)
    with np.errstate(invalid="ignore"):
        wanted = gguf.dequantize(stored, GGMLQuantizationType[name])
    found = LEVELS[name].dequantize(stored)
    numbers = ~np.isnan(wanted)
    np.testing.assert_array_equal(found[numbers].view(np.uint32), wanted[numbers].view(np.uint32))
    assert np.isnan(found[~numbers]).all()


@pytest.mark.parametrize("name", sorted(name for name, levels in LEVELS.items() if levels.zero is not None))
def test_codes_are_of_the_bits_and_weights_are_scale_times_code_less_zero(name):
    levels, stored = LEVELS[name], stored_rows(name)
    scales, codes = levels.read(stored)
    assert scales.shape == (ROWS, BLOCKS)
    assert codes.shape == (ROWS, BLOCKS * levels.block)
    assert codes.max() == {"TQ1_0": 2}.get(name, 2**levels.bits - 1)
    with np.errstate(invalid="ignore"):
        weights = np.repeat(scales, levels.block, axis=1) * (codes - np.float32(levels.zero))
    np.testing.assert_array_equal(levels.dequantize(stored), weights)


def test_a_bit_of_q1_0_is_the_sign_of_its_blocks_scale():
    """As llama.cpp's dequantize_row_q1_0 has it: the lowest bit of a byte first, 1 for plus."""
    block = np.array([0, 0x3C, 0b00000001, 0b10000010, *[0] * 14], dtype=np.uint8)  # scale 1.0
    wanted = np.full((1, 128), -1.0, dtype=np.float32)
    wanted[0, [0, 9, 15]] = 1.0
    np.testing.assert_array_equal(LEVELS["Q1_0"].dequantize(block[None]), wanted)


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_1])
def test_no_package_is_needed(kind, tmp_path, monkeypatch):
    path = describe(GOLDEN / "llama2-gqa-sharded").quantized(kind).write(tmp_path / "model.gguf")
    with open_source(path) as source:
        name = "model.layers.0.mlp.up_proj.weight"
        wanted = source.load(name)
        monkeypatch.setitem(sys.modules, "gguf", None)
        with open_source(path) as again:
            np.testing.assert_array_equal(again.load(name), wanted)


@pytest.mark.parametrize("family", ["phi3-short", "glm4"])
def test_rows_of_fused_matrices_keep_their_levels(family, tmp_path, rng):
    file = describe(GOLDEN / family)
    architecture = file.metadata["general.architecture"]
    file.metadata |= {f"{architecture}.feed_forward_length": 256}
    hidden = file.metadata[f"{architecture}.embedding_length"]
    for name in [name for name in file.tensors if "ffn_up" in name or "ffn_down" in name]:
        shape = (512, hidden) if "ffn_up" in name else (hidden, 256)
        file.tensors[name] = rng.standard_normal(shape).astype(np.float32)
    quantized = file.quantized(GGMLQuantizationType.Q4_0)
    stored = {name: gguf.dequantize(*tensor) for name, tensor in quantized.tensors.items() if isinstance(tensor, tuple)}
    up = stored["blk.0.ffn_up.weight"]
    with open_source(quantized.write(tmp_path / "model.gguf")) as source:
        for name, wanted in (("gate_proj", up[:256]), ("up_proj", up[256:])):
            name = f"model.layers.0.mlp.{name}.weight"
            np.testing.assert_array_equal(source.load(name), wanted)
            np.testing.assert_array_equal(source.load(name, rows=slice(3, None, 2)), wanted[3::2])
            np.testing.assert_array_equal(source.levels(name).dequantize(), wanted)
    output = tmp_path / "imported.gguf"
    result = CliRunner().invoke(app, ["import", str(tmp_path / "model.gguf"), "-o", str(output)])
    assert result.exit_code == 0, result.output
    assert ModelFile.open(output).tensors["blk.0.ffn_gate.weight"].bits == 4
