"""The feedback stage: its factorisation, its inner loop, and its error under H against two other ways."""

import logging

import numpy as np
import pytest

from elutq_cli.pipeline.compute.backend import numpy_backend
from elutq_cli.pipeline.compute.levels import levels
from elutq_cli.pipeline.compute.loops.feedback_columns import feedback_columns
from elutq_cli.pipeline.compute.loops.fit_groups import fit_groups
from elutq_cli.pipeline.layout import Layout
from elutq_cli.pipeline.recipe import Recipe
from elutq_cli.pipeline.stages import feedback as stage
from elutq_cli.pipeline.stages.feedback import feedback, inverse_factor, invert_to_factor, quantize_group
from elutq_cli.pipeline.stages.fit import fit
from elutq_cli.pipeline.stages.measure import measure
from elutq_formats.errors import ElutqError
from elutq_formats.hlq import HLQTensor

BITS = (1, 2, 3, 4)
DAMPING = 0.01


def damp(hessian):
    """Of every column's own size and a little of the mean's, in float64."""
    diagonal = np.diagonal(hessian).astype(np.float64)
    return hessian + DAMPING * np.diag(diagonal + 0.1 * diagonal.mean())


def correlated_hessian(rng, columns, tokens=2000):
    """X^T X / tokens of inputs with a few strong common directions and columns of very different size."""
    inputs = rng.normal(size=(tokens, columns)) + rng.normal(size=(tokens, 4)) @ rng.normal(size=(4, columns))
    inputs *= np.exp(rng.normal(size=columns))
    return (inputs.T @ inputs / tokens).astype(np.float32)


def error_under(hessian, weights, restored):
    """Trace of D H D^T in float64."""
    difference = weights.astype(np.float64) - restored
    return float(((difference @ hessian.astype(np.float64)) * difference).sum())


def bits_fixed_first(weights, hessian, bits, group_size, weighted):
    """The way of the authors' code: a group's codes are chosen before its columns are compensated."""
    factor = inverse_factor(hessian, DAMPING, numpy_backend())
    importance = (1 / np.diagonal(factor) ** 2).astype(np.float32) if weighted else None
    now, restored = weights.copy(), np.empty_like(weights)
    for start in range(0, weights.shape[1], group_size):
        group = slice(start, start + group_size)
        part = None if importance is None else importance[group]
        fixed = HLQTensor(*fit_groups(now[:, group].copy(), bits, group_size, part), group_size).dequantize()
        restored[:, group] = fixed
        for column in range(start, start + group_size):
            error = (now[:, column] - fixed[:, column - start]) / factor[column, column]
            now[:, column + 1 :] -= error[:, None] * factor[column, column + 1 :]
    return restored


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_error_under_h_is_below_the_plain_fit_and_the_authors_way(bits, seed):
    rng = np.random.default_rng(seed)
    weights = (rng.standard_t(4, (48, 256)) * 0.05).astype(np.float32)
    hessian = correlated_hessian(rng, 256)
    factor = inverse_factor(hessian, DAMPING, numpy_backend())
    tensor = feedback(weights, factor, Layout(bits, 64), numpy_backend())
    ours = measure(weights, tensor, hessian, numpy_backend())
    error = error_under(hessian, weights, tensor.dequantize())
    assert ours == pytest.approx(np.sqrt(error / error_under(hessian, weights, 0.0)), rel=1e-4)
    for plain in (fit(weights, given, Layout(bits, 64), numpy_backend()) for given in (None, hessian)):
        assert error < error_under(hessian, weights, plain.dequantize())
    for weighted in (False, True):
        assert error < error_under(hessian, weights, bits_fixed_first(weights, hessian, bits, 64, weighted))


@pytest.mark.parametrize("bits", BITS)
def test_refitting_never_raises_a_rows_error(bits, monkeypatch):
    """The sum of squared errors is the error under the damped H, and falls or stays in every row."""
    rng = np.random.default_rng(60 + bits)
    weights = rng.normal(size=(64, 64)).astype(np.float32)
    hessian = correlated_hessian(rng, 64)
    factor = inverse_factor(hessian, DAMPING, numpy_backend())
    damped = damp(hessian)
    sums = []
    for refits in (0, 1, 2, 3):
        monkeypatch.setattr(stage, "REFITS", refits)
        half_scales, centers, codes, errors = quantize_group(weights, factor, bits, numpy_backend())
        tensor = HLQTensor(half_scales[:, None], centers[:, None], codes, 64)
        difference = weights - tensor.dequantize().astype(np.float64)
        sums.append(np.square(errors.astype(np.float64)).sum(axis=1))
        np.testing.assert_allclose(sums[-1], ((difference @ damped) * difference).sum(axis=1), rtol=1e-3)
    assert (np.diff(sums, axis=0) <= 0).all()
    assert sums[2].sum() < 0.99 * sums[0].sum()


def test_is_the_plain_fit_when_inputs_are_independent():
    rng = np.random.default_rng(4)
    weights = rng.normal(size=(16, 128)).astype(np.float32)
    scale = np.repeat(np.array([1.0, 5.0], dtype=np.float32), 64)
    factor = inverse_factor(np.diag(scale), DAMPING, numpy_backend())
    ours = feedback(weights, factor, Layout(2, 64), numpy_backend())
    plain = HLQTensor(*fit_groups(weights, 2, 64), 64)
    np.testing.assert_array_equal(ours.dequantize(), plain.dequantize())


