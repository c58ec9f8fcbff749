"""Layouts: what each takes, and the one grid of a matrix, however its rows are cut."""

import re
from pathlib import Path

import numpy as np
import pytest
from single_linears import errors_of

from elutq_cli.pipeline.compute import products
from elutq_cli.pipeline.compute.backend import native_backend
from elutq_cli.pipeline.layout import EVEN8C, FREE8, KIND_OF_SCALES, Layout, bytes_reaching
from elutq_cli.pipeline.progress import Progress
from elutq_cli.pipeline.recipe import MatrixPlan, Recipe
from elutq_cli.pipeline.run.tensors import Tensors, ToQuantize
from elutq_cli.pipeline.stages import by_rows
from elutq_cli.pipeline.stages.feedback import inverse_factor
from elutq_cli.pipeline.stages.fit import fit
from elutq_cli.pipeline.stages.linear import LinearInputs
from elutq_cli.pipeline.stages.measure import sample_rows
from elutq_formats.block_kind import FREE16, BlockKind
from elutq_formats.hlq import unpack
from elutq_formats.model_tensors import EMBEDDING

BYTES = Layout(2, 32, FREE8)
COLUMNS = 64
NAME = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def backend():
    with native_backend(2) as native:
        yield native


def test_what_a_weight_takes():
    assert [Layout(bits, 128).bits_per_weight for bits in (1, 2, 3, 4)] == [1.25, 2.375, 3.5, 4.625]
    assert Layout(2, 128, FREE8).bits_per_weight == 2.1875
    assert Layout(2, 64, FREE8).bits_per_weight == Layout(2, 128).bits_per_weight


def test_published_sizes_are_those_of_the_blocks():
    page = (Path(__file__).parents[2] / "docs" / "choosing.md").read_text()
    rows = re.findall(r"^\| (\d) \| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", page, re.MULTILINE)
    assert len(rows) == 8
    for bits, scale_bits, *sizes in rows:
        kind = KIND_OF_SCALES[int(scale_bits)]
        wanted = [Layout(int(bits), group_size, kind).bits_per_weight for group_size in (256, 128, 64, 32)]
        assert list(map(float, sizes)) == wanted


def test_layouts_name_themselves():
    assert str(Layout(2, 128)) == "2 bits, groups of 128"
    assert str(Layout(3, 64, FREE8)) == "3 bits, groups of 64 of kind free8"


def not_to_be_read():
    raise AssertionError("a matrix whose kind needs no exponent is looked at")
    yield


def test_a_kind_without_an_exponent_is_settled_unseen():
    assert Layout(2, 32).settle(not_to_be_read()) == (Layout(2, 32), FREE16)
    plan = MatrixPlan(EMBEDDING, None)
    assert plan.settle(not_to_be_read()) == (plan, FREE16)


def test_the_exponent_is_that_of_the_largest_weight_of_any_part():
    parts = [np.full((2, 32), value, dtype=np.float32) for value in (0.1, -3.0, 0.2)]
    assert BYTES.settle(parts) == (BYTES, bytes_reaching(3.0))
    assert BYTES.settle(parts[:1]) == (BYTES, bytes_reaching(0.1)) != BYTES.settle(parts)


@pytest.mark.parametrize("largest", [0.0, 1e-7, 1e-6])
def test_a_matrix_of_small_weights_keeps_float16(largest):
    weights = np.full((2, 32), -largest, dtype=np.float32)
    assert BYTES.settle([weights]) == (Layout(2, 32), FREE16)
    assert BYTES.settle([weights, np.full((2, 32), 2.0**-9, dtype=np.float32)]) == (BYTES, BlockKind(FREE8, 0))


@pytest.mark.parametrize(
    ("outlier", "kinds"), [(20, 4 * [FREE8]), (200, 3 * [FREE8] + [FREE16.name]), (1000, [FREE8] + 3 * [FREE16.name])]
)
def test_a_matrix_with_outliers_keeps_float16_where_its_bits_need_it(outlier, kinds):
    weights = np.random.default_rng(7).normal(size=(64, 256)).astype(np.float32)
    weights[5, 7] = -outlier
    assert [Layout(bits, 64, FREE8).settle([weights[:8], weights[8:]])[0].kind for bits in (1, 2, 3, 4)] == kinds


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("outlier", [5, 40, 150, 400, 1200])
def test_bytes_cost_little_wherever_they_are_kept(backend, bits, outlier):
    """With one outlier, whatever its size; and there is one with which they would have cost more."""
    weights = np.random.default_rng(8).normal(size=(64, 256)).astype(np.float32)
    weights[5, 7] = outlier
    layout, grid = Layout(bits, 64, FREE8).settle([weights])
    rest = np.delete(weights, 5, axis=0)

    def error(grid):
        return np.square(fit(rest, None, layout, backend, grid).dequantize() - rest).sum()

    assert error(grid) < 1.12 * error(FREE16)
    if (bits, outlier) == (4, 400):
        assert layout.kind == FREE16.name
        assert error(bytes_reaching(outlier)) > 1.5 * error(FREE16)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("outlier", [5, 40, 150, 400, 700, 3000])
