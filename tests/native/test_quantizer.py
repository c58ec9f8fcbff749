"""The quantizer's C loops against their numpy twins.

Tolerance: none. Both do the same IEEE operations in the same order (compiled without contraction), so every bit of half
scales, centers, codes and errors is compared.
"""

import numpy as np
import pytest

from elutq_cli.pipeline.compute.backend import native_backend, numpy_backend
from elutq_cli.pipeline.compute.loops.fit_groups import ITERATIONS, PROXIMITY, fit_groups, starting_points
from elutq_cli.pipeline.layout import EVEN8C, FREE8, Layout
from elutq_cli.pipeline.stages.feedback import feedback, inverse_factor
from elutq_formats.block_kind import FREE16, KIND_NUMBERS, BlockKind
from elutq_formats.constants import KIND_BYTES, KIND_CENTERS, KIND_EVEN, MAX_EXPONENT
from elutq_formats.errors import FormatError
from elutq_formats.hlq import HLQTensor, pack
from elutq_native import NativeError, lib
from elutq_native.quantizer import Quantizer

BITS = (1, 2, 3, 4)
GROUP_SIZES = (32, 64, 128, 256)


@pytest.fixture(scope="module")
def native():
    with native_backend(2) as backend:
        yield backend


def random_weights(rng, rows, columns):
    heavy = rng.standard_t(3, (rows, columns)) * np.exp(rng.normal(size=(rows, 1)))
    return (heavy + rng.normal(size=(rows, 1)) * 0.2).astype(np.float32)


