"""The rotate stage: orthogonal matrices of any size, and logits that do not change in any family."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from elutq_cli.pipeline.stages import rotate
from elutq_cli.pipeline.stages.rotate import RotatedCheckpoint, Rotation
from elutq_cli.reference import Transformer
from elutq_formats import safetensors_file
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.errors import UnsupportedModelError

DATA = Path(__file__).parent.parent / "data"
FAMILIES = sorted(path for path in (DATA / "golden").iterdir() if path.is_dir())


UNROTATED = [path for path in FAMILIES if path.name in ("exaone4", "gemma2", "gemma3", "glm4", "olmo2", "olmo3")]
"""Those that norm what a block adds to the residual stream."""

ROTATED = [*(path for path in FAMILIES if path not in UNROTATED), DATA / "novels-6m"]


@pytest.mark.parametrize("folder", UNROTATED, ids=lambda folder: folder.name)
def test_a_model_that_norms_what_its_blocks_add_is_refused(folder):
    with Checkpoint.open(folder) as checkpoint, pytest.raises(UnsupportedModelError, match="leave out --rotate"):
        RotatedCheckpoint(checkpoint, seed=3)


@pytest.mark.parametrize("size", [1, 2, 7, 16, 24, 64, 96, 576])
def test_rotations_are_orthogonal_and_mix(size):
    rotation = Rotation(size, np.random.default_rng(1))
    matrix = rotation(np.eye(size))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-12)
    x = np.random.default_rng(2).normal(size=(2, 3, size))
    np.testing.assert_allclose(rotation(x), x @ matrix, atol=1e-12)
    if size & (size - 1) == 0:
        np.testing.assert_allclose(np.abs(matrix), size**-0.5)


@pytest.mark.parametrize("folder", ROTATED, ids=lambda folder: folder.name)
def test_logits_do_not_change(folder):
    with Checkpoint.open(folder) as checkpoint:
        rotated = RotatedCheckpoint(checkpoint, seed=3)
        assert not rotated.config.tie_word_embeddings
        tokens = np.random.default_rng(0).integers(0, checkpoint.config.vocab_size, 24)
        expected, found = Transformer(checkpoint).logits(tokens), Transformer(rotated).logits(tokens)
        assert np.abs(found - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max())
        for name, shape in rotated.config.tensor_shapes().items():
            assert rotated.has(name)
            assert rotated.load(name).shape == rotated.shape(name) == shape


@pytest.mark.parametrize("folder", ROTATED, ids=lambda folder: folder.name)
def test_pieces_do_not_change_a_bit(folder, monkeypatch):
    with Checkpoint.open(folder) as checkpoint:
        source = RotatedCheckpoint(checkpoint, seed=3)
        for name in source.config.tensor_shapes():
            monkeypatch.setattr(rotate, "WEIGHTS_AT_ONCE", 1 << 40)
            whole = source.load(name)
            monkeypatch.setattr(rotate, "WEIGHTS_AT_ONCE", 5000)
            np.testing.assert_array_equal(source.load(name), whole)
            rows = slice(len(whole) // 3, len(whole) // 2)
            np.testing.assert_array_equal(source.load(name, rows=rows), whole[rows])


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.0.mlp.down_proj.weight"])
def test_a_weight_takes_a_few_bytes_while_it_is_rotated(name, monkeypatch):
    monkeypatch.setattr(rotate, "WEIGHTS_AT_ONCE", 8192)
    monkeypatch.setattr(safetensors_file, "_PIECE_BYTES", 1 << 14)
    with Checkpoint.open(DATA / "novels-6m") as checkpoint:
        source = RotatedCheckpoint(checkpoint, seed=3)
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        weights = source.load(name)
        peak = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()
    assert peak < weights.nbytes + 48 * max(8192, 64 * 256) + 100_000  # of a piece, or of a value head


def test_outliers_are_spread():
    x = np.random.default_rng(4).normal(size=(8, 256))
    x[:, 17] = 100.0
    rotated = Rotation(256, np.random.default_rng(5))(x)
    assert np.abs(rotated).max() < 12.0
    np.testing.assert_allclose(np.linalg.norm(rotated, axis=1), np.linalg.norm(x, axis=1))
