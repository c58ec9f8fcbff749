"""Checkpoints of BitNet as transformers stores them: weights and levels against its description, and what is wrong."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file
from ternary_folders import TERNARY, read_stored

from elutq_formats.errors import CheckpointError, UnsupportedModelError
from elutq_formats.open_source import open_source

QUERY = "model.layers.0.self_attn.q_proj.weight"


def linears(source):
    return [name for name in source.names if "_proj" in name]


@pytest.mark.parametrize(("folder", "divides"), [("bitnet", True), ("bitnet-auto", False)])
def test_rows_of_bitnet_lie_a_quarter_apart_in_a_byte_and_the_scale_divides_or_multiplies(folder, divides):
    stored = read_stored(TERNARY / folder)
    with open_source(TERNARY / folder) as source:
        for name in linears(source):
            rows = np.concatenate([stored[name] >> 2 * quarter & 3 for quarter in range(4)]).astype(np.float32) - 1
            scale = stored[f"{name}_scale"][0]
            wanted = rows * (np.float32(1) / scale if divides else scale)
            np.testing.assert_array_equal(source.load(name), wanted)
            np.testing.assert_array_equal(source.load(name, rows=slice(3, 30)), wanted[3:30])
            levels = source.levels(name)
            assert (levels.bits, levels.kind.name, levels.kind.center) == (2, "even16", 4)
            assert levels.group_size == min(256, levels.columns)
            bound = 2.0**-11 if divides else 0  # half precision rounds a reciprocal, and no bfloat16
            np.testing.assert_allclose(levels.dequantize(), wanted, rtol=bound, atol=0)
        embedding = "model.embed_tokens.weight"
        np.testing.assert_array_equal(source.load(embedding), stored[embedding])
        assert source.levels(embedding) is None


def test_bitnet_that_rounds_online_is_rounded_to_the_mean_magnitude_of_the_matrix():
    stored = read_stored(TERNARY / "bitnet-online")
    with open_source(TERNARY / "bitnet-online") as source:
        assert source.notes == ()
        for name in linears(source):
            mean = np.abs(stored[name].astype(np.float64)).mean()
            wanted = np.where(np.abs(stored[name]) > mean / 2, np.sign(stored[name]) * np.float32(mean), 0)
            np.testing.assert_array_equal(source.load(name), wanted)
            np.testing.assert_array_equal(source.load(name, rows=slice(5, 20)), wanted[5:20])
            np.testing.assert_allclose(source.levels(name).dequantize(), wanted, rtol=2.0**-11, atol=0)


@pytest.mark.parametrize(
    ("listed", "kept"),
    [
        ([], []),
        (["lm_head", "q_proj"], ["self_attn.q_proj"]),
        (["model.layers.0.mlp"], ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]),
        (["model.layers.0.ml"], []),
    ],
)
def test_modules_that_are_not_converted_stay_as_they_are(listed, kept, tmp_path):
    change(tmp_path / "model", "bitnet-online", {"modules_to_not_convert": listed})
    with open_source(tmp_path / "model") as source:
        found = [name for name in linears(source) if source.quantized(name) is None]
        assert found == [f"model.layers.0.{module}.weight" for module in kept]


def change(folder, golden, settings=None, config=None, **parts):
    """Copy a golden folder with other settings or other parts of its first query matrix; a part of None is left out."""
    shutil.copytree(TERNARY / golden, folder)
    values = json.loads((folder / "config.json").read_text()) | (config or {})
    values["quantization_config"] |= settings or {}
    (folder / "config.json").write_text(json.dumps(values))
    tensors = read_stored(folder)
    for name, part in parts.items():
        place = f"{QUERY}{name.removeprefix('weight')}" if name.startswith("weight") else name.replace("__", ".")
        tensors[place] = part(tensors[place]) if callable(part) else part
    save_file(
        {name: tensor.copy() for name, tensor in tensors.items() if tensor is not None}, folder / "model.safetensors"
    )


SUB_NORM = "model__layers__0__self_attn__attn_sub_norm__weight"
LIES = {
    "no-scale": ({"weight_scale": None}, {}, "q_proj: it has no weight_scale: the checkpoint is incomplete"),
    "no-codes": ({"weight": None}, {}, "q_proj: it has no weight: the checkpoint is incomplete"),
    "rows": ({"weight": lambda old: old[:-1]}, {}, r"its weight has shape \[15, 64\], .* call for \[16, 64\]"),
    "unpacked": ({"weight": lambda old: np.tile(old, (4, 1))}, {}, r"its weight has shape \[64, 64\]"),
    "type": ({"weight": lambda old: old.astype(np.float32)}, {}, "its weight is 'F32', not U8"),
    "scales": ({"weight_scale": np.ones(2, np.float32)}, {}, r"its weight_scale has shape \[2\]"),
    "integer-scale": ({"weight_scale": np.ones(1, np.uint8)}, {}, "its weight_scale is 'U8'"),
    "class": ({}, {"linear_class": "sublinear"}, "its linears are of class 'sublinear'"),
    "mode": ({}, {"linear_class": "autobitlinear", "quantization_mode": "off"}, "'off'"),
    "norm": ({}, {"use_rms_norm": True}, r"norms the inputs of each linear \(use_rms_norm\), which is not supported"),
    "sub-norm": ({SUB_NORM: np.ones(64, np.float32)}, {}, "attn_sub_norm.weight' is not part of a llama model"),
    "patterns": (
        {},
        {"linear_class": "autobitlinear", "quantization_mode": "online", "modules_to_not_convert": [".*(a+)+$"]},
        "modules_to_not_convert is not a list of names",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_bitnet_folder_that_headers_show_to_be_wrong_is_refused_when_it_is_opened(tmp_path, lie):
    parts, settings, message = LIES[lie]
    change(tmp_path / "model", "bitnet", settings, **parts)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_source(tmp_path / "model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("scale", "message"), [(np.nan, "not finite"), (np.inf, "not finite"), (0, "is 0, which"), (1e-38, "be divided by")]
)
def test_a_scale_that_makes_no_sense_is_refused_when_it_is_read(tmp_path, scale, message):
    change(tmp_path / "model", "bitnet", weight_scale=np.array([scale], np.float32))
    with open_source(tmp_path / "model") as source:
        for read in (source.load, source.levels):
            with pytest.raises(CheckpointError, match=message):
                read(QUERY)


def test_the_architecture_of_bitnet_itself_is_refused_by_name(tmp_path):
    change(tmp_path / "model", "bitnet", config={"model_type": "bitnet"})
    with pytest.raises(UnsupportedModelError, match="bitnet"):
        open_source(tmp_path / "model")
