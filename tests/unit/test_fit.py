"""The fit stage: its objective, its solve and its rounding, against brute force and direct sums in float64."""

import itertools

import numpy as np
import pytest

from elutq_cli.pipeline.compute.backend import numpy_backend
from elutq_cli.pipeline.compute.levels import levels, nearest, signs
from elutq_cli.pipeline.compute.loops.fit_groups import SortedGroups, descend, fit_groups, fit_sorted, starting_points
from elutq_cli.pipeline.layout import EVEN8C, Layout
from elutq_cli.pipeline.stages.fit import fit
from elutq_cli.pipeline.stages.measure import measure
from elutq_formats.block_kind import CENTER_UNIT
from elutq_formats.hlq import HLQTensor

BITS = (1, 2, 3, 4)


def random_groups(rng, size, n):
    """Groups with light, normal and heavy tails, some off centre: (size, n) float32."""
    kinds = [rng.uniform(-1, 1, (size, n)), rng.normal(size=(size, n)), rng.standard_t(3, (size, n))]
    groups = np.concatenate(kinds, axis=1) * np.exp(rng.normal(size=3 * n)) + rng.normal(size=3 * n) * 0.3
    return groups.astype(np.float32)


def weighted_error(groups, importance, half_scales, centers):
    """Error of float64 levels (bits, n), (n,) with the nearest chosen by trying all: (n,) float64."""
    values = centers + np.einsum("cb,bn->cn", signs(len(half_scales)), half_scales)
    distance = (groups.astype(np.float64)[None] - values[:, None]) ** 2
    return (importance * distance.min(axis=0)).sum(axis=0)


def brute_force(weights, importance, bits):
    """Least weighted error over every assignment of codes, each with its own least-squares levels."""
    assignments = np.array(list(itertools.product(range(2**bits), repeat=len(weights))))
    features = np.concatenate([signs(bits)[assignments], np.ones((*assignments.shape, 1))], axis=2)
    root = np.sqrt(importance.astype(np.float64))
    features, target = features * root[:, None], weights.astype(np.float64) * root
    solution = np.linalg.pinv(features) @ target
    return (((features @ solution[..., None])[..., 0] - target) ** 2).sum(axis=1).min()


def levels_through_weights(values, bits):
    """Yield the lowest level and the one or two next to it of every set of levels through bits + 1 of the values."""
    for chosen in itertools.combinations(values, bits + 1):
        yield chosen
        if bits == 2:
            first, second, third = chosen
            yield first, second, first + third - second  # the highest level is the third value
            yield first + second - third, first, second  # the lowest level is none of the values


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("weighted", [False, True])
def test_error_never_rises(bits, weighted):
    rng = np.random.default_rng(bits)
    groups = random_groups(rng, 64, 200)
    importance = (rng.gamma(0.3, size=groups.shape) if weighted else np.ones(groups.shape)).astype(np.float32)
    statistics = SortedGroups.of(groups, importance)
    for start in starting_points(bits):
        reach = statistics.values[-1]
        half_scales, centers = start[:bits, None] * reach, start[bits] * reach
        history = descend(statistics, half_scales, centers, 40)
        assert len(history) > 2
        assert (np.diff(history, axis=0) <= 1e-12 * statistics.energy).all()
        # The running sums lose nothing: the last error is that of the levels returned.
        direct = weighted_error(groups, importance, half_scales, centers + statistics.middle)
        np.testing.assert_allclose(history.min(axis=0), direct, rtol=1e-7, atol=1e-12 * statistics.energy.max())


@pytest.mark.parametrize("bits", [1, 2])
def test_equals_brute_force_on_tiny_groups(bits):
    """Alternating optimisation finds a local optimum; from enough starts that is the best of all assignments.

    Here it starts from all levels through bits + 1 of the six weights; a real group has too many weights for that.
    """
    rng = np.random.default_rng(10 + bits)
    groups = rng.normal(size=(6, 40)).astype(np.float32)
    importance = rng.gamma(1.0, size=groups.shape).astype(np.float32) + 0.05
    optimum = np.array([brute_force(groups[:, i], importance[:, i], bits) for i in range(40)])
    statistics = SortedGroups.of(groups, importance)
    best = np.full(40, np.inf)
    for low, *others in levels_through_weights(statistics.values, bits):
        half_scales = np.stack([(other - low) / 2 for other in others])
        centers = low + half_scales.sum(axis=0)
        descend(statistics, half_scales, centers, 50)
        found = weighted_error(groups, importance, half_scales, centers + statistics.middle)
        best = np.minimum(best, found)
    assert (best >= optimum - 1e-9).all()
    np.testing.assert_allclose(best, optimum, atol=1e-9)
    # The starts that real groups get are few: they may miss the optimum of a tiny group, but never pass it.
    half_scales, centers = fit_sorted(statistics, starting_points(bits))
    usual = weighted_error(groups, importance, half_scales, centers + statistics.middle)
    assert (usual >= optimum - 1e-9).all()
    assert usual.sum() < 1.2 * optimum.sum()