def test_the_last_columns_compensate_what_the_first_cannot():
    """Two equal inputs: rounding the sum of their weights is all that counts, and feedback rounds the sum."""
    rng = np.random.default_rng(5)
    weights = rng.normal(size=(64, 64)).astype(np.float32)
    pairs = np.kron(np.eye(32), np.ones((2, 2))).astype(np.float32)
    ours = feedback(weights, inverse_factor(pairs, 1e-4, numpy_backend()), Layout(2, 32), numpy_backend()).dequantize()
    plain = fit(weights, pairs, Layout(2, 32), numpy_backend()).dequantize()
    assert error_under(pairs, weights, ours) < 0.8 * error_under(pairs, weights, plain)


@pytest.mark.parametrize("n", [1, 5, 64, 65, 200, 513])
def test_inverse_factor(n):
    hessian = correlated_hessian(np.random.default_rng(n), n)
    factor = inverse_factor(hessian, DAMPING, numpy_backend())
    assert factor.dtype == np.float32
    assert factor.flags.c_contiguous
    assert (np.tril(factor, -1) == 0).all()
    assert (np.diagonal(factor) > 0).all()
    exact = np.linalg.inv(damp(hessian))
    product = factor.astype(np.float64).T @ factor
    assert np.abs(product - exact).max() < 1e-4 * np.abs(exact).max()


@pytest.mark.parametrize("n", [1, 127, 128, 129, 300, 1100])
def test_invert_to_factor(n):
    """The lower triangle is not looked at; past TILE the products leave out what is zero."""
    rng = np.random.default_rng(n)
    root = np.triu(rng.normal(size=(n, n)) / n) + np.eye(n)
    factor = np.triu(root @ root.T).astype(np.float32)
    invert_to_factor(factor, numpy_backend())
    np.testing.assert_allclose(factor.astype(np.float64) @ root, np.eye(n), atol=1e-5)
    assert (np.tril(factor, -1) == 0).all()


def test_damping_is_raised_and_logged(caplog):
    hessian = correlated_hessian(np.random.default_rng(6), 64)
    hessian -= np.float32(0.25) * np.diag(np.diagonal(hessian))
    with caplog.at_level(logging.WARNING):
        factor = inverse_factor(hessian, 1e-3, numpy_backend())
    assert np.isfinite(factor).all()
    assert "damping raised to 0.1" in caplog.text


@pytest.mark.parametrize("damping", [Recipe.damping, 0.02])
def test_the_last_step_of_damping_ends_at_the_most(caplog, damping):
    """Ten times 0.3 would be past it, and so would a hundred times 0.02: 1 is tried all the same."""
    hessian = correlated_hessian(np.random.default_rng(6), 64)
    hessian -= np.float32(0.45) * np.diag(np.diagonal(hessian))
    with caplog.at_level(logging.WARNING):
        factor = inverse_factor(hessian, damping, numpy_backend())
    assert np.isfinite(factor).all()
    assert caplog.messages[-1].endswith("damping raised to 1")


@pytest.mark.parametrize("damping", [DAMPING, Recipe.damping])
def test_a_hopeless_hessian_is_refused(damping):
    hessian = np.ones((8, 8), dtype=np.float32) * 100
    np.fill_diagonal(hessian, 1.0)
    with pytest.raises(ElutqError, match=r"not positive definite even with damping 1$"):
        inverse_factor(hessian, damping, numpy_backend())
    hessian[3, 3] = np.nan
    with pytest.raises(ElutqError, match="overflow"):
        inverse_factor(hessian, damping, numpy_backend())


def test_columns_whose_input_is_always_zero():
    rng = np.random.default_rng(7)
    weights = rng.normal(size=(16, 128)).astype(np.float32)
    hessian = correlated_hessian(rng, 128)
    hessian[10, :] = hessian[:, 10] = 0.0
    hessian[64:, :] = hessian[:, 64:] = 0.0
    result = feedback(weights, inverse_factor(hessian, DAMPING, numpy_backend()), Layout(2, 64), numpy_backend())
    assert np.isfinite(result.dequantize()).all()
    assert 0.0 < measure(weights, result, hessian, numpy_backend()) < 0.5
    none = np.zeros_like(hessian)
    nothing = feedback(weights, inverse_factor(none, DAMPING, numpy_backend()), Layout(2, 64), numpy_backend())
    assert measure(weights, nothing, none, numpy_backend()) == 0.0
    assert np.isfinite(nothing.dequantize()).all()


@pytest.mark.parametrize("bits", BITS)
def test_inner_loop_against_a_direct_one(bits):
    rng = np.random.default_rng(bits)
    weights = rng.normal(size=(5, 32)).astype(np.float32)
    factor = inverse_factor(correlated_hessian(rng, 32), DAMPING, numpy_backend())
    half_scales, centers, _ = fit_groups(weights, bits, 32)
    codes, errors = feedback_columns(weights, factor, half_scales[:, 0], centers[:, 0])
    group_levels = levels(half_scales[:, 0], centers[:, 0]).astype(np.float64)
    for row in range(5):
        now = weights[row].astype(np.float64)
        for column in range(32):
            distance = np.abs(now[column] - group_levels[row])
            assert distance[codes[row, column]] <= distance.min() + 1e-5
            error = (now[column] - group_levels[row, codes[row, column]]) / factor[column, column]
            assert errors[row, column] == pytest.approx(error, rel=1e-4, abs=1e-4)
            now[column + 1 :] -= error * factor[column, column + 1 :]
