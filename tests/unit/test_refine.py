"""The refine stage: its error under H in float64, its two halves against brute force, and C against the twin."""

import itertools

import numpy as np
import pytest

from elutq_cli.pipeline.compute.backend import native_backend, numpy_backend
from elutq_cli.pipeline.compute.levels import levels
from elutq_cli.pipeline.compute.loops.even import round_even, spread_even
from elutq_cli.pipeline.compute.loops.fit_groups import fit_groups
from elutq_cli.pipeline.compute.loops.refine_group import (
    descend_codes,
    ordered_product,
    refine_group,
    signs_of,
    solve_levels,
)
from elutq_cli.pipeline.layout import EVEN8C, FREE8, Layout
from elutq_cli.pipeline.stages.feedback import feedback, inverse_factor
from elutq_cli.pipeline.stages.fit import fit
from elutq_cli.pipeline.stages.refine import refine
from elutq_formats.block_kind import FREE16, BlockKind
from elutq_formats.hlq import HLQTensor

BITS = (1, 2, 3, 4)
DAMPING = 0.01


def correlated_hessian(rng, columns, tokens=2000):
    """X^T X / tokens of inputs with a few strong common directions and columns of very different size."""
    inputs = rng.normal(size=(tokens, columns)) + rng.normal(size=(tokens, 4)) @ rng.normal(size=(4, columns))
    inputs *= np.exp(rng.normal(size=columns))
    return (inputs.T @ inputs / tokens).astype(np.float32)


def row_errors(hessian, weights, tensor):
    """D H D^T of each row in float64."""
    difference = weights.astype(np.float64) - tensor.dequantize()
    return ((difference @ hessian.astype(np.float64)) * difference).sum(axis=1)


def damp(hessian, damping=DAMPING):
    diagonal = np.diagonal(hessian)
    return hessian + np.float32(damping) * np.diag(diagonal + np.float32(0.1) * diagonal.mean())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", [32, 64])
@pytest.mark.parametrize("seed", [1, 2])
def test_no_rows_error_rises(bits, group_size, seed):
    rng = np.random.default_rng(seed)
    weights = (rng.standard_t(4, (40, 192)) * 0.05).astype(np.float32)
    hessian = correlated_hessian(rng, 192)
    with native_backend(2) as backend:
        for start in (
            feedback(weights, inverse_factor(hessian, DAMPING, backend), Layout(bits, group_size), backend),
            fit(weights, None, Layout(bits, group_size), backend),
        ):
            refined = refine(weights, hessian, start, DAMPING, backend)
            before = row_errors(damp(hessian), weights, start)
            after = row_errors(damp(hessian), weights, refined)
            assert (after <= before * (1 + 1e-5)).all()
            assert after.sum() < 0.97 * before.sum()
            assert (refined.half_scales >= 0).all()


@pytest.mark.parametrize(("bits", "most"), [(2, 1.02), (3, 1.03), (4, 1.06)])
def test_levels_that_are_bytes_end_nearly_as_good(bits, most):
    """Of feedback and refine: the error of all rows, above what free halves have; none rises in refine."""
    rng = np.random.default_rng(bits)
    weights = (rng.standard_t(4, (40, 256)) * 0.05).astype(np.float32)
    hessian = correlated_hessian(rng, 256)
    layout, found = Layout(bits, 128, FREE8), []
    with native_backend(2) as backend:
        factor = inverse_factor(hessian, DAMPING, backend)
        for grid in (FREE16, layout.settle([weights])[1]):
            start = feedback(weights, factor, layout, backend, grid)
            refined = refine(weights, hessian, start, DAMPING, backend, grid)
            before, after = (row_errors(damp(hessian), weights, tensor) for tensor in (start, refined))
            assert (after <= before * (1 + 1e-5)).all()
            found.append(after.sum())
    print(found[1] / found[0])
    assert found[1] / found[0] < most


@pytest.mark.parametrize("bits", BITS)
def test_solved_levels_are_the_least_squares_solution(bits):
    """Of the middle one of three groups, the other two held."""
    rng = np.random.default_rng(bits)
    weights = rng.normal(size=(6, 96)).astype(np.float32)
    hessian = damp(correlated_hessian(rng, 96))
    start = fit(weights, None, Layout(bits, 32), numpy_backend())
    residual = (weights - start.dequantize()) @ hessian
    part = slice(32, 64)
    half_scales, centers, codes = start.half_scales.copy(), start.centers.copy(), start.codes.copy()
    signs = signs_of(codes[:, part], bits)
    own = hessian[part, part]
    spread, across = signs @ own, ordered_product(np.ones((1, 32), dtype=np.float32), own)
    solution, _ = solve_levels(half_scales[:, 1], centers[:, 1], signs, spread, across, residual[:, part])
    half_scales[:, 1], centers[:, 1] = solution[:bits].T, solution[bits]
    solved = HLQTensor(half_scales, centers, codes, 32)
    root = np.linalg.cholesky(hessian.astype(np.float64)).T
    for row in range(6):
        features = np.zeros((96, bits + 1))
        for column in range(32, 64):
            features[column] = [*(2.0 * ((int(start.codes[row, column]) >> np.arange(bits)) & 1) - 1), 1.0]
        others = weights[row].astype(np.float64) - start.dequantize()[row]
        others[part] = weights[row, part]
        theta = np.linalg.lstsq(root @ features, root @ others, rcond=None)[0]
        least = np.square(root @ others - root @ features @ theta).sum()
        assert row_errors(hessian, weights, solved)[row] == pytest.approx(least, rel=1e-3)  # rounded to float16
    assert row_errors(hessian, weights, solved).sum() < row_errors(hessian, weights, start).sum()


