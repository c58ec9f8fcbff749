"""AWQ, AutoRound and compressed-tensors, in folders written by the formats' descriptions: weights, levels, lies."""

import numpy as np
import pytest
from quantized_folders import (
    Drawn,
    awq_gemm_parts,
    awq_gemv_parts,
    compressed_parts,
    compressed_settings,
    gptq_parts,
    write_folder,
)
from test_quantized_checkpoint import QUERY, change, check_exact

from elutq_formats.errors import CheckpointError, UnsupportedModelError
from elutq_formats.open_source import open_source

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}
AUTO_ROUND = {"quant_method": "auto-round", "bits": 4, "group_size": 64, "data_type": "int", "act_bits": 16}


def drawing(rng, bits=4, group_size=64, symmetric=False, zeros=None):
    return lambda rows, columns: Drawn.draw(
        rng, rows, columns, bits, columns if group_size == -1 else group_size, symmetric, zeros
    )


@pytest.mark.parametrize("version", ["gemm", "gemv"])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_levels_of_awq_are_kept_to_the_last_bit(tmp_path, rng, version, group_size, monkeypatch):
    monkeypatch.setattr("elutq_formats.quantized_matrix.PIECE_WEIGHTS", 128 * 21)  # pieces end within words of rows
    settings = AWQ | {"version": version.upper(), "group_size": group_size}  # as AutoAWQ's first versions spelled it
    parts = {"gemm": awq_gemm_parts, "gemv": awq_gemv_parts}[version]
    weights = write_folder(tmp_path / "model", rng, settings, drawing(rng, 4, group_size), parts)
    check_exact(tmp_path / "model", weights, [(4, group_size, "even16c")])
    with open_source(tmp_path / "model") as source:
        rows = slice(3, 100, 9)
        np.testing.assert_array_equal(source.load(f"{QUERY}.weight", rows=rows), weights[f"{QUERY}.weight"][rows])


@pytest.mark.parametrize(
    ("packing", "offset"), [("auto_round", 0), ("auto_round:gptqmodel", 0), ("auto_round:auto_gptq", 1)]
)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_levels_of_autoround_are_kept_in_the_layout_of_gptq(tmp_path, rng, packing, offset, bits):
    settings = AUTO_ROUND | {"bits": bits, "packing_format": packing}
    draw = drawing(rng, bits, zeros=(offset, 2**bits - 1))
    weights = write_folder(tmp_path / "model", rng, settings, draw, lambda drawn: gptq_parts(drawn, offset))
    check_exact(tmp_path / "model", weights, [(bits, 64, "even16c")])


def test_levels_of_autoround_are_kept_in_the_layout_of_awq(tmp_path, rng):
    settings = AUTO_ROUND | {"packing_format": "auto_round:auto_awq"}
    weights = write_folder(tmp_path / "model", rng, settings, drawing(rng), awq_gemm_parts)
    check_exact(tmp_path / "model", weights, [(4, 64, "even16c")])


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("pads", [True, False])
def test_levels_of_compressed_tensors_are_kept_to_the_last_bit(tmp_path, rng, bits, symmetric, pads):
    weights = write_folder(
        tmp_path / "model",
        rng,
        compressed_settings(symmetric, bits),
        drawing(rng, bits, symmetric=symmetric),
        lambda drawn: compressed_parts(drawn, symmetric, pads),
    )
    check_exact(tmp_path / "model", weights, [(bits, 64, "even16" if symmetric else "even16c")])


def test_a_scale_for_each_row_makes_groups_of_ours(tmp_path, rng):
    draw = drawing(rng, 4, -1)
    settings = compressed_settings(group_size=None)
    weights = write_folder(tmp_path / "model", rng, settings, draw, compressed_parts)
    check_exact(tmp_path / "model", weights, [(4, 128, "even16c"), (4, 256, "even16c")])


