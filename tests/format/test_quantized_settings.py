"""What checkpoint folders say of how others quantized them: under which names, in which files, or not at all."""

import json
import re

import numpy as np
import pytest
from quantized_folders import awq_gemm_parts, awq_gemv_parts, write_folder, write_gptq
from samples import GOLDEN
from test_quantized_checkpoint import GPTQ, QUERY, change, check_exact
from test_quantized_layouts import AWQ, drawing

from elutq_formats.checkpoint import Checkpoint
from elutq_formats.errors import CheckpointError, UnsupportedModelError
from elutq_formats.open_source import open_source
from elutq_formats.quantized_checkpoint import LAYOUTS
from elutq_formats.quantized_settings import QuantizationSettings


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "model"


def change_settings(folder, *left_out, **changes):
    """Change the quantization_config, and leave entries out."""
    config = json.loads((folder / "config.json").read_text())
    settings = config["quantization_config"] | changes
    config["quantization_config"] = {key: settings[key] for key in settings if key not in left_out}
    (folder / "config.json").write_text(json.dumps(config))


def refused(folder, kind=UnsupportedModelError):
    with pytest.raises(kind) as error:
        open_source(folder)
    return str(error.value)


def test_a_version_of_gptq_has_two_names(folder, rng):
    weights = write_gptq(folder, rng, checkpoint_format="gptq_v2")
    change_settings(folder, "checkpoint_format", format="gptq_v2")
    check_exact(folder, weights, [(4, 64, "even16c")])
    change_settings(folder, checkpoint_format="gptq_v2")
    check_exact(folder, weights, [(4, 64, "even16c")])
    change_settings(folder, checkpoint_format="gptq")
    assert "its checkpoint_format is 'gptq', but its format is 'gptq_v2'" in refused(folder)


def test_a_version_of_awq_has_three_names(folder, rng):
    weights = write_folder(folder, rng, AWQ | {"version": "gemv"}, drawing(rng), awq_gemv_parts)
    change_settings(folder, "version", checkpoint_format="gemv")
    check_exact(folder, weights, [(4, 64, "even16c")])
    change_settings(folder, "checkpoint_format", format="gemv")
    check_exact(folder, weights, [(4, 64, "even16c")])
    change_settings(folder, version="GEMM")
    assert "its version is 'gemm', but its format is 'gemv'" in refused(folder)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("gptq", {"format": "marlin"}, "its format is 'marlin', and gptq and gptq_v2 are read"),
        ("gptq", {"checkpoint_format": "gptq", "format": 2}, "format is 2, and not a word"),
        ("awq", {"format": "gemv_fast"}, "its format is 'gemv_fast', and gemm and gemv are read"),
        ("awq", {"version": "gemm", "format": "llm-awq"}, "its format is 'llm-awq', and gemm and gemv are read"),
        ("awq", {"version": "gemv", "backend": "llm-awq"}, "its backend is 'llm-awq'"),
    ],
)
def test_a_layout_that_is_not_read_is_named(method, settings, message):
    with pytest.raises(UnsupportedModelError, match=re.escape(message)):
        LAYOUTS[method](QuantizationSettings(method, settings))


@pytest.mark.parametrize("file", ["quantize_config.json", "quant_config.json"])
def test_settings_may_stand_in_a_file_of_their_own_alone(folder, rng, file):
    if file == "quantize_config.json":
        weights, settings = write_gptq(folder, rng), GPTQ
    else:
        weights = write_folder(folder, rng, AWQ, drawing(rng), awq_gemm_parts)
        settings = {"zero_point": True, "q_group_size": 64, "w_bit": 4, "version": "GEMM"}
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    assert "is part of a quantized matrix, and the configuration does not say how it is quantized" in refused(folder)
    settings = {key: value for key, value in settings.items() if key != "quant_method"}  # which neither file says
    (folder / file).write_text(json.dumps(settings))
    check_exact(folder, weights, [(4, 64, "even16c")])


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({"quantization": {"group_size": 64, "bits": 4}}, "MLX"),
        ({key: {"group_size": 64, "bits": 4} for key in ("quantization", "quantization_config")}, "MLX"),
        ({"quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}, "bitsandbytes"),
        ({"quantization_config": {"something": 4}}, "quantization_config"),
    ],
)
def test_a_method_that_the_settings_do_not_name_is_known_by_their_kind(folder, settings, method):
    write_gptq(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config | settings))
    message = refused(folder)
    assert f"the checkpoint is already quantized by '{method}', and of such gptq, awq, " in message
    assert message.endswith(" are read: use the original (unquantized) checkpoint")


@pytest.mark.parametrize("suffix", ["weight_scale", "scales", "input_scale"])
def test_parts_of_a_quantized_matrix_are_known_where_nothing_says_so(folder, suffix):
    write_folder(folder, np.random.default_rng(0), GPTQ, drawing(np.random.default_rng(0)), awq_gemm_parts, ("_proj",))
    change(folder, **{suffix: np.ones(1, np.float16)})
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    assert refused(folder) == (
        f"{folder}: tensor '{QUERY}.{suffix}' is part of a quantized matrix, and the configuration does not say how it "
        "is quantized: use the original (unquantized) checkpoint"
    )


@pytest.mark.parametrize(
    ("file", "contents", "said"),
    [
        ("config.json", {"hidden_size": "256"}, "hidden_size"),
        ("generation_config.json", {"temperature": "x"}, "temperature"),
    ],
)
def test_an_error_says_of_which_folder_it_is(folder, file, contents, said):
    folder.mkdir()
    for path in (GOLDEN / "qwen3").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    old = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps(old | contents))
    with pytest.raises(CheckpointError) as error:
        Checkpoint.open(folder)
    assert str(error.value).startswith(f"{folder}: ")
    assert said in str(error.value)


def test_an_error_of_a_quantized_matrix_says_of_which_folder_it_is(folder):
    write_gptq(folder)
    change(folder, scales=None)
    assert refused(folder, CheckpointError).startswith(f"{folder}: {QUERY}: it has no scales")