def assert_same(left, right):
    for one, other in zip(left, right, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_fit_equals_the_twin(native, bits, group_size):
    rng = np.random.default_rng(100 * bits + group_size)
    for rows in (1, 17, 40):
        weights = random_weights(rng, rows, 2 * group_size)
        importance = rng.gamma(0.5, size=2 * group_size).astype(np.float32)
        importance[::7] = 0.0
        for given in (None, importance):
            assert_same(
                native.loops.fit_groups(weights, bits, group_size, given), fit_groups(weights, bits, group_size, given)
            )


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("exponent", [0, 8, MAX_EXPONENT])
@pytest.mark.parametrize("name", [FREE8, EVEN8C])
def test_fit_equals_the_twin_where_levels_are_bytes(native, name, bits, exponent):
    """Of weights that bytes reach, that are below the least of them, and that are above the last."""
    rng = np.random.default_rng([bits, exponent])
    exponent -= bits - 1 if name == EVEN8C and exponent == MAX_EXPONENT else 0
    weights = (
        random_weights(rng, 40, 128) * np.exp2(np.linspace(exponent - 30, exponent, 40, dtype=np.float32))[:, None]
    )
    importance = rng.gamma(0.5, size=128).astype(np.float32)
    weights[3], weights[4] = 0.0, np.round(weights[4])
    kind = BlockKind(name, exponent)
    for given in (None, importance):
        found, twin = (
            native.loops.fit_groups(weights, bits, 64, given, kind),
            fit_groups(weights, bits, 64, given, kind),
        )
        assert [part.tobytes() for part in found] == [part.tobytes() for part in twin]  # zeros have a sign
        assert found[1].dtype == twin[1].dtype == kind.centers_type
        kind.encode(*found[:2])  # nothing that a file could not hold


@pytest.mark.parametrize("bits", BITS)
def test_fit_equals_the_twin_on_weights_with_ties(native, bits):
    """Checkpoints in bfloat16 are full of equal weights, zeros of both signs among them."""
    rng = np.random.default_rng(bits)
    weights = (np.round(rng.normal(size=(50, 256)) * 4) / 64).astype(np.float32)
    weights[weights == 0] *= rng.choice([-1, 1], (weights == 0).sum())
    importance = rng.gamma(1.0, size=256).astype(np.float32)
    for given in (None, importance):
        assert_same(native.loops.fit_groups(weights, bits, 128, given), fit_groups(weights, bits, 128, given))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("value", [0.0, 0.37, 1e4, -65504.0, 1e-8, 1e-40])
def test_fit_equals_the_twin_on_degenerate_groups(native, bits, value):
    weights = np.full((3, 64), value, dtype=np.float32)
    weights[1, 5] = -value / 2
    weights[2, 32:] *= -1
    found = native.loops.fit_groups(weights, bits, 32)
    assert_same(found, fit_groups(weights, bits, 32))
    assert np.isfinite(found[0]).all()
    assert np.isfinite(found[1]).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", [1, 6, 31])
def test_fit_equals_the_twin_on_odd_group_sizes(native, bits, group_size):
    weights = random_weights(np.random.default_rng(group_size), 12, 3 * group_size)
    assert_same(native.loops.fit_groups(weights, bits, group_size), fit_groups(weights, bits, group_size))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_feedback_equals_the_twin(native, bits, group_size):
    rng = np.random.default_rng(bits + group_size)
    inputs = rng.normal(size=(400, 2 * group_size)) @ rng.normal(size=(2 * group_size, 2 * group_size))
    factor = inverse_factor((inputs.T @ inputs).astype(np.float32), 0.01, numpy_backend())
    for rows, kind in ((1, FREE16), (16, FREE16), (37, FREE16), (16, BlockKind(FREE8, 9)), (16, BlockKind(EVEN8C, 6))):
        weights = random_weights(rng, rows, 2 * group_size)
        assert_same(
            [*_parts(feedback(weights, factor, Layout(bits, group_size), native, kind))],
            [*_parts(feedback(weights, factor, Layout(bits, group_size), numpy_backend(), kind))],
        )


def _parts(tensor):
    return tensor.half_scales, tensor.centers, tensor.codes


def test_results_do_not_depend_on_the_number_of_threads():
    rng = np.random.default_rng(9)
    weights = random_weights(rng, 75, 128)
    factor = inverse_factor(np.cov(rng.normal(size=(300, 128)).T).astype(np.float32), 0.01, numpy_backend())
    results = []
    for threads in (1, 2, 3, 7):
        with native_backend(threads) as backend:
            half_scales, centers, codes = backend.loops.fit_groups(weights, 3, 128)
            results.append(
                (
                    half_scales,
                    centers,
                    codes,
                    *backend.loops.feedback_columns(weights, factor, half_scales[:, 0], centers[:, 0]),
                )
            )
    for other in results[1:]:
        assert_same(results[0], other)


def test_slices_of_columns_are_read_in_place_and_left_alone(native):
    rng = np.random.default_rng(10)
    weights = random_weights(rng, 20, 256)
    before = weights.copy()
    middle = slice(64, 192)
    found = native.loops.fit_groups(weights[:, middle], 2, 64)
    assert_same(found, fit_groups(np.ascontiguousarray(weights[:, middle]), 2, 64))
    turned = np.asfortranarray(weights)
    assert_same(native.loops.fit_groups(turned[:, middle], 2, 64), found)
    factor = inverse_factor(np.cov(rng.normal(size=(500, 256)).T).astype(np.float32), 0.01, numpy_backend())
    half_scales, centers = found[0][:, 0], found[1][:, 0]
    group = slice(64, 128)
    codes = native.loops.feedback_columns(weights[:, group], factor[group, group], half_scales, centers)
    assert_same(
        codes, numpy_backend().loops.feedback_columns(weights[:, group], factor[group, group], half_scales, centers)
    )
    np.testing.assert_array_equal(weights, before)


def test_impossible_arguments_are_refused():
    quantizer = Quantizer(1)
    weights = np.zeros((4, 512), dtype=np.float32)

    def fit(bits=2, group_size=64, importance=None, starts=None, proximity=PROXIMITY, grid=(0, 0)):
        starts = starting_points(bits) if starts is None else starts
        return quantizer.fit(weights, starts, group_size, importance, ITERATIONS, proximity, *grid)

    fit()
    for wrong in (
        {"bits": 0},
        {"bits": 5},
        {"group_size": 0},
        {"group_size": 48},
        {"group_size": 512},
        {"importance": np.ones(64, dtype=np.float32)},
        {"starts": np.empty((0, 3))},
        {"proximity": 0.0},
        {"proximity": float("nan")},
        {"grid": (0, 1)},
        {"grid": (KIND_BYTES, MAX_EXPONENT + 1)},
        {"grid": (KIND_EVEN, 0)},
        {"grid": (KIND_EVEN | KIND_BYTES, 0)},
        {"grid": (KIND_EVEN | KIND_BYTES | KIND_CENTERS, MAX_EXPONENT)},
        {"grid": (255, 0)},
    ):
        with pytest.raises(ValueError, match=r"columns|bits must be"):
            fit(**wrong)
    scales, centers = np.zeros((4, 2), dtype=np.float16), np.zeros(4, dtype=np.float16)
    factor = np.eye(64, dtype=np.float32)
    quantizer.feedback(weights[:, :64], factor, scales, centers)
    for arguments in (
        (weights[:, :32], factor, scales, centers),
        (weights[:, :64], factor, scales[:3], centers),
        (weights[:, :64], factor, scales, centers[:3]),
        (weights[:, :64], factor, np.zeros((4, 5), dtype=np.float16), centers),
        (weights, np.eye(256, dtype=np.float32), scales, centers),
    ):
        with pytest.raises(ValueError, match=r"fit|columns|bits must be"):
            quantizer.feedback(*arguments)
    quantizer.close()


@pytest.mark.parametrize("threads", [0, 257])
def test_impossible_numbers_of_threads_are_refused(threads):
    with pytest.raises(NativeError, match="1 to 256") as caught:
        Quantizer(threads)
    assert caught.value.bad_input


def random_matrix(rng, rows, columns, bits, group_size):
    half_scales = rng.random((rows, columns // group_size, bits)).astype(np.float16)
    centers = rng.normal(size=half_scales.shape[:2]).astype(np.float16)
    return HLQTensor(half_scales, centers, rng.integers(0, 2**bits, (rows, columns), dtype=np.uint8), group_size)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("rows", [1, 31, 32, 33, 255, 257, 700])
def test_pack_equals_the_twin(native, bits, group_size, rows):
    tensor = random_matrix(np.random.default_rng(rows), rows, 3 * group_size, bits, group_size)
    np.testing.assert_array_equal(native.loops.pack(tensor), pack(tensor))


@pytest.mark.parametrize("kind", KIND_NUMBERS)
@pytest.mark.parametrize(("bits", "group_size"), [(1, 256), (2, 128), (3, 32), (4, 64)])
def test_pack_of_every_kind_equals_the_twin(native, kind, bits, group_size):
    tensor = random_matrix(np.random.default_rng(bits), 300, 2 * group_size, bits, group_size)
    blocks = BlockKind.fitting(kind, tensor.half_scales, tensor.centers)
    rounded = HLQTensor(*blocks.nearest(tensor.half_scales, tensor.centers), tensor.codes, group_size, blocks)
    np.testing.assert_array_equal(native.loops.pack(rounded), pack(rounded))


def test_pack_refuses_arrays_that_are_not_of_the_kind(native):
    """Blocks of another size would be written past their end."""
    codes = np.zeros((64, 512), np.uint8)

    def halves(n, dtype="u2", groups=8):
        return np.zeros((64, groups, n), dtype)

    quantizer = native.loops._quantizer
    quantizer.pack(halves(4), halves(1), codes, 4, 0)
    for half_scales, centers, bits, kind, message in (
        (halves(1), halves(0), 4, 0, "half_scales of 4 bits and kind 0 are 4 a group of 2 bytes each, not 1 of 2"),
        (halves(4), halves(0), 4, 0, "centers of 4 bits and kind 0 are 1 a group of 2 bytes each, not 0 of 2"),
        (halves(4), halves(1), 4, lib.ELUTQ_KIND_BYTES, "4 a group of 1 bytes each"),
        (halves(4), halves(1), 4, lib.ELUTQ_KIND_EVEN, "half_scales of 4 bits and kind 2 are 1 a group"),
        (halves(1), halves(1), 4, lib.ELUTQ_KIND_EVEN, "centers of 4 bits and kind 2 are 0 a group"),
        (halves(4), halves(1), 4, lib.ELUTQ_KIND_CENTERS, "the kind one of the six"),
        (halves(4, groups=0), halves(1, groups=0), 4, 0, "do not fit"),
        (halves(9), halves(1), 9, 0, "bits must be 1 to 4"),
    ):
        with pytest.raises(ValueError, match=message):
            quantizer.pack(half_scales, centers, codes, bits, kind)
    with pytest.raises(ValueError, match="a multiple of 4"):
        quantizer.pack(halves(4, groups=2), halves(1, groups=2), codes[:, :12].copy(), 4, 0)


def test_pack_refuses_what_the_twin_refuses(native):
    for spoil in (
        lambda tensor: tensor.half_scales.__setitem__((40, 1, 0), -1),
        lambda tensor: tensor.half_scales.__setitem__((40, 1, 1), np.inf),
        lambda tensor: tensor.centers.__setitem__((0, 0), np.nan),
        lambda tensor: tensor.codes.__setitem__((299, 127), 4),
    ):
        tensor = random_matrix(np.random.default_rng(0), 300, 128, 2, 64)
        native.loops.pack(tensor)
        spoil(tensor)
        with pytest.raises(FormatError):
            pack(tensor)
        with pytest.raises((FormatError, ValueError), match=r"negative|not finite|codes below 2\^bits"):
            native.loops.pack(tensor)
    tensor.half_scales[:] = -0.0
    tensor.codes[:] = 0
    np.testing.assert_array_equal(native.loops.pack(tensor), pack(tensor))