@pytest.mark.parametrize("bits", BITS)
def test_more_starts_are_never_worse_than_the_uniform_one(bits):
    rng = np.random.default_rng(20 + bits)
    groups = random_groups(rng, 128, 60)
    importance = np.ones_like(groups)
    statistics = SortedGroups.of(groups, importance)
    reach = statistics.values[-1]
    half_scales, centers = starting_points(bits)[0][:bits, None] * reach, np.zeros_like(reach)
    descend(statistics, half_scales, centers, 50)
    alone = weighted_error(groups, importance, half_scales, centers + statistics.middle)
    half_scales, centers = fit_sorted(statistics, starting_points(bits))
    together = weighted_error(groups, importance, half_scales, centers + statistics.middle)
    assert (together <= alone * (1 + 1e-9)).all()
    if bits > 1:
        assert together.sum() < 0.999 * alone.sum()


@pytest.mark.parametrize("bits", BITS)
def test_recovers_planted_levels(bits):
    rng = np.random.default_rng(30 + bits)
    half_scales = np.array([[[0.25, 0.5, 1.0625, 2.25][:bits]]] * 20, dtype=np.float16)
    centers = rng.integers(-8, 8, (20, 1)).astype(np.float16) / np.float16(8)
    codes = rng.integers(0, 2**bits, (20, 64)).astype(np.uint8)
    weights = HLQTensor(half_scales, centers, codes, 64).dequantize()
    fitted = HLQTensor(*fit_groups(weights, bits, 64), 64)
    np.testing.assert_array_equal(fitted.dequantize(), weights)


@pytest.mark.parametrize("bits", BITS)
def test_every_weight_has_the_nearest_level(bits):
    rng = np.random.default_rng(40 + bits)
    weights = np.ascontiguousarray(random_groups(rng, 64, 5).T).reshape(5, -1)
    half_scales, centers, codes = fit_groups(weights, bits, 32)
    assert (half_scales >= 0).all()
    tensor = HLQTensor(half_scales, centers, codes, 32)
    values = np.repeat(levels(half_scales, centers), 32, axis=1)
    distance = np.abs(weights[..., None] - values)
    np.testing.assert_array_equal(np.abs(weights - tensor.dequantize()), distance.min(axis=-1))
    np.testing.assert_array_equal(codes, distance.argmin(axis=-1))


def test_nearest_takes_the_lowest_code_of_equal_ones():
    weights = np.array([[0.0, 0.5, -0.5, 9.0]], dtype=np.float32)
    assert nearest(weights, np.array([[-1.0, 1.0, 1.0, 0.0]], dtype=np.float32)).tolist() == [[3, 1, 0, 1]]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    "group",
    {
        "constant": np.full(32, 0.37),
        "zeros": np.zeros(32),
        "single outlier": np.r_[np.full(31, 0.01), 50.0],
        "huge": np.linspace(-1e4, 1e4, 32),
        "largest": np.r_[np.full(16, -65504.0), np.full(16, 65504.0)],
        "tiny": np.linspace(-1e-8, 1e-8, 32),
        "subnormal": np.linspace(-1e-40, 1e-40, 32),
        "two values": np.r_[np.full(16, -1.0), np.full(16, 3.0)],
        "signed zeros": np.r_[np.full(16, -0.0), np.full(16, 0.0)],
        "far from zero": 1000.0 + np.linspace(-1e-3, 1e-3, 32),
    }.items(),
    ids=lambda item: item[0],
)
def test_degenerate_groups_stay_finite(bits, group):
    weights = np.asarray(group[1], dtype=np.float32)[None]
    half_scales, centers, codes = fit_groups(weights, bits, 32)
    tensor = HLQTensor(half_scales, centers, codes, 32)
    assert np.isfinite(half_scales).all()
    assert np.isfinite(centers).all()
    assert (half_scales >= 0).all()
    # Never worse than the middle alone, to float16's precision (2^-11 of the value, or half a subnormal).
    middle = (weights.max() + weights.min()) / 2
    allowed = np.abs(weights - middle).max() + np.abs(weights).max() * 2**-11 + 2**-25
    assert np.abs(tensor.dequantize() - weights).max() <= allowed * (1 + 1e-6)
    if np.unique(weights.astype(np.float16).astype(np.float32)).size == 1 and group[0] != "far from zero":
        np.testing.assert_allclose(tensor.dequantize(), weights, rtol=2**-10, atol=2**-24)