def test_evenly_spaced_levels_cost_little_wherever_they_are_kept(backend, bits, outlier):
    """Beside those that reach no further than the other rows; the last is too large for all bits."""
    weights = np.random.default_rng(8).normal(size=(64, 256)).astype(np.float32)
    weights[5, 7] = outlier
    layout, kind = Layout(bits, 64, EVEN8C).settle([weights])
    rest = np.delete(weights, 5, axis=0)
    finest = Layout(bits, 64, EVEN8C).settle([rest])[1]
    assert (layout.kind == FREE16.name) == (outlier == 3000)

    def error(kind):
        return np.square(fit(rest, None, layout, backend, kind).dequantize() - rest).sum()

    print(error(kind) / error(finest))
    assert error(kind) < 1.12 * error(finest)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("largest", [1e-3, 1.0, 500.0, 65504.0])
def test_evenly_spaced_levels_reach_the_largest_weight_and_are_float16(backend, bits, largest):
    weights = np.linspace(-largest, largest, 128, dtype=np.float32).reshape(2, 64)
    layout, kind = Layout(bits, 32, EVEN8C).settle([weights])
    tensor = fit(weights, None, layout, backend, kind)
    assert np.isfinite(tensor.half_scales).all()
    assert np.abs(tensor.dequantize() - weights).max() <= largest / 2 ** (bits + 1) * 1.15
    kind.encode(tensor.half_scales, tensor.centers)


class Source:
    """One matrix, which is read by rows; counts how often."""

    config = None

    def __init__(self, weights):
        self.weights, self.n_read = weights, 0

    def shape(self, name):
        return self.weights.shape

    def load_by_rows(self, name):
        self.n_read += 1
        for rows in by_rows.runs_of_rows(len(self.weights)):
            yield rows, self.weights[rows]


class Kept:
    """A spool for one matrix."""

    def add(self, record, contents):
        self.record, self.contents = record, contents


def growing_weights(n_rows=700):
    """The last rows are a thousand times as large as the first."""
    weights = np.random.default_rng(3).normal(size=(n_rows, COLUMNS)) * np.geomspace(0.003, 3.0, n_rows)[:, None]
    return weights.astype(np.float32)


def some_inputs(backend):
    x = np.random.default_rng(4).normal(size=(200, COLUMNS)).astype(np.float32)
    hessian = x.T @ x / np.float32(200)
    return LinearInputs(hessian, inverse_factor(hessian, 0.1, backend))


def tensors_of(source, backend, spool, monkeypatch):
    for module in (by_rows, products):
        monkeypatch.setattr(module, "ROWS_AT_ONCE", by_rows.SUPERBLOCK_ROWS)
    return Tensors(source, Recipe(method="correct"), backend, spool, Progress())


def assert_of_bytes(tensor, grid):
    """Whether a matrix would lose nothing on this grid, and would on the next coarser one."""

    def is_kept(exponent):
        other = BlockKind(FREE8, exponent)
        kept = np.array_equal(other.round_half_scales(tensor.half_scales.astype(np.float64)), tensor.half_scales)
        return kept and np.array_equal(other.round_centers(tensor.centers.astype(np.float64)), tensor.centers)

    assert is_kept(grid.exponent)
    assert not is_kept(grid.exponent + 1)


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("factor", [1.0, 9.0])
def test_a_matrix_read_by_rows_has_the_grid_of_its_largest_weight(backend, monkeypatch, calibrated, factor):
    weights = growing_weights() * np.float32(factor)
    source, spool = Source(weights), Kept()
    inputs = some_inputs(backend) if calibrated else None
    tensors_of(source, backend, spool, monkeypatch).add_by_rows(MatrixPlan(EMBEDDING, BYTES), inputs)
    assert source.n_read == 2
    tensor = unpack(spool.contents, len(weights), COLUMNS, 2, 32, spool.record.kind)
    assert_of_bytes(tensor, bytes_reaching(float(np.abs(weights).max())))
    error = np.square(tensor.dequantize() - weights).sum() / np.square(weights).sum()
    assert error < 0.13


def test_a_matrix_of_float16_levels_is_read_once(backend, monkeypatch):
    source, spool = Source(growing_weights()), Kept()
    tensors_of(source, backend, spool, monkeypatch).add_by_rows(MatrixPlan(EMBEDDING, Layout(2, 32)))
    assert source.n_read == 1


def test_a_matrix_quantized_in_runs_of_rows_has_one_grid(backend, monkeypatch):
    weights = growing_weights()
    ours = tensors_of(Source(weights), backend, Kept(), monkeypatch)
    given = ToQuantize(MatrixPlan(NAME, BYTES), weights, sample_rows(weights))
    (matrix,) = ours.quantize_sharing([given], some_inputs(backend))
    assert_of_bytes(matrix.contents, bytes_reaching(float(np.abs(weights).max())))


def test_errors_of_small_weights_are_told_of_what_can_be_stored(backend):
    inputs = some_inputs(backend)
    for size, layout in ((1.0, BYTES), (1e-6, Layout(2, 32))):
        weights = np.random.default_rng(5).normal(size=(40, COLUMNS)).clip(-3, 3).astype(np.float32) * np.float32(size)
        found = errors_of(weights, inputs.hessian, inputs.factor, [BYTES], backend)
        assert list(found.errors) == [layout]


def test_errors_of_levels_that_are_bytes_are_a_little_larger(backend):
    inputs, weights = some_inputs(backend), growing_weights(64)

    def total(layout):
        return errors_of(weights, inputs.hessian, inputs.factor, [layout], backend).errors[layout].sum()

    assert 1.0 < total(Layout(4, 32, FREE8)) / total(Layout(4, 32)) < 1.1
