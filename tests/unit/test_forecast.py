"""The forecast of memory: above what real runs take, whatever the threads; and what is said where it is too much."""

import json
import logging
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from foreign_gguf import describe
from gguf import GGMLQuantizationType
from safetensors.numpy import save_file

from elutq_cli.pipeline.compute.backend import numpy_backend
from elutq_cli.pipeline.recipe import Plan, Recipe
from elutq_cli.pipeline.run import estimate, preparation
from elutq_cli.pipeline.run.estimate import estimate_work
from elutq_cli.pipeline.run.forecast import Forecast, shown_time
from elutq_cli.pipeline.run.peak_memory import PROCESS_BYTES, THREAD_BYTES
from elutq_cli.shapes import SHAPES, named_shape
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.config import ModelConfig
from elutq_formats.errors import ElutqError
from elutq_formats.expert_names import expert_names

TESTS = Path(__file__).parent.parent
NOVELS, SAMPLED = TESTS / "data" / "novels-6m", TESTS / "data" / "sampled.txt"


def forecast(shape, n_tokens=1 << 15, threads=2, **options):
    config = named_shape(shape)
    recipe = Recipe(**options)
    return Forecast.make(config, Plan.make(config, recipe), recipe, n_tokens, threads)


def bound(shape, **options):
    return forecast(shape, **options).memory_bytes


# ---- against measured peaks


def first_block(folder, vocab_size=None):
    """Write the first block of the bundled model, with room for longer sequences, and for more tokens."""
    shutil.copy(NOVELS / "tokenizer.json", folder)
    config = json.loads((NOVELS / "config.json").read_text())
    config |= {"num_hidden_layers": 1, "max_position_embeddings": 4096}
    config["vocab_size"] = vocab_size or config["vocab_size"]
    (folder / "config.json").write_text(json.dumps(config))
    with Checkpoint.open(NOVELS) as checkpoint:
        names = [name for name in checkpoint.names if ".layers." not in name or ".layers.0." in name]
        weights = {name: checkpoint.load(name) for name in names}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in weights:
            weights[name] = np.resize(weights[name], (config["vocab_size"], config["hidden_size"]))
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return first_block(tmp_path_factory.mktemp("small"))


def measure(folder, output, threads, texts=(SAMPLED,), **options):
    command = [sys.executable, TESTS / "peak_of_run.py", folder, output, threads, json.dumps(options), *texts]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout).values()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells how much memory is not mapped files")
@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.2, "1 seconds"),
        (119, "119 seconds"),
        (120, "2 minutes"),
        (7199, "120 minutes"),
        (7200, "2.0 hours"),
        (172_799, "48.0 hours"),
        (172_800, "2.0 days"),
        (269_040, "3.1 days"),
    ],
)
def test_a_time_is_told_in_the_largest_unit_that_fits(seconds, shown):
    assert shown_time(seconds) == shown


@pytest.mark.parametrize(
    ("threads", "options"),
    [
        (1, {"texts": ()}),
        (2, {"method": "correct", "num_samples": 12, "sequence_length": 512}),
        (8, {"method": "allocate", "num_samples": 4, "sequence_length": 2048}),
        (8, {"method": "refine", "num_samples": 8, "sequence_length": 512, "rotate": True, "output_bits": 16}),
    ],
    ids=["weights only", "calibrated", "long sequences", "rotated"],
)
def test_measured_peaks_are_below_the_forecast(small, tmp_path, threads, options):
    peak, above = measure(small, tmp_path / "out.gguf", threads, **options)
    print(f"peak {peak / 1e6:.0f} MB, forecast {above / 1e6:.0f}")
    assert peak < above < PROCESS_BYTES + 4 * peak


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells how much memory is not mapped files")
@pytest.mark.parametrize("threads", [2, 8])
def test_measured_peaks_of_a_long_vocabulary_are_below_the_forecast(tmp_path, threads):
    """49,152 tokens: 128 rows of their logits are less than malloc maps by themselves, and so leave holes."""
    wide = first_block(tmp_path, 49152)
    options = {"method": "allocate", "num_samples": 16, "sequence_length": 512}
    peak, above = measure(wide, tmp_path / "out.gguf", threads, **options)
    print(f"peak {peak / 1e6:.0f} MB, forecast {above / 1e6:.0f}")
    assert peak < above < PROCESS_BYTES + 4 * peak


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells how much memory is not mapped files")
def test_measured_peaks_of_a_gguf_source_are_below_the_forecast(small, tmp_path):
    path = describe(small).quantized(GGMLQuantizationType.Q4_1).write(tmp_path / "model.gguf")
    peak, above = measure(path, tmp_path / "out.gguf", 8, texts=())
    print(f"peak {peak / 1e6:.0f} MB, forecast {above / 1e6:.0f}")
    assert peak < above < PROCESS_BYTES + 4 * peak