def test_importance_counts_like_repeated_columns():
    """A column of importance 3 costs what three equal columns of importance 1 do."""
    rng = np.random.default_rng(50)
    narrow = rng.normal(size=(32, 8)).astype(np.float32)
    times = rng.integers(1, 4, 32)
    wide = np.repeat(narrow, times, axis=0)
    weighted = SortedGroups.of(narrow, np.repeat(times[:, None], 8, axis=1).astype(np.float32))
    plain = SortedGroups.of(wide, np.ones_like(wide))
    for left, right in zip(*(fit_sorted(groups, starting_points(2)) for groups in (weighted, plain)), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-6, atol=1e-9)


def test_columns_without_importance_do_not_pull_the_levels():
    rng = np.random.default_rng(51)
    weights = rng.choice(np.array([-1.0, 1.0], dtype=np.float32), (4, 64))
    weights[:, ::2] = rng.uniform(-1, 1, (4, 32))
    importance = np.tile(np.array([0.0, 1.0], dtype=np.float32), 32)
    restored = HLQTensor(*fit_groups(weights, 1, 64, importance), 64).dequantize()
    np.testing.assert_allclose(restored[:, 1::2], weights[:, 1::2], rtol=2**-11)


def test_stage_weighs_columns_by_the_diagonal_and_measures_under_the_whole_hessian():
    rng = np.random.default_rng(52)
    weights = rng.normal(size=(16, 128)).astype(np.float32)
    inputs = rng.normal(size=(500, 128)) * np.exp(rng.normal(size=128)) @ (np.eye(128) + 0.1)
    inputs[:, 64:96] = 0.0  # a group whose inputs are never used still gets sound levels
    hessian = (inputs.T @ inputs).astype(np.float32)
    result = fit(weights, hessian, Layout(2, 32), numpy_backend())
    difference = (weights - result.dequantize()).astype(np.float64)
    exact = np.asarray(hessian, dtype=np.float64)
    squared = np.trace(difference @ exact @ difference.T) / np.trace(weights @ exact @ weights.T.astype(np.float64))
    assert measure(weights, result, hessian, numpy_backend()) == pytest.approx(np.sqrt(squared), rel=1e-4)
    diagonal = np.diagonal(exact)
    plain = weights - fit(weights, None, Layout(2, 32), numpy_backend()).dequantize()
    assert (difference**2 @ diagonal).sum() < (plain.astype(np.float64) ** 2 @ diagonal).sum()
    unused = weights[:, 64:96] - result.dequantize()[:, 64:96]
    assert (unused**2).sum() < 0.2 * (weights[:, 64:96] ** 2).sum()


def test_error_without_hessian_is_relative_rms():
    rng = np.random.default_rng(53)
    weights = rng.normal(size=(8, 64)).astype(np.float32)
    result = fit(weights, None, Layout(3, 64), numpy_backend())
    difference = (weights - result.dequantize()).astype(np.float64)
    expected = np.linalg.norm(difference) / np.linalg.norm(weights)
    assert measure(weights, result, None, numpy_backend()) == pytest.approx(expected, rel=1e-5)
    zeros = np.zeros((8, 64), np.float32)
    assert measure(zeros, fit(zeros, None, Layout(3, 64), numpy_backend()), None, numpy_backend()) == 0.0


@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize("group_size", [32, 128])
@pytest.mark.parametrize("bits", [3, 4])
def test_evenly_spaced_levels_are_nearly_the_best_that_a_file_can_hold(bits, group_size, is_weighted):
    """Of every byte for the half scale, each with every center to 4 half scales from the middle of the range."""
    rng = np.random.default_rng([bits, group_size])
    weights = rng.normal(0.01, 0.05, (15, group_size)).astype(np.float32)
    importance = rng.lognormal(size=group_size).astype(np.float32) if is_weighted else np.ones(group_size, np.float32)
    kind = Layout(bits, group_size, EVEN8C).settle([weights])[1]
    found = HLQTensor(*fit_groups(weights, bits, group_size, importance, kind), group_size, kind)
    middle = (weights.min(axis=1) + weights.max(axis=1)).astype(np.float64) / 2
    best = np.full(len(weights), np.inf)
    for first in kind.restore_half_scales(np.arange(1, 256, dtype=np.uint8)).astype(np.float64):
        counts = np.clip(np.rint(middle / (first * CENTER_UNIT)) + np.arange(-16, 17)[:, None], -128, 127)
        shifted = weights - (first * CENTER_UNIT * counts)[..., None]
        codes = np.clip(np.floor(shifted / (2 * first) + 2 ** (bits - 1)), 0, 2**bits - 1)
        off = shifted - first * (2 * codes - 2**bits + 1)
        best = np.minimum(best, (off * off @ importance).min(axis=0))
    error = np.square(found.dequantize().astype(np.float64) - weights) @ importance
    assert (error >= best * (1 - 1e-5)).all()
    print(error.sum() / best.sum())
    assert error.sum() < 1.02 * best.sum()
