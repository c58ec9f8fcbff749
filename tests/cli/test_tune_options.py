"""`elutq quantize --tune`: what is refused before any work, with torch and without, and a run that is killed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import paused_quantize

from elutq_cli.pipeline.compute.backend import native_backend
from elutq_cli.pipeline.recipe import Plan, Recipe
from elutq_cli.pipeline.run.estimate import estimate_work
from elutq_cli.pipeline.run.forecast import Forecast
from elutq_formats.checkpoint import Checkpoint

DATA = Path(__file__).parent.parent / "data"
TINY = DATA / "golden" / "llama2-gqa-sharded"
SAMPLED = DATA / "sampled.txt"


def refusal(folder, *options, **environment):
    command = [sys.executable, "-m", "elutq_cli", "quantize", TINY, "-o", folder / "out.gguf", "--group-size", "32"]
    result = subprocess.run(
        [*map(str, command), *options],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | environment,
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert list(folder.iterdir()) == []
    return result.stderr


def test_an_unknown_way_of_tuning_is_refused(tmp_path):
    assert "tuning all is not known: choose block, e2e or block,e2e" in refusal(tmp_path, "--tune", "all")


def test_a_budget_without_end_to_end_tuning_is_refused(tmp_path):
    found = refusal(tmp_path, "--calibration", str(SAMPLED), "--tune", "block", "--tune-minutes", "5")
    assert "add e2e" in found
    assert "add e2e" in refusal(tmp_path, "--calibration", str(SAMPLED), "--tune-tokens", "5")


def test_a_text_is_needed(tmp_path):
    assert "add one (--calibration)" in refusal(tmp_path, "--tune", "block")


def test_without_torch_the_extra_is_named(tmp_path_factory):
    stub = tmp_path_factory.mktemp("stub")
    (stub / "torch.py").write_text("raise ImportError('not here')\n")
    path = os.pathsep.join([str(stub), os.environ.get("PYTHONPATH", "")])
    options = ["--tune", "block,e2e", "--calibration", str(SAMPLED), "--sequence-length", "64"]
    found = refusal(tmp_path_factory.mktemp("folder"), *options, PYTHONPATH=path)
    assert "tuning needs torch: pip install 'elutq[torch]'" in found


def test_a_device_that_is_not_there_is_refused(tmp_path):
    torch = pytest.importorskip("torch", reason="tuning needs torch: pip install 'elutq[torch]'")
    device = "warp" if torch.cuda.is_available() else "cuda"
    options = ["--tune", "e2e", "--calibration", str(SAMPLED), "--sequence-length", "64", "--device", device]
    assert f"torch has no device {device}" in refusal(tmp_path, *options)


def test_the_forecast_counts_tuning():
    plain, tuned = Recipe(group_size=32), Recipe(group_size=32, tune=("block", "e2e"))
    forecasts, seconds = [], []
    with Checkpoint.open(TINY) as checkpoint, native_backend(1) as backend:
        for recipe in (plain, tuned):
            plan = Plan.make(checkpoint.config, recipe)
            forecasts.append(Forecast.make(checkpoint.config, plan, recipe, 1024, 1))
            seconds.append(estimate_work(checkpoint.config, plan, recipe, 1024, backend).seconds())
    assert forecasts[0].tuning_bytes == 0
    assert 0 < forecasts[1].tuning_bytes < forecasts[1].memory_bytes
    assert forecasts[1].memory_bytes > forecasts[0].memory_bytes
    assert seconds[1] > seconds[0]


def test_a_run_killed_while_it_tunes_ends_the_same(tmp_path):
    pytest.importorskip("torch", reason="tuning needs torch: pip install 'elutq[torch]'")
    options = [TINY, "--group-size", 32, "--num-samples", 16, "--sequence-length", 24, "--calibration", SAMPLED]
    options += ["--method", "feedback", "--tune", "e2e", "--tune-tokens", 4096, "-t", 1]
    command = [sys.executable, "-m", "elutq_cli", "quantize", *map(str, options)]
    assert subprocess.run([*command, "-o", tmp_path / "whole.gguf"], timeout=120, check=False).returncode == 0
    output, work = tmp_path / "out.gguf", tmp_path / "out.gguf.work"
    n_units = 6  # embedding, two blocks, head, and two quarters of what tuning learns
    with paused_quantize([*options, "-o", output], work, "*.unit", n_units) as process:
        process.kill()
    assert not output.exists()
    result = subprocess.run([*command, "-o", output], capture_output=True, text=True, timeout=120, check=False)
    assert "going on after the" in result.stderr
    assert output.read_bytes() == (tmp_path / "whole.gguf").read_bytes()