def test_a_group_grows_by_what_it_says_or_not_at_all():
    """A residual that promises too much: where the promised gain is none, the row stays."""
    rng = np.random.default_rng(3)
    weights = rng.normal(size=(50, 32)).astype(np.float32)
    hessian = damp(correlated_hessian(rng, 32))
    start = fit(weights, None, Layout(2, 32), numpy_backend())
    residual = (weights - start.dequantize()) @ hessian
    residual[::2] = 0.0  # already the best: nothing can be gained
    half_scales, centers, codes, grown = refine_group(
        start.half_scales[:, 0], start.centers[:, 0], start.codes, residual, hessian
    )
    ended = HLQTensor(half_scales[:, None], centers[:, None], codes, 32)
    np.testing.assert_array_equal(grown, ended.dequantize() - start.dequantize())
    assert not grown[::2].any()
    assert grown[1::2].any(axis=1).all()


def test_descent_ends_where_no_single_code_helps():
    rng = np.random.default_rng(4)
    weights = rng.normal(size=(4, 32)).astype(np.float32)
    hessian = damp(correlated_hessian(rng, 32))
    start = fit(weights, None, Layout(2, 32), numpy_backend())
    residual = (weights - start.dequantize()) @ hessian
    codes, after = descend_codes(start.codes, residual, hessian, start.half_scales[:, 0], start.centers[:, 0], 100)
    ended = HLQTensor(start.half_scales, start.centers, codes, 32)
    np.testing.assert_allclose(after, (weights - ended.dequantize()) @ hessian, rtol=1e-3, atol=1e-4)
    least = row_errors(hessian, weights, ended)
    assert (least <= row_errors(hessian, weights, start)).all()
    for column, code in itertools.product(range(32), range(4)):
        other = codes.copy()
        other[:, column] = code
        tensor = HLQTensor(start.half_scales, start.centers, other, 32)
        assert (row_errors(hessian, weights, tensor) >= least * (1 - 1e-5)).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize(("rows", "threads"), [(1, 1), (32, 1), (37, 3), (200, 2)])
def test_c_gives_the_same_bits_as_the_twin(bits, group_size, rows, threads):
    rng = np.random.default_rng([bits, group_size, rows])
    weights = rng.normal(size=(rows, 2 * group_size)).astype(np.float32)
    hessian = damp(correlated_hessian(rng, 2 * group_size))
    start = fit(weights, None, Layout(bits, group_size), numpy_backend())
    residual = (weights - start.dequantize()) @ hessian
    residual[1::5] *= 1e-3  # rows that have little to gain, or nothing
    own = slice(group_size, None)
    arguments = start.half_scales[:, 1], start.centers[:, 1], start.codes[:, own], residual[:, own], hessian[own, own]
    before = [argument.copy() for argument in arguments]
    twin = refine_group(*arguments)
    with native_backend(threads) as backend:
        for found, expected in zip(backend.loops.refine_group(*arguments), twin, strict=True):
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)
    assert (twin[2] != start.codes[:, own]).any()
    for argument, kept in zip(arguments, before, strict=True):
        np.testing.assert_array_equal(argument, kept)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", [FREE8, EVEN8C])
def test_c_gives_the_same_bits_as_the_twin_where_levels_are_bytes(name, bits):
    rng = np.random.default_rng(bits)
    weights = (rng.normal(size=(45, 64)) * np.exp2(np.linspace(-20, 6, 45))[:, None]).astype(np.float32)
    hessian = damp(correlated_hessian(rng, 64))
    grid = BlockKind(name, 11)  # the last rows are above what it reaches, the first below
    half_scales, centers, codes = fit_groups(weights, bits, 64, None, grid)
    residual = (weights - HLQTensor(half_scales, centers, codes, 64, grid).dequantize()) @ hessian
    arguments = half_scales[:, 0], centers[:, 0], codes, residual, hessian, grid
    twin = refine_group(*arguments)
    with native_backend(2) as backend:
        found = backend.loops.refine_group(*arguments)
    assert [part.tobytes() for part in found[:3]] == [part.tobytes() for part in twin[:3]]
    np.testing.assert_array_equal(found[3], twin[3])
    assert (twin[0] != half_scales[:, 0]).any()
    grid.encode(np.ascontiguousarray(twin[0][:, None]), twin[1][:, None])  # nothing that a file could not hold


