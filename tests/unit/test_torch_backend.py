"""The stages on torch: the same quality as with numpy, within what the backend states."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from elutq_cli.api import quantize
from elutq_cli.pipeline.compute.backend import native_backend
from elutq_cli.pipeline.layout import Layout
from elutq_cli.pipeline.methods import METHODS
from elutq_cli.pipeline.recipe import Plan, Recipe
from elutq_cli.pipeline.run.calibration_text import CalibrationText
from elutq_cli.pipeline.run.estimate import estimate_work
from elutq_cli.pipeline.run.quantize import quantize as run_pipeline
from elutq_cli.pipeline.stages.feedback import feedback, inverse_factor
from elutq_cli.pipeline.stages.refine import refine
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.errors import ElutqError
from elutq_formats.model_file import ModelFile

DATA = Path(__file__).parent.parent / "data"
NOVELS = DATA / "novels-6m"
TINY = DATA / "golden" / "llama2-gqa-sharded"
SAMPLED = DATA / "sampled.txt"
TOLERANCE, MEAN_TOLERANCE = 0.05, 0.005  # relative, of a matrix's error and of the mean over the model's


def test_without_torch_one_line_names_the_extra(tmp_path):
    stub = tmp_path / "stub"
    stub.mkdir()
    (stub / "torch.py").write_text("raise ImportError('not here')\n")
    path = os.pathsep.join([str(stub), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "elutq_cli", "quantize", TINY, "-o", tmp_path / "out.gguf", "--device", "cuda"]
    result = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": path}
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines() == ["elutq: device cuda needs torch: pip install 'elutq[torch]'"]
    assert not (tmp_path / "out.gguf").exists()


def test_a_device_that_is_not_there_is_refused(tmp_path):
    pytest.importorskip("torch", reason="needs torch: pip install 'elutq[torch]'")
    with pytest.raises(ElutqError, match="torch has no device warp here"):
        quantize(TINY, tmp_path / "out.gguf", device="warp")


@pytest.fixture(scope="module", params=["cpu", "cuda"])
def on_torch(request):
    torch = pytest.importorskip("torch", reason="needs torch: pip install 'elutq[torch]'")
    from elutq_cli.pipeline.compute.backend import torch_backend

    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU that torch can use")
    with torch_backend(request.param, 2) as backend:
        yield backend


def test_the_stages_take_tensors(on_torch):
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((96, 1152), dtype=np.float32)
    inputs = rng.standard_normal((3000, 1152)) @ rng.standard_normal((1152, 1152)) / 30
    hessian = (inputs.T @ inputs / 3000).astype(np.float32)
    errors = []
    with native_backend(2, rounds=False) as native:
        for backend in (native, on_torch):
            placed = backend.arrays.place(weights), backend.arrays.place(hessian)
            factor = inverse_factor(placed[1], 0.01, backend)
            tensor = refine(*placed, feedback(placed[0], factor, Layout(2, 64), backend), 0.01, backend)
            difference = weights - tensor.dequantize().astype(np.float64)
            errors.append(float(((difference @ hessian) * difference).sum()))
    assert errors[1] == pytest.approx(errors[0], rel=TOLERANCE)


@pytest.mark.parametrize("method", METHODS)
def test_the_time_of_a_run_there_is_estimated(on_torch, method):
    """What --dry-run prints."""
    recipe = Recipe(method=method, group_size=32)
    with Checkpoint.open(TINY) as checkpoint:
        plan = Plan.make(checkpoint.config, recipe)
        assert 0.0 < estimate_work(checkpoint.config, plan, recipe, 1024, on_torch).seconds() < 600.0


@pytest.mark.parametrize("method", ["fit", "correct", "allocate"])
def test_a_model_made_on_torch_is_as_good(on_torch, method, tmp_path):
    recipe = Recipe(method=method, num_samples=16, sequence_length=128)
    with Checkpoint.open(NOVELS) as checkpoint, native_backend(2, rounds=False) as native:
        text = CalibrationText.read([SAMPLED], checkpoint, recipe)
        found = [
            run_pipeline(checkpoint, tmp_path / name, recipe, text, backend)
            for name, backend in (("cpu", native), ("other", on_torch))
        ]
    plans = [
        [(record.name, record.bits, record.group_size) for record in ModelFile.open(tmp_path / name).tensors.values()]
        for name in ("cpu", "other")
    ]
    assert plans[0] == plans[1]
    expected, errors = found[0].errors, found[1].errors
    assert errors == {name: pytest.approx(error, rel=TOLERANCE) for name, error in expected.items()}
    assert sum(errors.values()) == pytest.approx(sum(expected.values()), rel=MEAN_TOLERANCE)