def one_mixture(folder, family, **changes):
    """Write a layer of a mixture of experts with random weights, in float16."""
    shutil.copy(TESTS / "data" / "golden" / family / "tokenizer.json", folder)
    config = json.loads((TESTS / "data" / "golden" / family / "config.json").read_text())
    config |= {"num_hidden_layers": 1, "intermediate_size": 64, "use_sliding_window": False}
    config |= {"mlp_only_layers": [], "decoder_sparse_step": 1} | changes
    (folder / "config.json").write_text(json.dumps(config))
    rng, weights = np.random.default_rng(0), {}
    for name, shape in ModelConfig.from_huggingface(config).tensor_shapes().items():
        names = expert_names(name, shape[0]) if len(shape) == 3 else [name]
        row = (0.05 * rng.standard_normal(shape[-1])).astype(np.float16)
        one = np.ones(shape, np.float16) if "norm" in name else np.tile(row, (*shape[-2:-1], 1)).reshape(shape[-2:])
        stored = one[None] if name.endswith("shared_expert_gate.weight") else one
        weights |= dict.fromkeys(names, stored)
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells how much memory is not mapped files")
@pytest.mark.parametrize("is_gguf", [False, True], ids=["safetensors", "gguf"])
def test_measured_peaks_of_wide_experts_are_below_the_forecast(tmp_path, is_gguf):
    wide = {"hidden_size": 512, "head_dim": 64, "num_experts": 2, "num_experts_per_tok": 1}
    path = one_mixture(tmp_path, "qwen3-moe", moe_intermediate_size=12288, **wide)
    if is_gguf:
        path = describe(path).quantized(GGMLQuantizationType.Q8_0).write(tmp_path / "model.gguf")
    peak, above = measure(path, tmp_path / "out.gguf", 1, texts=(), group_size=32)
    print(f"peak {peak / 1e6:.0f} MB, forecast {above / 1e6:.0f}")
    assert peak < above < PROCESS_BYTES + 4 * peak


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells how much memory is not mapped files")
def test_measured_peaks_of_a_shared_expert_do_not_grow_with_the_text(tmp_path):
    small = {"hidden_size": 256, "num_experts": 4, "num_experts_per_tok": 1, "max_position_embeddings": 512}
    widths = {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
    path, text = one_mixture(tmp_path, "qwen2-moe", **small, **widths), tmp_path / "long.txt"
    text.write_text(SAMPLED.read_text() * 8)
    options = {"method": "refine", "group_size": 32, "sequence_length": 256}
    few, many = (min(measure(path, tmp_path / f"{n}.gguf", 1, (text,), num_samples=n, **options)) for n in (64, 640))
    print(f"peaks {few / 1e6:.0f} and {many / 1e6:.0f} MB")
    assert many < few + 4 * 256 * 256 * 576 // 2  # half of what the stream has grown by


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells how much memory is not mapped files")
def test_the_memory_that_a_long_text_takes_is_counted(small, tmp_path):
    text = tmp_path / "long.txt"
    text.write_text(SAMPLED.read_text() * 80)
    options = {"method": "fit", "num_samples": 1, "sequence_length": 128}
    peak, above = measure(small, tmp_path / "out.gguf", 1, (text,), **options)
    print(f"peak {peak / 1e6:.0f} MB, forecast {above / 1e6:.0f}")
    assert 80 * text.stat().st_size < peak < above < 2 * peak


@pytest.mark.parametrize("tune", ["block", "e2e"])
def test_measured_peaks_of_tuning_are_below_the_forecast(small, tmp_path, tune):
    pytest.importorskip("torch", reason="tuning needs torch: pip install 'elutq[torch]'")
    options = {"method": "feedback", "num_samples": 8, "sequence_length": 512, "tune": [tune]}
    peak, above = measure(small, tmp_path / "out.gguf", 2, **options)
    print(f"peak {peak / 1e6:.0f} MB, forecast {above / 1e6:.0f}")
    assert peak < above < PROCESS_BYTES + 4 * peak


# ---- what it depends on


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n_tokens", [0, 1 << 15])
def test_threads_add_what_each_holds_by_itself_and_no_more(shape, n_tokens):
    two, many = (bound(shape, n_tokens=n_tokens, threads=threads, group_size=64) for threads in (2, 64))
    assert many - two == 62 * THREAD_BYTES < 1e9


def test_an_8b_model_takes_what_the_documentation_says():
    assert bound("llama3-8b", n_tokens=0) < 1e9
    assert bound("llama3-8b") < 6e9
    assert bound("llama3-8b", threads=64) < 7e9


def test_a_mixture_of_experts_takes_no_more_than_one_of_its_experts_and_the_rest_of_a_block():
    assert bound("qwen3-30b-a3b", n_tokens=0) < 1e9
    assert bound("qwen3-30b-a3b", sequence_length=512) < 5e9  # a layer's experts alone are 2.4 GB in float32
    assert bound("qwen3-30b-a3b", sequence_length=512, method="correct") < 3e9


@pytest.mark.parametrize("method", ["correct", "allocate"])
def test_the_time_of_products_grows_with_the_experts_of_a_token_and_not_with_all(method, monkeypatch):
    monkeypatch.setattr(estimate, "_seconds", lambda function: float(function.__name__ == "multiply"))

    def seconds(**changes):
        config, recipe = replace(named_shape("qwen3-30b-a3b"), **changes), Recipe(method=method)
        return estimate_work(config, Plan.make(config, recipe), recipe, 1 << 15, numpy_backend()).seconds()

    assert seconds(n_experts=512) == pytest.approx(seconds(), rel=1e-6)
    assert seconds(n_experts_used=16) > 1.5 * seconds()


def test_scratch_has_room_for_what_a_wide_shared_expert_takes():
    config, recipe = named_shape("qwen3-30b-a3b"), Recipe(method="correct")
    narrow, wide = (
        Forecast.make(of, Plan.make(of, recipe), recipe, 1 << 15, 2)
        for of in (replace(config, shared_expert_intermediate_size=width) for width in (768, 1 << 16))
    )
    kept = 4 * (1 << 15) * ((1 << 16) - 8 * 768)
    assert wide.scratch_bytes - narrow.scratch_bytes == wide.output_bytes - narrow.output_bytes + kept


@pytest.mark.parametrize("target", [1.3, 2.375, 4.5])
def test_a_total_of_bits_is_that_of_the_file(target):
    """Beside what has 4 bits whatever the total."""
    config = named_shape("llama2-7b")
    n_linears = sum(
        math.prod(config.tensor_shapes()[name])
        for layer in range(config.num_hidden_layers)
        for name in config.linear_names(layer)
    )
    with_total, usual = (forecast("llama2-7b", **options) for options in ({"target_bpw": target}, {"bits": 2}))
    more = (target - Recipe().layout(2).bits_per_weight) * n_linears / 8
    assert with_total.output_bytes - usual.output_bytes == pytest.approx(more, abs=1e6)
    assert with_total.scratch_bytes > with_total.output_bytes


def test_rotation_and_long_sequences_are_counted():
    assert bound("llama3-8b") < bound("llama3-8b", rotate=True) < 1.02 * bound("llama3-8b")
    assert bound("llama3-8b", n_tokens=0) < bound("llama3-8b", n_tokens=0, rotate=True)
    lengths = [bound("llama3-8b", sequence_length=length) for length in (512, 1024, 2048, 4096)]
    assert lengths == sorted(lengths)
    assert lengths[3] - lengths[1] > 4 * 3072 * 4 * 4 * 14336  # four sequences, four arrays each


# ---- where it is too much


@pytest.mark.parametrize(
    ("options", "max_memory", "advice"),
    [
        ({"n_tokens": 0}, 0.5, "use a machine with more"),
        ({}, 0.5, "use a machine with more"),
        ({}, 2, r"without calibration \(--calibration\) it takes 0\.\d GB at most"),
        (
            {"sequence_length": 4096},
            6,
            r"with sequences of 512 tokens .* it takes \d\.\d GB at most",
        ),
        ({"sequence_length": 4096}, 2, r"without calibration \(--calibration\) it takes 0\.\d GB at most"),
        ({"tune": ("e2e",)}, 10, r"without tuning \(--tune\) it takes \d\.\d GB at most"),
    ],
)
def test_a_refusal_advises_what_would_fit(options, max_memory, advice):
    with pytest.raises(ElutqError, match=rf"above the limit of {max_memory} GB \(--max-memory\): {advice}$") as refused:
        forecast("llama3-8b", **options).check(None, max_memory)
    assert ("calibration" in str(refused.value)) == ("calibration" in advice)


def test_a_run_that_may_not_fit_into_memory_is_told(monkeypatch, caplog):
    recipe = Recipe(bits=4, group_size=32)
    with Checkpoint.open(TESTS / "data" / "golden" / "llama1-mha") as checkpoint, caplog.at_level(logging.WARNING):
        for available, device in ((10**12, "cpu"), (None, "cpu"), (10**8, "cuda")):
            monkeypatch.setattr(preparation, "available_memory", lambda available=available: available)
            preparation.prepare(checkpoint, None, recipe, None, numpy_backend(), None, device)
        assert caplog.messages == []
        monkeypatch.setattr(preparation, "available_memory", lambda: 10**8)
        preparation.prepare(checkpoint, None, recipe, None, numpy_backend(), None, "cpu")
    assert caplog.messages == ["this run may take 0.1 GB of memory, and 0.1 GB can be had: use a machine with more"]
