"""Products in tiles against float64, and what they are allowed to leave out."""

import numpy as np
import pytest
from conftest import needs_rounded_products

from elutq_cli.pipeline.compute.backend import native_backend, numpy_backend
from elutq_cli.pipeline.compute.products import (
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
from elutq_native.products import add_rounded_product

N = 1100  # three tiles to a side, the last of them narrow
KINDS = {
    all_of_it: (lambda matrix: matrix, lambda matrix: matrix),
    left_upper: (np.triu, lambda matrix: matrix),
    right_upper: (lambda matrix: matrix, np.triu),
    right_lower: (lambda matrix: matrix, np.tril),
}


@pytest.fixture(scope="module")
def backend():
    with native_backend(2, rounds=False) as native:
        yield native


def draw(seed, rows=N, columns=N):
    return np.random.default_rng(seed).standard_normal((rows, columns), dtype=np.float32)


@pytest.mark.parametrize("inner", KINDS, ids=lambda inner: inner.__name__)
def test_triangular_factors_give_the_whole_product(backend, inner):
    left, right = (shape(draw(seed)) for seed, shape in enumerate(KINDS[inner]))
    found = multiply(left, right, backend, inner)
    np.testing.assert_allclose(found, left.astype(np.float64) @ right, atol=1e-3)
    np.testing.assert_array_equal(found, multiply(left, right, numpy_backend(), inner))


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


def to_bfloat16(array):
    """Round to nearest, ties to even, as float32."""
    bits = np.ascontiguousarray(array).view(np.uint32)
    return ((bits + (0x7FFF + (bits >> 16 & 1))) & 0xFFFF0000).astype(np.uint32).view(np.float32).reshape(array.shape)


SHAPES = [(1, 1, 1), (7, 33, 31), (100, 515, 77), (513, 1025, 530), (16, 2, 32), (9, 0, 3)]
"""Rows, inner and columns of products: no whole panel, tile or block, and one more than a block."""


def lying(seed, rows, columns, turned):
    """A matrix whose rows, or columns, are contiguous."""
    return draw(seed, columns, rows).T if turned else draw(seed, rows, columns)


@needs_rounded_products
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("turned", [(False, False), (False, True), (True, False), (True, True)], ids=str)
def test_rounded_products_are_those_of_bfloat16(shape, turned):
    """In a target that is a part of an array, whose other elements stay."""
    rows, inner, columns = shape
    left, right = lying(0, rows, inner, turned[0]), lying(1, inner, columns, turned[1])
    whole = np.ones((rows + 2, columns + 3), dtype=np.float32)
    add_rounded_product(whole[1:-1, 2:-1], left, right)
    expected = 1 + to_bfloat16(left).astype(np.float64) @ to_bfloat16(right)
    np.testing.assert_allclose(whole[1:-1, 2:-1], expected, atol=1e-5 * max(1, inner) ** 0.5)
    whole[1:-1, 2:-1] = 1
    assert (whole == 1).all()


@needs_rounded_products
def test_factors_of_other_strides_and_types_are_copied():
    left, right = draw(0, 12, 40)[::2, ::2], draw(1, 20, 9).astype(np.float64)
    found = np.zeros((6, 9), dtype=np.float32)
    add_rounded_product(found, left, right)
    np.testing.assert_allclose(found, to_bfloat16(left).astype(np.float64) @ to_bfloat16(right.astype("f")), atol=1e-4)


@needs_rounded_products
def test_columns_are_read_and_added_to_in_their_order():
    """One column in steps back, of one element for all rows, or far apart: what a copy of it gives."""
    column, row = draw(0, 12, 1), draw(1, 1, 3)
    ways = column[::-1], column[::3], column[::-2], np.broadcast_to(column[:1], (5, 1)), draw(2, 5, 1)[:, ::-1]
    for left in ways:
        found = np.zeros((len(left), 3), dtype=np.float32)
        add_rounded_product(found, left, row)
        np.testing.assert_array_equal(found, to_bfloat16(left) * to_bfloat16(row))
        turned = np.zeros((3, len(left)), dtype=np.float32)
        add_rounded_product(turned, row.T, left.T)
        np.testing.assert_array_equal(turned, found.T)
    apart = np.zeros((10, 2), dtype=np.float32)
    add_rounded_product(apart[::2, :1], ways[-1], row[:, :1])
    np.testing.assert_array_equal(apart[::2, :1], to_bfloat16(ways[-1]) * to_bfloat16(row[:, :1]))
    assert not apart[1::2].any() and not apart[:, 1].any()


@needs_rounded_products
def test_factors_are_read_to_their_ends_and_no_further(memory):
    shapes = (37, 45), (45, 51), (37, 51)
    left, right, target = (memory.array(shape, np.float32) for shape in shapes)
    left[...], right[...] = draw(0, *shapes[0]), draw(1, *shapes[1])
    for a, b in ((left, right), (np.asfortranarray(left), right)):
        target[...] = 0
        add_rounded_product(target, a, b)
        np.testing.assert_allclose(target, to_bfloat16(left).astype(np.float64) @ to_bfloat16(right), atol=1e-4)


@needs_rounded_products
def test_rounded_products_do_not_hide_what_is_not_finite():
    left, right = draw(0, 40, 50), draw(1, 50, 60)
    left[3, 7], right[9, 11] = np.inf, np.nan
    found = np.zeros((40, 60), dtype=np.float32)
    add_rounded_product(found, left, right)
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(left @ right))


def test_products_that_do_not_fit_are_refused():
    places = {"does not fit": np.zeros((3, 3), np.float32), "rows of": np.zeros((5, 2), np.float32).T}
    for message, target in places.items():
        with pytest.raises(ValueError, match=message):
            add_rounded_product(target, draw(0, 2, 4), draw(1, 4, 5))


def test_a_product_is_added_only_where_rows_are_apart_and_may_be_written_to():
    read_only, whole = np.zeros((2, 1), np.float32), np.zeros((2, 1), np.float32)
    read_only.flags.writeable = False
    for target in (read_only, whole[::-1], np.lib.stride_tricks.as_strided(whole, (2, 1), (0, 4))):
        with pytest.raises(ValueError, match="rows of contiguous float32 that can be written to"):
            add_rounded_product(target, draw(0, 2, 4), draw(1, 4, 1))
    assert not whole.any() and not read_only.any()


@pytest.mark.parametrize(("columns", "group_size"), [(1100, 100), (512, 128), (32, 32), (14336, 64)])
def test_blocks_of_columns_are_of_whole_groups(columns, group_size):
    blocks = column_blocks(columns, group_size)
    assert [column for block in blocks for column in range(block.start, block.stop)] == list(range(columns))
    assert all(block.start % group_size == 0 for block in blocks)