@pytest.mark.parametrize("bits", BITS)
def test_evenly_spaced_levels_are_rounded_to_the_best_pair_near_the_solution(bits):
    """No byte next to the half scale's, with any center, loses less under the normal equations."""
    rng = np.random.default_rng(bits)
    kind, n = BlockKind(EVEN8C, 6), 200
    theta = np.stack([rng.normal(size=n) * 0.01, rng.normal(size=n) * 0.02])
    own, total = rng.gamma(2.0, size=n), rng.gamma(2.0, size=n)
    across = 0.9 * rng.uniform(-1, 1, n) * np.sqrt(own * total)
    first, centers = round_even(theta, np.array([[own, own * np.nan], [across, total]]), kind)

    def lost(first, centers):
        step, shift = first - theta[0], centers - theta[1]
        return own * step**2 + 2 * across * step * shift + total * shift**2

    half_scales = spread_even(np.abs(first), bits).T
    kind.encode(np.ascontiguousarray(half_scales[:, None]), centers[:, None])
    assert (np.sign(first) * np.sign(theta[0]) >= 0).all()
    bytes_ = kind.stored_half_scales(np.abs(theta[0])).astype(int)
    for move in (-1, 0, 1):
        other = kind.restore_half_scales(np.clip(bytes_ + move, 0, 255).astype(np.uint8)).astype(float)
        for count in range(-128, 128):
            assert (lost(first, centers) <= lost(np.copysign(other, theta[0]), other * count / 4) * (1 + 1e-6)).all()


@pytest.mark.parametrize(("bits", "most"), [(3, 0.95), (4, 0.95)])
def test_evenly_spaced_levels_in_small_groups_beat_free_ones_that_take_as_much(bits, most):
    """The error after feedback and refine, of groups of 32 against free bytes in groups of 64; none rises in refine."""
    rng = np.random.default_rng(bits)
    weights = (rng.standard_t(5, (60, 256)) * 0.05).astype(np.float32)
    hessian, found = correlated_hessian(rng, 256), []
    with native_backend(2) as backend:
        factor = inverse_factor(hessian, DAMPING, backend)
        for layout in (Layout(bits, 64, FREE8), Layout(bits, 32, EVEN8C)):
            kind = layout.settle([weights])[1]
            start = feedback(weights, factor, layout, backend, kind)
            refined = refine(weights, hessian, start, DAMPING, backend, kind)
            before, after = (row_errors(damp(hessian), weights, tensor) for tensor in (start, refined))
            assert (after <= before * (1 + 1e-5)).all()
            kind.encode(refined.half_scales, refined.centers)
            found.append(after.sum())
    assert Layout(bits, 32, EVEN8C).bits_per_weight <= Layout(bits, 64, FREE8).bits_per_weight
    print(found[1] / found[0])
    assert found[1] / found[0] < most


def test_inputs_that_are_zero_are_left_alone():
    rng = np.random.default_rng(5)
    weights = rng.normal(size=(8, 64)).astype(np.float32)
    start = fit(weights, None, Layout(2, 32), numpy_backend())
    assert refine(weights, np.zeros((64, 64), dtype=np.float32), start, DAMPING, numpy_backend()) is start
    hessian = correlated_hessian(rng, 64)
    hessian[32:] = hessian[:, 32:] = 0.0
    refined = refine(weights, hessian, start, DAMPING, numpy_backend())
    assert np.isfinite(levels(refined.half_scales, refined.centers)).all()
    assert row_errors(damp(hessian), weights, refined).sum() < row_errors(damp(hessian), weights, start).sum()


def test_arrays_that_do_not_fit_are_refused():
    with native_backend(1) as backend:
        codes = np.zeros((2, 64), dtype=np.uint8)
        floats, hessian = np.zeros((2, 64), dtype=np.float32), np.eye(64, dtype=np.float32)
        half_scales, centers = np.ones((2, 1), dtype=np.float16), np.zeros(2, dtype=np.float16)
        backend.loops.refine_group(half_scales, centers, codes, floats, hessian)
        for arguments in (
            (half_scales[:1], centers, codes, floats, hessian),
            (half_scales, centers[:1], codes, floats, hessian),
            (half_scales, centers, codes, floats[:, :32], hessian),
            (half_scales, centers, codes, floats, hessian[:32, :32]),
        ):
            with pytest.raises(ValueError, match="do not fit"):
                backend.loops.refine_group(*arguments)
        with pytest.raises(ValueError, match="codes below"):
            backend.loops.refine_group(half_scales, centers, codes + np.uint8(2), floats, hessian)
        with pytest.raises(ValueError, match="four at a time"):
            backend.loops.refine_group(half_scales, centers, codes[:, :30], floats[:, :30], hessian[:30, :30])
