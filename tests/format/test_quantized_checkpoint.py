"""Checkpoints that others have quantized, in folders written by the formats' descriptions: weights, levels, lies."""

import json
import re

import numpy as np
import pytest
from quantized_folders import Drawn, gptq_parts, write_folder, write_gptq
from safetensors.numpy import load_file, save_file

from elutq_formats.errors import CheckpointError, UnsupportedModelError
from elutq_formats.even_levels import EvenLevels, LevelsFromMinima
from elutq_formats.open_source import open_source
from elutq_formats.packed_words import unpack_stream
from elutq_formats.quantized_checkpoint import LAYOUTS
from elutq_formats.quantized_settings import QuantizationSettings

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False, "sym": False}
QUERY = "model.layers.0.self_attn.q_proj"


def check_exact(folder, weights, kinds):
    """Check that weights and levels are, to the last bit, what was drawn, in blocks of the kinds expected."""
    found = set()
    with open_source(folder) as source:
        for name, expected in weights.items():
            np.testing.assert_array_equal(source.load(name), expected.astype(np.float32))
            levels = source.levels(name)
            assert (levels is None) == (source.quantized(name) is None)
            if levels is not None:
                np.testing.assert_array_equal(levels.dequantize(), expected.astype(np.float32))
                found.add((levels.bits, levels.group_size, levels.kind.name))
    assert found == set(kinds)


def change(folder, settings=None, **parts):
    """Change parts of one matrix, by suffix (None removes it), and the quantization_config."""
    tensors = load_file(folder / "model.safetensors")
    for suffix, part in parts.items():
        old = tensors.pop(f"{QUERY}.{suffix}", None)
        if part is not None:
            tensors[f"{QUERY}.{suffix}"] = np.ascontiguousarray(part(old) if callable(part) else part)
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= settings or {}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_levels_of_gptq_are_kept_to_the_last_bit(tmp_path, rng, bits, version, symmetric):
    weights = write_gptq(tmp_path / "model", rng, bits=bits, checkpoint_format=version, sym=symmetric)
    check_exact(tmp_path / "model", weights, [(bits, 64, "even16" if symmetric else "even16c")])


def test_the_same_in_pytorchs_format_is_read_alike(tmp_path, rng):
    torch = pytest.importorskip("torch", reason="pytorch_model.bin needs torch: pip install 'elutq[torch]'")
    weights = write_gptq(tmp_path / "model", rng)
    stored = {
        name: torch.from_numpy(part) for name, part in load_file(tmp_path / "model" / "model.safetensors").items()
    }
    torch.save(stored, tmp_path / "model" / "pytorch_model.bin")
    (tmp_path / "model" / "model.safetensors").unlink()
    check_exact(tmp_path / "model", weights, [(4, 64, "even16c")])


GATE_UP = {"mlp.gate_proj": "mlp.gate_up_proj", "mlp.up_proj": "mlp.gate_up_proj"}
QKV = {f"self_attn.{part}_proj": "self_attn.qkv_proj" for part in "qkv"}
SHARED = {"mlp.gate_proj": "shared_mlp.input_linear", "mlp.up_proj": "shared_mlp.input_linear"}


