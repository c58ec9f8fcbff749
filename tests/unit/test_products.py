"""Products in tiles against float64, and what they are allowed to leave out."""

import numpy as np
import pytest

from elutq_cli.pipeline.backend import NativeBackend, NumpyBackend
from elutq_cli.pipeline.products import (
    add_gram,
    add_product,
    all_of_it,
    column_blocks,
    left_upper,
    mirror_upper,
    multiply,
    right_lower,
    right_upper,
    subtract_product,
)

N = 1100  # three tiles to a side, the last of them narrow
KINDS = {
    all_of_it: (lambda matrix: matrix, lambda matrix: matrix),
    left_upper: (np.triu, lambda matrix: matrix),
    right_upper: (lambda matrix: matrix, np.triu),
    right_lower: (lambda matrix: matrix, np.tril),
}


@pytest.fixture(scope="module")
def backend():
    with NativeBackend(2) as native:
        yield native


def draw(seed, rows=N, columns=N):
    return np.random.default_rng(seed).standard_normal((rows, columns), dtype=np.float32)


@pytest.mark.parametrize("inner", KINDS, ids=lambda inner: inner.__name__)
def test_triangular_factors_give_the_whole_product(backend, inner):
    left, right = (shape(draw(seed)) for seed, shape in enumerate(KINDS[inner]))
    found = multiply(left, right, backend, inner)
    np.testing.assert_allclose(found, left.astype(np.float64) @ right, atol=1e-3)
    np.testing.assert_array_equal(found, multiply(left, right, NumpyBackend(), inner))


@pytest.mark.parametrize("inner", [left_upper, right_upper, right_lower], ids=lambda inner: inner.__name__)
def test_what_a_triangle_leaves_out_is_not_read(backend, inner):
    """Full tiles where the factor is zero may hold anything."""
    factors = [shape(draw(seed)) for seed, shape in enumerate(KINDS[inner])]
    expected = multiply(*factors, backend, inner)
    spoilt = 0 if inner is left_upper else 1
    far = (slice(600, None), slice(0, 500)) if inner is not right_lower else (slice(0, 500), slice(600, None))
    factors[spoilt][far] = np.nan
    np.testing.assert_array_equal(multiply(*factors, backend, inner), expected)


@pytest.mark.parametrize("upper", [False, True])
def test_a_product_is_subtracted_in_place(backend, upper):
    target, left, right = draw(0), draw(1, N, 40), draw(2, 40, N)
    expected, before = target - left.astype(np.float64) @ right, target.copy()
    subtract_product(target, left, right, backend, upper)
    rows, columns = np.triu_indices(N) if upper else np.indices((N, N)).reshape(2, -1)
    np.testing.assert_allclose(target[rows, columns], expected[rows, columns], atol=1e-3)
    assert (target[1024:, :512] == before[1024:, :512]).all() == upper


def test_moments_of_inputs(backend):
    inputs, other = [draw(seed, 70) for seed in (0, 1)], draw(2, 70, 30)
    total = np.zeros((N, N), dtype=np.float32)
    add_gram(total, inputs, backend)
    mirror_upper(total, backend)
    np.testing.assert_allclose(total, sum(x.T.astype(np.float64) @ x for x in inputs), atol=1e-3)
    np.testing.assert_array_equal(total, total.T)
    product = np.ones((N, 30), dtype=np.float32)
    add_product(product, inputs[0], other, backend)
    np.testing.assert_allclose(product, 1 + inputs[0].T.astype(np.float64) @ other, atol=1e-3)


@pytest.mark.parametrize(("columns", "group_size"), [(1100, 100), (512, 128), (32, 32), (14336, 64)])
def test_blocks_of_columns_are_of_whole_groups(columns, group_size):
    blocks = column_blocks(columns, group_size)
    assert [column for block in blocks for column in range(block.start, block.stop)] == list(range(columns))
    assert all(block.start % group_size == 0 for block in blocks)
