"""Checkpoints with outlier channels: some columns scaled up or down and the norm before them the other way.

In exact arithmetic the model is the same; what it is quantized by is not. Activations 100 times as large put four more
orders of magnitude into a Hessian's diagonal, and take the steps of the tables at run time from other channels of their
group; weights 100 times as large take the levels of theirs.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file

from elutq_cli.evaluation import log_softmax
from elutq_cli.pipeline.compute.backend import native_backend
from elutq_cli.pipeline.recipe import Recipe
from elutq_cli.pipeline.run.calibration_text import CalibrationText
from elutq_cli.pipeline.run.quantize import quantize
from elutq_cli.reference import Transformer
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.model_file import ModelFile
from elutq_formats.tokenizer import Tokenizer
from elutq_native import Model

DATA = Path(__file__).parent.parent / "data"
NOVELS, SAMPLED = DATA / "novels-6m", DATA / "sampled.txt"
CHANNELS, N_BLOCKS = 5, 2
RECIPE = {"bits": 3, "output_bits": 16, "embedding_bits": 16}
CALIBRATED = {"num_samples": 8, "sequence_length": 128, "method": "correct"}
PLAIN, ACTIVATIONS, WEIGHTS = 1.0, 0.01, 100.0
"""What the columns are multiplied by: with ACTIVATIONS their inputs are 100 times as large."""


def write_scaled(folder, factor):
    """Write the first blocks of the bundled model, CHANNELS columns after each norm multiplied by a factor."""
    folder.mkdir()
    for name in ("tokenizer.json", "generation_config.json"):
        shutil.copy(NOVELS / name, folder)
    config = json.loads((NOVELS / "config.json").read_text()) | {"num_hidden_layers": N_BLOCKS}
    (folder / "config.json").write_text(json.dumps(config))
    with Checkpoint.open(NOVELS) as checkpoint:
        blocks = tuple(f"model.layers.{layer}." for layer in range(N_BLOCKS))
        names = [name for name in checkpoint.names if ".layers." not in name or name.startswith(blocks)]
        tensors = {name: checkpoint.load(name) for name in names}
        branches = checkpoint.config.layer(0).branches
    rng = np.random.default_rng(0)
    for layer in range(N_BLOCKS):
        for branch in branches:
            channels = rng.choice(len(tensors["model.norm.weight"]), CHANNELS, replace=False)
            tensors[f"model.layers.{layer}.{branch.before}.weight"][channels] /= factor
            for linear in branch.readers:
                tensors[f"model.layers.{layer}.{linear}.weight"][:, channels] *= np.float32(factor)
    save_file(tensors, folder / "model.safetensors")
    return folder


@dataclass(frozen=True)
class Measured:
    """Logits (tokens, vocabulary): of a checkpoint, of its file in numpy, and in the C runtime."""

    exact: npt.NDArray[np.float32]
    restored: npt.NDArray[np.float32]
    native: npt.NDArray[np.float32]

    def kl(self):
        return divergence(self.exact, self.restored)

    def kl_in_c(self):
        return divergence(self.exact, self.native)


def divergence(exact, found):
    """Mean KL divergence of predictions from those of the exact logits."""
    expected = log_softmax(exact)
    return float((np.exp(expected) * (expected - log_softmax(found))).sum(-1).mean())


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Returns a function that quantizes a checkpoint and measures the file, once for each set of options."""
    folder, found = tmp_path_factory.mktemp("outliers"), {}

    def measure(factor, calibrated=True, **options):
        key = (factor, calibrated, *options)
        if key not in found:
            path = folder / f"{len(found)}"
            recipe = Recipe(**RECIPE, **(CALIBRATED if calibrated else {}), **options)
            output = path.with_suffix(".gguf")
            with Checkpoint.open(write_scaled(path, factor)) as checkpoint, native_backend(2) as backend:
                text = CalibrationText.read([SAMPLED], checkpoint, recipe) if calibrated else None
                quantize(checkpoint, output, recipe, text, backend)
                tokenizer = Tokenizer.from_json(checkpoint.tokenizer_json, checkpoint.config)
                tokens = np.array(tokenizer.encode(SAMPLED.read_text()[-3000:])[:128])
                exact = Transformer(checkpoint).logits(tokens)
            with Model(output) as model, model.session(threads=1) as session:
                native = session.eval(tokens.tolist(), all_logits=True)
            found[key] = Measured(exact, Transformer(ModelFile.open(output)).logits(tokens), native)
        return found[key]

    return measure


@pytest.mark.parametrize("factor", [ACTIVATIONS, WEIGHTS])
def test_the_model_is_the_same(measured, factor):
    plain = measured(PLAIN).exact
    assert np.abs(measured(factor).exact - plain).max() < 1e-5 * np.abs(plain).max()


@pytest.mark.parametrize(("factor", "in_numpy", "in_c"), [(ACTIVATIONS, 3, 3), (WEIGHTS, 20, 30)])
def test_calibrated_it_is_worse_by_no_more_than_a_factor(measured, factor, in_numpy, in_c):
    """Large weights: 17 and 25 times."""
    plain, scaled = measured(PLAIN), measured(factor)
    print(f"KL {plain.kl():.4f} and {scaled.kl():.4f}, in C {plain.kl_in_c():.4f} and {scaled.kl_in_c():.4f}")
    assert np.isfinite(scaled.native).all()
    assert scaled.kl() < in_numpy * plain.kl()
    assert scaled.kl_in_c() < in_c * plain.kl_in_c()


@pytest.mark.parametrize("factor", [ACTIVATIONS, WEIGHTS])
def test_rotated_it_is_as_good_as_without_outliers(measured, factor):
    plain, scaled = measured(PLAIN), measured(factor, rotate=True)
    assert np.isfinite(scaled.native).all()
    assert scaled.kl() < 1.5 * plain.kl()
    assert scaled.kl_in_c() < 1.5 * plain.kl_in_c()


@pytest.mark.parametrize(("factor", "times"), [(ACTIVATIONS, 20), (WEIGHTS, 2)])
def test_calibration_is_what_makes_it_usable(measured, factor, times):
    assert times * measured(factor).kl() < measured(factor, calibrated=False).kl()