@pytest.mark.parametrize(
    ("config", "stored_as"),
    [
        ({"model_type": "phi3", "pad_token_id": 0}, QKV | GATE_UP),
        ({"model_type": "glm4", "head_dim": 32, "partial_rotary_factor": 0.5}, GATE_UP),
        (
            {"model_type": "granitemoehybrid", "shared_intermediate_size": 256, "layer_types": ["attention"] * 2}
            | {"num_local_experts": 0, "position_embedding_type": "rope"},
            SHARED | {"mlp.down_proj": "shared_mlp.output_linear"},
        ),
    ],
    ids=lambda value: value.get("model_type"),
)
def test_rows_of_quantized_linears_that_are_several_in_one_keep_their_levels(config, stored_as, tmp_path, rng):
    folder, settings = tmp_path / "model", GPTQ
    weights = write_folder(
        folder,
        rng,
        settings,
        lambda *shape: Drawn.draw(rng, *shape, 4, 64, zeros=(1, 15)),
        gptq_parts,
        config=config,
        stored_as=stored_as,
    )
    stored = load_file(folder / "model.safetensors")
    assert not any(f"model.layers.0.{linear}.qweight" in stored for linear in stored_as)
    ours = [name for name in weights if any(linear in name for linear in stored_as)]
    with open_source(folder) as source:
        for name in ours:
            np.testing.assert_array_equal(source.load(name), weights[name].astype(np.float32))
            np.testing.assert_array_equal(
                source.load(name, rows=slice(5, 60, 3)), weights[name][5:60:3].astype(np.float32)
            )
            levels = source.levels(name)
            np.testing.assert_array_equal(levels.dequantize(), weights[name].astype(np.float32))
            assert (levels.bits, levels.group_size) == (4, 64)
    assert len(ours) == 2 * len(stored_as)
    fused = next(iter(stored_as.values()))
    cut = {name: part[..., :-8] if fused in name and name.endswith("scales") else part for name, part in stored.items()}
    save_file({name: np.ascontiguousarray(part) for name, part in cut.items()}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=fused):
        open_source(folder)


@pytest.mark.parametrize(("group_size", "found"), [(-1, [128, 256]), (32, [32]), (128, [128])])
def test_groups_are_the_checkpoints_or_the_largest_of_ours_within_them(tmp_path, rng, group_size, found):
    weights = write_gptq(tmp_path / "model", rng, group_size=group_size)
    check_exact(tmp_path / "model", weights, [(4, size, "even16c") for size in found])


def test_bits_and_groups_may_differ_between_matrices_where_the_settings_say_so(tmp_path, rng):
    def draw(rows, columns):
        return Drawn.draw(rng, rows, columns, *((2, 32) if columns == 256 else (4, 64)), zeros=(1, 3))

    settings = GPTQ | {"dynamic": {r"+:.*\.down_proj": {"bits": 2, "group_size": 32}}}
    weights = write_folder(tmp_path / "model", rng, settings, draw, gptq_parts)
    check_exact(tmp_path / "model", weights, [(4, 64, "even16c"), (2, 32, "even16c")])
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    del config["quantization_config"]["dynamic"]
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match=r"config\.json says 4 bits, and the tensors are of 2"):
        open_source(tmp_path / "model")


def test_linears_that_are_not_quantized_are_ordinary_tensors(tmp_path, rng):
    weights = write_folder(
        tmp_path / "model", rng, GPTQ, lambda *shape: Drawn.draw(rng, *shape, 4, 64, True), gptq_parts, ("k_proj",)
    )
    check_exact(tmp_path / "model", weights, [(4, 64, "even16")])


def test_zero_points_of_version_1_give_back_what_a_writer_borrowed(tmp_path, rng):
    """GPTQModel takes one off the packed words as a whole: a zero point of 0 borrows from the next."""
    zeros = [3, 0, 9, 15, 0, 0, 1, 8]
    folder = tmp_path / "model"
    write_gptq(folder, rng)
    word = sum(zero << 4 * place for place, zero in enumerate(zeros)) - 0x11111111
    change(folder, qzeros=np.full((2, 16), word, dtype=np.int64).astype(np.uint32).view(np.int32))
    with open_source(folder) as source:
        matrix = source.quantized(f"{QUERY}.weight")
        assert matrix.open_rows()(slice(0, 8)).offsets[:, 0].tolist() == zeros


