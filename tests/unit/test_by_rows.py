"""Matrices that go through the stages some rows at a time: the same file, errors and streams as when they go whole."""

from pathlib import Path

import numpy as np
import pytest

from elutq_cli.pipeline.compute.backend import native_backend
from elutq_cli.pipeline.layout import Layout
from elutq_cli.pipeline.recipe import MatrixPlan, Recipe
from elutq_cli.pipeline.stages import by_rows
from elutq_cli.pipeline.stages.by_rows import MatrixByRows, embed, look_up, runs_of_rows
from elutq_cli.pipeline.stages.checked_weights import CheckedWeights
from elutq_cli.pipeline.stages.fit import fit
from elutq_cli.pipeline.stages.rotate import RotatedCheckpoint
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.model_tensors import EMBEDDING

NOVELS = Path(__file__).parent.parent / "data" / "novels-6m"
COLUMNS = 64


@pytest.fixture(scope="module")
def backend():
    with native_backend(2) as native:
        yield native


def go_through(backend, weights, plan, hessian, rows_at_once, monkeypatch):
    """Quantize a matrix; return its record, its contents, and what it dequantizes to."""
    monkeypatch.setattr(by_rows, "ROWS_AT_ONCE", rows_at_once)
    matrix, restored = MatrixByRows(plan, weights.shape, backend), np.empty_like(weights)
    for rows in runs_of_rows(len(weights)):
        part = weights[rows]
        restore = matrix.add(rows, part, None if plan.layout is None else fit(part, hessian, plan.layout, backend))
        restored[rows] = restore()
    return matrix.record(hessian), matrix.contents, restored


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 16])
@pytest.mark.parametrize("n_rows", [512, 1000, 1537])
def test_a_matrix_by_rows_is_the_matrix_as_a_whole(backend, monkeypatch, bits, n_rows, calibrated):
    rng = np.random.default_rng(n_rows)
    weights = rng.normal(size=(n_rows, COLUMNS)).astype(np.float32)
    x = rng.normal(size=(200, COLUMNS)).astype(np.float32)
    hessian = x.T @ x if calibrated else None
    plan = MatrixPlan(EMBEDDING, None if bits == 16 else Layout(bits, 32))
    whole = go_through(backend, weights, plan, hessian, 1 << 20, monkeypatch)
    parts = go_through(backend, weights, plan, hessian, 256, monkeypatch)
    assert parts[0] == whole[0]
    assert (parts[0].error is None) == (bits == 16)
    for found, wanted in zip(parts[1:], whole[1:], strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_tokens_are_looked_up_in_the_rows_that_are_there():
    values = np.arange(40.0, dtype=np.float32).reshape(10, 4)
    tokens = np.array([[0, 9, 3], [3, 7, 2]])
    out = np.full((2, 3, 4), np.nan, dtype=np.float32)
    for rows in (slice(0, 3), slice(3, 8), slice(8, 10)):
        look_up(out, tokens, rows, values[rows])
    np.testing.assert_array_equal(out, values[tokens])


@pytest.mark.parametrize("rotate", [False, True])
def test_an_embedding_is_read_only_where_there_are_tokens(backend, monkeypatch, rotate):
    monkeypatch.setattr(by_rows, "ROWS_AT_ONCE", 512)
    tokens = np.array([[1, 4000, 700], [700, 3, 4095]])
    with Checkpoint.open(NOVELS) as checkpoint:
        source = CheckedWeights(RotatedCheckpoint(checkpoint, 5) if rotate else checkpoint, backend.crew)
        wanted, read = source.load(EMBEDDING)[tokens], []
        load = source.load
        monkeypatch.setattr(source, "load", lambda name, rows: read.append(rows) or load(name, rows))
        np.testing.assert_array_equal(embed(source, tokens), wanted)
    assert read == [slice(0, 512), slice(512, 1024), slice(3584, 4096)]


def test_the_head_and_the_embedding_are_never_read_whole(backend, monkeypatch, tmp_path):
    from elutq_cli.pipeline.run.quantize import quantize

    monkeypatch.setattr(by_rows, "ROWS_AT_ONCE", 512)
    with Checkpoint.open(NOVELS) as checkpoint:
        load, most = checkpoint.load, []

        def watch(name, *arguments):
            tensor = load(name, *arguments)
            most.append(len(tensor) if name == EMBEDDING else 0)
            return tensor

        monkeypatch.setattr(checkpoint, "load", watch)
        recipe = Recipe(output_bits=2, embedding_bits=16, tensor_types=("blk=16",))
        quantize(checkpoint, tmp_path / "out.gguf", recipe, None, backend)
    assert max(most) == 512
    assert sum(most) == 3 * 4096  # once as the embedding; twice as the head that is tied to it, first for its largest
