"""The table of methods: its stages are there, and one that docs/algorithm.md shows how to add runs as they do."""

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import TEXT

from elutq_cli.pipeline.compute.backend import numpy_backend
from elutq_cli.pipeline.compute.products import ridge
from elutq_cli.pipeline.layout import Layout
from elutq_cli.pipeline.methods import METHODS, Method
from elutq_cli.pipeline.recipe import Recipe
from elutq_cli.pipeline.run.calibration_text import CalibrationText
from elutq_cli.pipeline.run.quantize import quantize
from elutq_cli.pipeline.stages.feedback import feedback, inverse_factor
from elutq_cli.pipeline.stages.refine import refine
from elutq_formats.block_kind import FREE16
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.model_file import ModelFile

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/algorithm.md").read_text(encoding="utf-8")
SHOWN = re.search(r"## A stage of one's own\n.*?```py\n(.*?)```\n\n```py\n(.*?)```", PAGE, re.DOTALL)
DAMPING = 0.3


@pytest.fixture
def polish(monkeypatch):
    """The stage of the page, in the file that it is said to be."""
    assert SHOWN is not None
    module = ModuleType("elutq_cli.pipeline.stages.polish")
    exec(SHOWN[1], module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for name, method in eval(f"{{{SHOWN[2]}}}", {"Method": Method}).items():
        monkeypatch.setitem(METHODS, name, method)
    return module.polish


@pytest.mark.parametrize("name", METHODS)
def test_stages_are_functions_of_files_of_their_names(name):
    for stage in METHODS[name].stages:
        assert callable(getattr(importlib.import_module(f"elutq_cli.pipeline.stages.{stage}"), stage))


def test_a_shown_stage_raises_no_error(polish):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(500, 64)) + rng.normal(size=(500, 4)) @ rng.normal(size=(4, 64))
    hessian = (inputs.T @ inputs / 500).astype(np.float32)
    weights, backend = rng.normal(size=(40, 64)).astype(np.float32), numpy_backend()
    start = feedback(weights, inverse_factor(hessian, DAMPING, backend), Layout(2, 32), backend)
    damped = hessian.astype(np.float64) + np.diag(ridge(hessian, DAMPING))

    def errors(tensor):
        difference = weights - tensor.dequantize().astype(np.float64)
        return ((difference @ damped) * difference).sum(axis=1)

    refined = refine(weights, hessian, start, DAMPING, backend)
    for before in (start, refined):
        after = polish(weights, hessian, before, DAMPING, backend, FREE16)
        assert (errors(after) <= errors(before) * (1 + 1e-5)).all()
    assert errors(polish(weights, hessian, start, DAMPING, backend, FREE16)).sum() < 0.99 * errors(start).sum()


def test_a_shown_method_makes_a_file(polish, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    recipe = Recipe(bits=2, group_size=32, num_samples=4, sequence_length=24, method="polish")
    assert recipe.corrects and recipe.factors and not recipe.allocates
    with Checkpoint.open(ROOT / "tests/data/golden/llama1-mha") as checkpoint:
        text = CalibrationText.read([tmp_path / "text.txt"], checkpoint, recipe)
        quantize(checkpoint, tmp_path / "out.gguf", recipe, text, numpy_backend())
    made = ModelFile.open(tmp_path / "out.gguf").provenance["method"]
    assert made == "calibrate, correct, feedback, refine, polish"
