"""What half scales and centers are rounded to: the numbers that bytes stand for, decoded here on their own."""

import numpy as np
import pytest

from elutq_cli.pipeline.compute.backend import native_backend
from elutq_cli.pipeline.compute.loops.fit_groups import fit_groups
from elutq_cli.pipeline.layout import FREE8, bytes_reaching
from elutq_formats.block_kind import FREE16, BlockKind
from elutq_formats.hlq import HLQTensor

EXPONENTS = (0, 5, 23)
ROUNDED_TWICE = 2.0**-10, 2.0**-24
"""Values are float16 before they are bytes: what that adds to a distance at most, relative and in powers of two."""


def half_scales_of_bytes(exponent):
    """Three bits of exponent and five of mantissa: (256,) float64, ascending."""
    return np.array([small_float(byte >> 5, (byte & 31) / 32) for byte in range(256)]) * 2.0**exponent


def centers_of_bytes(exponent):
    """A sign, three bits of exponent and four of mantissa: (255,) float64, ascending."""
    magnitudes = np.array([small_float(byte >> 4, (byte & 15) / 16) for byte in range(128)]) * 2.0**exponent
    return np.concatenate([-magnitudes[:0:-1], magnitudes])


def small_float(exponent, fraction):
    return fraction * 2.0**-14 if exponent == 0 else (1.0 + fraction) * 2.0 ** (exponent - 15)


def round_half_scales(grid, values):
    return grid.round_half_scales(np.abs(values))


def random_values(exponent):
    """Of all sizes, from below the least byte to twice the last, of both signs."""
    rng = np.random.default_rng(exponent)
    return 2.0 ** (exponent + rng.uniform(-22, -6, 4000)) * rng.choice([-1.0, 1.0], 4000)


KINDS = [(round_half_scales, half_scales_of_bytes), (BlockKind.round_centers, centers_of_bytes)]


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize(("rounding", "of_bytes"), KINDS)
def test_what_a_byte_stands_for_is_kept(rounding, of_bytes, exponent):
    table = of_bytes(exponent)
    np.testing.assert_array_equal(rounding(BlockKind(FREE8, exponent), table).astype(np.float64), table)


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize(("rounding", "of_bytes"), KINDS)
def test_values_go_to_the_nearest_of_those_and_large_ones_to_the_last(rounding, of_bytes, exponent):
    table, values = of_bytes(exponent), random_values(exponent)
    found = rounding(BlockKind(FREE8, exponent), values).astype(np.float64)
    wanted = values if table[0] < 0 else np.abs(values)
    assert np.isin(found, table).all()
    off = np.abs(found - wanted)
    least = np.abs(wanted[:, None] - table).min(axis=1)
    relative, absolute = ROUNDED_TWICE
    assert (off <= least + relative * np.abs(wanted) + absolute * 2.0**exponent).all()
    large = np.abs(values) > table[-1]
    assert large.any()
    np.testing.assert_array_equal(np.abs(found[large]), table[-1])
    assert len(np.unique(found)) > 0.8 * len(table)


@pytest.mark.parametrize("largest", [2.0**-9, 0.0021, 0.037, 0.25, 0.2499, 1.0, 3.1, 65504.0])
def test_the_grid_of_a_matrix_reaches_its_largest_weight_and_no_finer_one_does(largest):
    grid = bytes_reaching(largest)
    rounded = grid.round_half_scales(np.array([largest])), grid.round_centers(np.array([-largest]))
    np.testing.assert_allclose(np.abs(np.concatenate(rounded)), largest, rtol=2.0**-5)
    if grid.exponent:
        finer = BlockKind(FREE8, grid.exponent - 1).round_half_scales(np.array([largest]))
        assert finer[0] < 0.99 * largest


def test_the_grid_of_zeros_is_the_finest():
    assert bytes_reaching(0.0) == bytes_reaching(1e-30) == BlockKind(FREE8, 0)


def test_any_half_is_float16():
    values = random_values(10)
    np.testing.assert_array_equal(FREE16.round_centers(values), values.astype(np.float16))


@pytest.mark.parametrize(("bits", "most"), [(1, 1.001), (2, 1.003), (3, 1.01), (4, 1.03)])
@pytest.mark.parametrize("group_size", [64, 128])
def test_levels_of_bytes_fit_nearly_as_well_as_any_half(bits, group_size, most):
    """Squared error over all: above that of free halves by no more than 0.3, 1 and 3 % at 2, 3 and 4 bits."""
    rng = np.random.default_rng(0)
    spread = np.exp(0.5 * rng.normal(size=(96, 1)))
    weights = (0.02 * spread * rng.standard_t(6, (96, 256))).astype(np.float32)
    error = []
    with native_backend(1) as backend:
        for grid in (FREE16, bytes_reaching(float(np.abs(weights).max()))):
            fitted = HLQTensor(*backend.loops.fit_groups(weights, bits, group_size, None, grid), group_size)
            error.append(np.square(fitted.dequantize() - weights).sum())
    print(error[1] / error[0])
    assert 1.0 < error[1] / error[0] < most


@pytest.mark.parametrize("exponent", [15, 16, 23])
def test_large_levels_are_stored_whatever_their_type(exponent):
    """Float16 numbers divided in their own type by two to the 16 would all be zeros."""
    kind = BlockKind(FREE8, exponent)
    half_scales, centers = half_scales_of_bytes(exponent), centers_of_bytes(exponent)
    for of_type in (np.float16, np.float32, np.float64):
        np.testing.assert_array_equal(kind.round_half_scales(half_scales.astype(of_type)), half_scales)
        np.testing.assert_array_equal(kind.round_centers(centers.astype(of_type)), centers)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_fitted_levels_are_of_bytes(bits):
    weights = np.random.default_rng(bits).normal(size=(20, 64)).astype(np.float32)
    half_scales, centers, _ = fit_groups(weights, bits, 32, None, BlockKind(FREE8, 9))
    assert np.isin(half_scales, half_scales_of_bytes(9)).all()
    assert np.isin(centers, centers_of_bytes(9)).all()