def test_order_of_activations_has_weights_but_no_levels(tmp_path, rng):
    folder = tmp_path / "model"
    group_of = rng.permutation(np.arange(128) // 64)
    drawn = Drawn.draw(rng, 128, 128, 4, 64, zeros=(1, 15))
    write_gptq(folder, rng, desc_act=True)
    change(folder, **gptq_parts(drawn, 1, group_of))
    with open_source(folder) as source:
        np.testing.assert_array_equal(source.load(f"{QUERY}.weight"), drawn.weights(group_of).astype(np.float32))
        with pytest.raises(
            UnsupportedModelError, match=r"q_proj cannot be imported: .*act-order.*elutq quantize makes"
        ):
            source.levels(f"{QUERY}.weight")


def test_a_bias_of_zeros_that_the_model_has_not_is_left_out_and_another_refused(tmp_path, rng):
    folder = tmp_path / "model"
    write_gptq(folder, rng)
    change(folder, bias=np.zeros(128, np.float16))
    open_source(folder).close()
    change(folder, bias=np.ones(128, np.float16))
    with pytest.raises(UnsupportedModelError, match=r"q_proj\.bias' is not part of a llama model"):
        open_source(folder)


def test_rows_of_any_step_are_those_of_the_whole_on_any_number_of_threads(tmp_path, rng, monkeypatch):
    monkeypatch.setattr("elutq_formats.quantized_matrix.PIECE_WEIGHTS", 128 * 7)
    weights = write_gptq(tmp_path / "model", rng)
    name = f"{QUERY}.weight"
    with open_source(tmp_path / "model") as source:
        for rows in (slice(3, 90), slice(5, 5), slice(1, 128, 9), slice(None)):
            np.testing.assert_array_equal(
                source.load(name, lambda fill, places: [fill(place) for place in reversed(places)], rows),
                weights[name][rows].astype(np.float32),
            )
        np.testing.assert_array_equal(source.levels(name).dequantize(), weights[name].astype(np.float32))


LIES = {
    "no-zeros": ({"qzeros": None}, {}, "q_proj: it has no qzeros: the checkpoint is incomplete"),
    "no-scales": ({"scales": None}, {}, "it has no scales"),
    "no-codes": ({"qweight": None}, {}, "it has no qweight"),
    "no-order": ({"g_idx": None}, {"desc_act": True}, "it has no g_idx, though config.json says desc_act"),
    "codes": ({"qweight": lambda old: old[:, :-8]}, {}, r"its qweight has shape \[16, 120\], .* \[16, 128\]"),
    "flat": ({"qweight": lambda old: old.reshape(-1)}, {}, r"its qweight has shape \[2048\]"),
    "empty": ({"qweight": lambda old: old[:0]}, {}, r"its qweight has shape \[0, 128\]"),
    "short": ({"qweight": lambda old: old[:-1]}, {}, "its qweight has 15 rows of words, which are no whole bits for"),
    "dynamic": ({}, {"dynamic": "x"}, "config.json's dynamic is 'x', and not an object"),
    "extra": ({}, {"extra_config": [1]}, r"config.json's extra_config is \[1\], and not an object"),
    "zeros": ({"qzeros": lambda old: old[:1]}, {}, r"its qzeros has shape \[1, 16\]"),
    "scales": ({"scales": lambda old: old[:, :-1]}, {}, r"its scales has shape \[2, 127\]"),
    "groups": ({"scales": lambda old: old[:1]}, {}, "1 groups in 128 columns, and config.json has groups of 64"),
    "type": ({"qweight": lambda old: old.astype(np.int64)}, {}, "its qweight is 'I64', not I32"),
    "float": ({"scales": lambda old: old.astype(np.float64)}, {}, "its scales is 'F64', not F16 or BF16 or F32"),
    "order": ({"g_idx": lambda old: old[:-1]}, {}, r"its g_idx has shape \[127\]"),
    "bits": ({}, {"bits": 3}, "config.json says 3 bits, and the tensors are of 4"),
    "group-size": ({}, {"group_size": "64"}, "config.json's group_size is '64', and not a whole number from 1 to"),
    "8-bits": ({"qweight": np.ones((32, 128), np.int32)}, {"bits": 8}, "8 bits a weight: 2, 3, 4 are read"),
    "format": (
        {},
        {"checkpoint_format": "bitblas"},
        "its checkpoint_format is 'bitblas', and gptq and",
    ),
    "marlin": ({}, {"is_marlin_format": True}, "gptq and gptq_v2 are read"),
    "method": ({}, {"quant_method": "aqlm"}, r"already quantized by 'aqlm', and of such gptq.* are read: use the"),
    "twice": ({"weight": np.ones((128, 128), np.float16)}, {}, "q_proj is stored twice"),
    "more": ({"scale_of_something": np.ones(3, np.float16)}, {}, "scale_of_something' is not part of a llama model"),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_headers_show_to_be_wrong_is_refused_when_it_is_opened(tmp_path, lie):
    parts, settings, message = LIES[lie]
    write_gptq(tmp_path / "model")
    change(tmp_path / "model", settings, **parts)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_source(tmp_path / "model")
    assert "\n" not in str(caught.value)


NO_NUMBERS = [10**30, 2**31, 0, -2, True, 64.0, float("nan"), "64", [64]]


@pytest.mark.parametrize("key", ["bits", "w_bit", "group_size", "q_group_size"])
@pytest.mark.parametrize("value", NO_NUMBERS)
@pytest.mark.parametrize("place", ["all", "dynamic", "extra_config"])
def test_a_number_of_the_settings_that_is_none_or_of_absurd_size_is_named(key, value, place):
    values = {key: value} if place == "all" else {place: {r"-:.*\.layers\.0": {}, ".*down_proj": {key: value}}}
    settings = QuantizationSettings("gptq", GPTQ | values)
    with pytest.raises(UnsupportedModelError) as caught:
        settings.check()
    assert f"config.json's {key} is {value!r:.40}, and not a whole number from 1 to 2147483647" in str(caught.value)
    QuantizationSettings("gptq", GPTQ | {"group_size": -1, "q_group_size": None, "dynamic": {"a": False}}).check()


@pytest.mark.parametrize("key", ["desc_act", "sym", "zero_point", "is_marlin_format", "use_rms_norm"])
@pytest.mark.parametrize("value", ["false", 0, [], {}])
def test_a_flag_of_the_settings_that_is_none_is_named(key, value):
    with pytest.raises(UnsupportedModelError, match=re.escape(f"'s {key} is {value!r}, and not true or false")):
        QuantizationSettings("gptq", GPTQ | {key: value}).check()


@pytest.mark.parametrize("value", [1, 2.0, True, ["gptq"], {}])
@pytest.mark.parametrize(
    ("method", "key"),
    [
        ("gptq", "checkpoint_format"),
        ("awq", "version"),
        ("auto-round", "packing_format"),
        ("auto-round", "data_type"),
        ("compressed-tensors", "format"),
        ("bitnet", "linear_class"),
        ("bitnet", "quantization_mode"),
    ],
)
def test_a_version_that_is_no_word_is_named(method, key, value):
    with pytest.raises(UnsupportedModelError, match=re.escape(f"'s {key} is {value!r}, and not a word")):
        LAYOUTS[method](QuantizationSettings(method, {key: value}))


def test_what_is_wrong_in_quantize_config_is_not_said_of_config(tmp_path):
    folder = tmp_path / "model"
    write_gptq(folder)
    values = json.loads((folder / "config.json").read_text())
    settings = values.pop("quantization_config") | {"group_size": 10**30}
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "quantize_config.json").write_text(json.dumps(settings))
    with pytest.raises(UnsupportedModelError, match=f"quantize_config.json's group_size is {10**30}, and not"):
        open_source(folder)


@pytest.mark.parametrize("settings", [True, "gptq", [4]])
def test_settings_that_are_no_object_are_refused(tmp_path, settings):
    write_gptq(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": settings}))
    with pytest.raises(CheckpointError, match=r"config.json's quantization_config is .*, and not an object"):
        open_source(tmp_path / "model")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"scales": lambda old: old * np.float16(np.nan)}, "q_proj: its scales holds a scale that is not finite"),
        ({"scales": lambda old: old * np.float32(np.inf)}, "not finite"),
        ({"g_idx": lambda old: old + 1}, "q_proj: its g_idx names a group that is none of its 2"),
        ({"g_idx": lambda old: old - 1}, "none of its 2"),
    ],
)
def test_what_contents_show_to_be_wrong_is_refused_when_they_are_read(tmp_path, parts, message):
    write_gptq(tmp_path / "model")
    with np.errstate(invalid="ignore"):
        change(tmp_path / "model", **parts)
    with open_source(tmp_path / "model") as source:
        for read in (source.load, source.levels):
            with pytest.raises(CheckpointError, match=message):
                read(f"{QUERY}.weight")