def test_zero_points_of_old_compressed_tensors_are_signed_bytes(tmp_path, rng):
    def parts(drawn):
        return compressed_parts(drawn) | {"weight_zero_point": (drawn.zeros - 8).astype(np.int8)}

    weights = write_folder(tmp_path / "model", rng, compressed_settings(), drawing(rng), parts)
    check_exact(tmp_path / "model", weights, [(4, 64, "even16c")])


def test_an_order_of_columns_of_compressed_tensors_is_honoured_or_none(tmp_path, rng):
    folder = tmp_path / "model"
    weights = write_folder(folder, rng, compressed_settings(), drawing(rng), compressed_parts)
    change(folder, weight_g_idx=np.full(128, -1, np.int32))  # as it is where nothing was ordered
    check_exact(folder, weights, [(4, 64, "even16c")])
    group_of = rng.permutation(np.arange(128) // 64)
    drawn = drawing(rng)(128, 128)
    change(folder, **compressed_parts(drawn), weight_g_idx=group_of.astype(np.int32))
    with open_source(folder) as source:
        np.testing.assert_array_equal(source.load(f"{QUERY}.weight"), drawn.weights(group_of).astype(np.float32))
        with pytest.raises(UnsupportedModelError, match="act-order"):
            source.levels(f"{QUERY}.weight")


WRITERS = {
    "awq": (AWQ, awq_gemm_parts),
    "gemv": (AWQ | {"version": "gemv"}, awq_gemv_parts),
    "auto-round": (AUTO_ROUND | {"packing_format": "auto_round"}, lambda drawn: gptq_parts(drawn, 0)),
    "compressed-tensors": (compressed_settings(), compressed_parts),
}
LIES = [
    ("awq", {"qzeros": None}, {}, "q_proj: it has no qzeros"),
    ("awq", {"qweight": lambda old: old[1:]}, {}, r"its qweight has shape \[127, 16\], .* \[128, 16\]"),
    ("awq", {"qzeros": lambda old: old[:, 1:]}, {}, r"its qzeros has shape \[2, 15\]"),
    ("awq", {"scales": lambda old: old[:, 1:]}, {}, r"its scales has shape \[2, 127\]"),
    ("awq", {}, {"bits": 3}, "config.json says 3 bits, and the tensors are of 4"),
    ("awq", {}, {"group_size": 32}, "2 groups in 128 columns, and config.json has groups of 32"),
    ("awq", {}, {"version": "gemv_fast"}, "its version is 'gemv_fast', and gemm and gemv are read"),
    ("gemv", {"qweight": lambda old: old[:, 1:]}, {}, r"its qweight has shape \[128, 15\]"),
    ("gemv", {}, {"group_size": 8}, "its qzeros has no room for 32 groups of 8"),
    ("gemv", {"scales": lambda old: old[:, 1:]}, {}, r"its scales has shape \[128, 15\]"),
    ("auto-round", {}, {"packing_format": "auto_round:nv_fp4"}, "its packing_format is 'auto_round:nv_fp4', and"),
    ("auto-round", {}, {"act_bits": 8}, "its activations are quantized too"),
    ("auto-round", {}, {"act_bits": "16"}, "config.json's act_bits is '16', and not a whole number"),
    ("auto-round", {}, {"extra_config": {"model.layers.0.mlp": {"act_bits": 8}}}, "its activations are quantized too"),
    ("auto-round", {}, {"data_type": "mx_fp"}, "its levels are 'mx_fp', and whole numbers"),
    ("auto-round", {}, {"rotation_config": {"a": 1}}, "its inputs are rotated at run time"),
    ("compressed-tensors", {"weight_scale": None}, {}, "it has no weight_scale"),
    ("compressed-tensors", {"weight_shape": None}, {}, "it has no weight_shape"),
    ("compressed-tensors", {"weight_zero_point": None}, {}, "it has no weight_zero_point, though .* asymmetric"),
    (
        "compressed-tensors",
        {"weight_zero_point": lambda old: old[1:]},
        {},
        r"its weight_zero_point has shape \[15, 2\]",
    ),
    ("compressed-tensors", {"weight_packed": lambda old: old[1:]}, {}, r"its weight_packed has shape \[127, 16\]"),
    (
        "compressed-tensors",
        {"weight_packed": np.ones((128, 32), np.int32)},
        {},
        "8 bits a weight in .*, and config.json says 4: 2",
    ),
    (
        "compressed-tensors",
        {"weight_scale": lambda old: old[:, [0, 1, 1]]},
        {},
        "3 groups, which do not divide its 128",
    ),
    ("compressed-tensors", {}, {"config_groups": [1]}, r"config_groups is \[1\], and not an object"),
    ("compressed-tensors", {}, {"config_groups": {"a": 1}}, "a group of its config_groups is 1, and not an object"),
    ("compressed-tensors", {}, compressed_settings(weights="x"), "and not an object with weights"),
    ("compressed-tensors", {}, {"format": "float-quantized"}, "its format is 'float-quantized', and pack-quantized is"),
    ("compressed-tensors", {}, compressed_settings(format="int-quantized"), "its format is 'int-quantized'"),
    ("compressed-tensors", {}, compressed_settings(input_activations={"num_bits": 8}), "activations are quantized too"),
    ("compressed-tensors", {}, compressed_settings(weights={"type": "float"}), "its levels are floats"),
    (
        "compressed-tensors",
        {},
        compressed_settings(bits=3),
        "4 bits a weight in .*, and config.json says 3",
    ),
    (
        "compressed-tensors",
        {},
        compressed_settings(bits=10**30),
        f"config.json's num_bits is {10**30}, and not",
    ),
    ("compressed-tensors", {}, compressed_settings(group_size=32), "it has groups of 64, and config.json says 32"),
    ("compressed-tensors", {}, compressed_settings(group_size=64.0), "config.json's group_size is 64.0, and not a"),
    ("compressed-tensors", {}, compressed_settings("no"), "config.json's symmetric is 'no', and not true or false"),
    ("compressed-tensors", {}, {"transform_config": {"R1": {}}}, "it has a transform_config"),
    ("compressed-tensors", {}, {"kv_cache_scheme": {"num_bits": 8}}, "it has a kv_cache_scheme"),
    ("compressed-tensors", {}, {"sparsity_config": {"format": "sparse-24-bitmask"}}, "its weights are sparse"),
]


@pytest.mark.parametrize(("method", "parts", "settings", "message"), LIES)
def test_what_headers_show_to_be_wrong_is_refused_when_it_is_opened(tmp_path, rng, method, parts, settings, message):
    written, writer = WRITERS[method]
    write_folder(tmp_path / "model", rng, written, drawing(rng), writer)
    change(tmp_path / "model", settings, **parts)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_source(tmp_path / "model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "parts", "message"),
    [
        (
            "awq",
            {"scales": lambda old: old * np.float16(np.nan)},
            "q_proj: its scales holds a scale that is not finite",
        ),
        ("gemv", {"scales": lambda old: old * np.float16(np.nan)}, "not finite"),
        ("compressed-tensors", {"weight_scale": lambda old: old * np.float16(np.nan)}, "not finite"),
        ("compressed-tensors", {"weight_shape": lambda old: old[::-1] + 1}, r"its weight_shape says \[129, 129\], and"),
        ("compressed-tensors", {"weight_g_idx": np.arange(128, dtype=np.int32)}, "names a group that is none of its 2"),
    ],
)
def test_what_contents_show_to_be_wrong_is_refused_when_they_are_read(tmp_path, rng, method, parts, message):
    settings, writer = WRITERS[method]
    write_folder(tmp_path / "model", rng, settings, drawing(rng), writer)
    change(tmp_path / "model", **parts)
    with open_source(tmp_path / "model") as source:
        for read in (source.load, source.levels):
            with pytest.raises(CheckpointError, match=message):
                read(f"{QUERY}.weight")
