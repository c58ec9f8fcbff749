"""Products in units of work: the bits of one worker's, whatever the number of workers, and float64's value."""

import numpy as np
import pytest
from conftest import needs_rounded_products
from elsewhere import Elsewhere, driver_of

from elutq_cli.pipeline.compute import divided
from elutq_cli.pipeline.compute.backend import native_backend
from elutq_cli.pipeline.compute.divided import (
    DIVIDED_ROWS,
    less_product,
    multiply_by_columns,
    multiply_by_rows,
    panel_columns,
    subtract_square,
    sum_moments,
)
from elutq_cli.pipeline.compute.products import (
    add_gram,
    add_product,
    left_upper,
    multiply,
    right_lower,
    right_upper,
    subtract_product,
)
from elutq_cli.pipeline.stages.feedback import invert_to_factor

N = 1100  # a tile, and part of another
ROUNDS = [False, pytest.param(True, marks=needs_rounded_products)]
WORKERS = [2, 3, 16]


def draw(seed, rows=N, columns=N):
    return np.random.default_rng(seed).standard_normal((rows, columns), dtype=np.float32)


@pytest.fixture
def driver(monkeypatch):
    """Returns a backend, whose units so many others run; products are divided however small they are."""
    monkeypatch.setattr(divided, "DIVIDED_ROWS", 1)
    with native_backend(2, False) as here, native_backend(1, False) as there:
        yield lambda workers: driver_of(here, Elsewhere(there, workers))


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("rounds", ROUNDS)
def test_moments_by_parts_have_the_bits_of_those_summed_as_batches_come(workers, rounds):
    columns, rows = 3300, 1500  # four tiles to a side, the last one narrow, and two
    inputs, others = ([draw(seed, 90 - seed, n) for seed in (1, 2, 3)] for n in (columns, rows))
    scales = [np.abs(draw(seed, 90 - seed, 1)) for seed in (1, 2, 3)]
    with native_backend(2, rounds) as here, native_backend(1, rounds) as there:
        expected, beside = np.zeros((columns, columns), np.float32), np.zeros((rows, columns), np.float32)
        add_gram(expected, inputs, here)
        for y, x in zip(others, inputs, strict=True):
            add_product(beside, y, x, here)
        elsewhere = Elsewhere(there, workers)
        found, found_beside = sum_moments(inputs, others, driver_of(here, elsewhere))
        alone, nothing = sum_moments(inputs, None, driver_of(here, Elsewhere(there, workers)))
        scaled = [[x * scale for x, scale in zip(of, scales, strict=True)] for of in (inputs, others)]
        weighed = sum_moments(inputs, others, driver_of(here, Elsewhere(there, workers)), scales)
        for own, wanted in zip(weighed, sum_moments(*scaled, driver_of(here, Elsewhere(there, workers))), strict=True):
            np.testing.assert_array_equal(own, wanted)
    upper = np.triu_indices(columns)
    np.testing.assert_array_equal(found[upper], expected[upper])
    np.testing.assert_array_equal(found_beside, beside)
    np.testing.assert_array_equal(alone, found)
    assert nothing is None and elsewhere.n_units >= 2 * min(workers, 4)
    if not rounds:
        exact = sum(y.astype(np.float64).T @ x for y, x in zip(others, inputs, strict=True))
        np.testing.assert_allclose(found_beside, exact, atol=1e-3)
    assert elsewhere.shelf.shipped_bytes == sum(array.nbytes for array in (*inputs, *others))  # each once


@pytest.mark.parametrize("workers", WORKERS)
def test_divided_products_have_the_bits_of_whole_ones(driver, workers):
    left, right = draw(1), draw(2)
    several = driver(workers)
    for inner in (right_lower, right_upper):
        expected = multiply(left, right.T, several, inner)
        np.testing.assert_array_equal(multiply_by_rows(left, right, several, inner, transposed=True), expected)
    np.testing.assert_array_equal(
        multiply_by_columns(left, right, several, left_upper), multiply(left, right, several, left_upper)
    )
    target, expected = draw(3), draw(3)
    subtract_product(expected, left, left.T, several, upper=True)
    subtract_square(target, left, several)
    np.testing.assert_array_equal(target, expected)
    before, expected = draw(3), draw(3)
    subtract_product(expected, left, right, several)
    np.testing.assert_array_equal(less_product(before, left, right, several), expected)
    np.testing.assert_array_equal(before, draw(3))
    assert several.executor.n_units > 10


def test_a_factor_of_divided_products_has_the_bits_of_one_workers(driver):
    x = draw(5, 2 * N)
    hessian = x.T @ x / np.float32(len(x)) + np.eye(N, dtype=np.float32)
    factors = [hessian.copy() for _ in range(3)]
    several = driver(3)
    invert_to_factor(factors[0], several)
    with native_backend(1, False) as alone:
        invert_to_factor(factors[1], alone)
    np.testing.assert_array_equal(factors[0], factors[1])
    assert several.executor.n_units > 20
    inverse = np.linalg.inv(hessian.astype(np.float64))
    np.testing.assert_allclose(factors[0].T.astype(np.float64) @ factors[0], inverse, atol=1e-4)


def test_small_products_are_not_sent(driver, monkeypatch):
    monkeypatch.setattr(divided, "DIVIDED_ROWS", DIVIDED_ROWS)
    several = driver(4)
    multiply_by_rows(draw(1), draw(2), several)
    multiply_by_columns(draw(1), draw(2), several)
    subtract_square(draw(1), draw(2), several)
    assert several.executor.n_units == 0


@pytest.mark.parametrize("workers", [1, 2, 4, 16, 64, 1000])
@pytest.mark.parametrize("columns", [64, 4096, 14336, 53248])
def test_panels_are_whole_tiles_and_enough_of_them_for_all(columns, workers):
    size = 1024
    width = panel_columns(columns, workers, size)
    n_panels, n_tiles = -(-columns // width), -(-columns // size)
    assert width % size == 0
    assert n_panels == n_tiles or n_panels * (n_panels + 1) // 2 >= workers