def even(scales, zeros, bits=4, codes=None):
    """Two rows in two groups of 32."""
    scales, zeros = (np.broadcast_to(np.asarray(values, np.float32), (2, 2)) for values in (scales, zeros))
    drawn = np.arange(128).reshape(2, 64) % 2**bits if codes is None else codes
    return EvenLevels(scales, zeros, drawn.astype(np.uint8), bits, np.arange(64) // 32)


def test_a_negative_step_counts_codes_from_the_other_end():
    levels = even([[0.5, -0.25], [-0.125, -1.0]], [[3, 8], [0, 15]])
    np.testing.assert_array_equal(levels.to_hlq().dequantize(), levels.dequantize())


def test_a_step_that_half_precision_rounds_is_off_by_that_alone():
    exact, rounded = even(2.0**-24 * 3, 7), even(np.float32(0.1), 7)  # odd and subnormal over two; more than 11 bits
    for levels, bound in ((exact, 1 / 3), (rounded, 2.0**-12)):
        weights = levels.dequantize()
        error = np.abs(levels.to_hlq().dequantize() - weights).max() / np.abs(weights).max()
        assert 0 < error <= bound * 1.0001


def from_minima(scales, minima):
    """The same codes, each group with a minimum."""
    levels = even(scales, 0)
    minima = np.broadcast_to(np.asarray(minima, np.float32), (2, 2))
    return LevelsFromMinima(levels.scales, minima, levels.codes, 4, levels.group_of)


def test_minima_make_free_centers_that_half_precision_rounds(rng):
    exact = from_minima([[0.5, -0.25], [0.125, 0.0]], [[-3.75, 2.0], [0.0, 0.375]])
    np.testing.assert_array_equal(exact.to_hlq().dequantize(), exact.dequantize())
    assert exact.to_hlq().kind.name == "free16"
    drawn = from_minima(*rng.uniform(-1, 1, (2, 2, 2)).astype(np.float16))
    error = np.abs(drawn.to_hlq().dequantize() - drawn.dequantize())
    centers = drawn.offsets + 7.5 * drawn.scales
    assert 0 < error.max() <= 2.0**-11 * np.abs(centers).max()


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (from_minima(20000.0, -150000), "a scale of 20000: at 4 bits"),
        (from_minima(1.0, 65500), "a center of 65507.5: half precision holds those up to 65504"),
        (even(20000.0, 7), "a scale of 20000: at 4 bits half precision holds those up to 16376"),
        (even(1.0, 7.3), r"a zero point of 7\.3"),
        (even(1.0, 200), "a zero point of 200"),
    ],
)
def test_levels_that_no_blocks_hold_are_refused(levels, message):
    with pytest.raises(UnsupportedModelError, match=message):
        levels.to_hlq()


def test_codes_may_cross_words_and_end_within_one():
    codes = np.arange(70).reshape(35, 2) % 8
    stream = sum(int(code) << 3 * place for place, code in enumerate(codes[:, 1]))
    words = np.array([[0, stream >> 32 * place & 0xFFFFFFFF] for place in range(4)], dtype=np.uint32)
    np.testing.assert_array_equal(unpack_stream(words, 3, 35)[:, 1], codes[:, 1])
