"""A head that is the embedding, too, is quantized for what it takes as a head."""

from pathlib import Path

import numpy as np
import pytest

from elutq_cli.evaluation import evaluate, split_windows
from elutq_cli.pipeline.compute.backend import native_backend
from elutq_cli.pipeline.recipe import Recipe
from elutq_cli.pipeline.run.calibration_text import CalibrationText
from elutq_cli.pipeline.run.quantize import quantize
from elutq_cli.pipeline.stages.by_rows import embed
from elutq_cli.pipeline.stages.tied_head import tied_head_statistics
from elutq_cli.reference import Transformer
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.model_file import ModelFile

DATA = Path(__file__).parent.parent / "data"
NOVELS, SAMPLED = DATA / "novels-6m", DATA / "sampled.txt"


def normed(stream, model):
    """Return the last norm of a stream in float64, computed here."""
    scale = np.sqrt((stream**2).mean(axis=-1, keepdims=True) + model.config.rms_norm_eps)
    return stream / scale * model.load("model.norm.weight").astype(np.float64)


def test_its_moments_are_those_of_the_exact_models_head_input():
    tokens = np.random.default_rng(0).integers(0, 1000, (3, 40))
    with native_backend(2, rounds=False) as backend, Checkpoint.open(NOVELS) as source:
        model = Transformer(source)
        hidden = embed(source, tokens)
        statistics = tied_head_statistics(model, hidden, backend)
        x = normed(model.hidden(tokens).astype(np.float64), model).reshape(-1, model.config.hidden_size)
    expected = x.T @ x / len(x)
    np.testing.assert_allclose(statistics.hessian, expected, atol=1e-5 * np.abs(expected).max())
    assert statistics.lack is None


@pytest.mark.parametrize("bits", [2, 4])
def test_predictions_stay_nearer_than_by_a_fit_to_its_weights(tmp_path, bits):
    """All else is in float16, and the text is one that calibration has not seen."""
    only_head = {"bits": bits, "embedding_bits": bits, "output_bits": bits, "tensor_types": ("blk=16",)}
    alone = Recipe(group_size=64, **only_head)
    calibrated = Recipe(group_size=64, **only_head, method="refine", num_samples=16, sequence_length=128)
    with native_backend(2) as backend, Checkpoint.open(NOVELS) as source:
        text = CalibrationText.read([SAMPLED], source, calibrated)
        quantize(source, tmp_path / "alone.gguf", alone, None, backend)
        quantize(source, tmp_path / "calibrated.gguf", calibrated, text, backend)
        windows = split_windows(text.held_out.reshape(-1), 128)
        exact = Transformer(source)
        kl = {}
        for path in tmp_path.iterdir():
            file = ModelFile.open(path)
            assert "output.weight" not in file.tensors
            kl[path.stem] = evaluate(Transformer(file), windows, exact).kl
    print(kl)
    assert kl["calibrated"] < 0.7 * kl["alone"]
