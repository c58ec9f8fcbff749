"""What tuning learns, and how: levels and bits of a matrix, the descent, and which sequences teach and judge."""

import numpy as np
import pytest

from elutq_cli.pipeline.compute.levels import levels, nearest, signs
from elutq_formats.block_kind import FREE16, BlockKind
from elutq_formats.errors import ElutqError
from elutq_formats.hlq import HLQTensor, pack

torch = pytest.importorskip("torch", reason="tuning needs torch: pip install 'elutq[torch]'")

from elutq_cli.pipeline.compute.torch_device import prepare_torch  # noqa: E402
from elutq_cli.pipeline.stages.tune import descent  # noqa: E402
from elutq_cli.pipeline.stages.tune import matrix as learned_matrix  # noqa: E402
from elutq_cli.pipeline.stages.tune.matrix import LearnedLevels, LearnedMatrix  # noqa: E402

KINDS = [FREE16, BlockKind("free8", 10)]


@pytest.fixture(autouse=True)
def one_thread():
    prepare_torch("cpu", 1, "--tune")


def random_matrix(bits, group_size, seed=0, rows=6, kind=FREE16):
    rng = np.random.default_rng(seed)
    groups = rows, 256 // group_size
    levels = kind.nearest(rng.uniform(0.01, 1.0, (*groups, bits)), rng.normal(size=groups))
    return HLQTensor(*levels, rng.integers(0, 2**bits, (rows, 256), dtype=np.uint8), group_size, kind)


@pytest.mark.parametrize("learned", [LearnedLevels, LearnedMatrix])
@pytest.mark.parametrize(("bits", "group_size"), [(1, 32), (2, 128), (3, 64), (4, 32)])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_matrix_begins_as_it_was(bits, group_size, learned, kind):
    start = random_matrix(bits, group_size, kind=kind)
    matrix = learned(start, "cpu")
    np.testing.assert_array_equal(matrix.values().detach().numpy(), start.dequantize())
    tensor = matrix.tensor()
    np.testing.assert_array_equal(tensor.dequantize(), start.dequantize())
    np.testing.assert_array_equal(tensor.half_scales, start.half_scales)
    np.testing.assert_array_equal(tensor.centers, start.centers)
    assert tensor.kind == kind


@pytest.mark.parametrize("exponent", [0, 7, 23])
def test_learned_levels_are_rounded_as_the_stages_round_them(exponent):
    """Bit for bit, ties between two bytes and what no byte reaches included."""
    kind, rng = BlockKind("free8", exponent), np.random.default_rng(exponent)
    halves = np.arange(0x2100, dtype=np.uint16).view(np.float16).astype(np.float32)  # from 0 to above the last byte
    table = np.stack([halves, rng.permutation(halves), rng.choice([-1, 1], halves.size) * halves], axis=-1)
    table = np.concatenate([table, table * rng.uniform(0.5, 2.0, table.shape).astype(np.float32)])[None]
    table *= np.float32(2.0**exponent)
    half_scales, centers = kind.nearest(table[..., :-1], table[..., -1])
    found = learned_matrix._rounded(torch.asarray(table), kind).numpy()
    np.testing.assert_array_equal(found[..., :-1], half_scales.astype(np.float32))
    np.testing.assert_array_equal(found[..., -1], centers.astype(np.float32))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_values_are_those_of_the_nearest_levels_after_any_move(kind):
    start = random_matrix(3, 64, kind=kind)
    matrix = LearnedMatrix(start, "cpu")
    rng = np.random.default_rng(1)
    reach = start.half_scales.astype(np.float32).sum(axis=-1, keepdims=True)
    shifts = rng.normal(scale=0.2, size=matrix.shifts.shape).astype(np.float32)
    pull = rng.normal(scale=0.4, size=matrix.pull.shape).astype(np.float32)
    matrix.shifts.data = torch.asarray(shifts)
    matrix.pull.data += torch.asarray(pull)

    parts = np.concatenate([start.half_scales, start.centers[..., None]], axis=-1).astype(np.float32)
    moved = parts + reach * shifts
    half_scales, centers = kind.nearest(np.maximum(moved[..., :-1], 0), moved[..., -1])
    weights = start.dequantize().reshape(pull.shape) + reach * pull
    values = levels(half_scales, centers)
    codes = nearest(weights, values)
    expected = np.take_along_axis(values, codes.astype(np.intp), axis=-1).reshape(len(codes), -1)
    assert (codes.reshape(start.codes.shape) != start.codes).mean() > 0.05

    np.testing.assert_allclose(matrix.values().detach().numpy(), expected, atol=1e-6)
    tensor = matrix.tensor()
    np.testing.assert_array_equal(tensor.half_scales, half_scales)
    np.testing.assert_array_equal(tensor.dequantize(), expected)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_levels_that_move_alone_keep_their_codes(kind):
    start = random_matrix(3, 64, kind=kind)
    matrix = LearnedLevels(start, "cpu")
    reach = start.half_scales.astype(np.float32).sum(axis=-1, keepdims=True)
    shifts = np.random.default_rng(1).normal(scale=0.2, size=matrix.shifts.shape).astype(np.float32)
    matrix.shifts.data = torch.asarray(shifts)
    parts = np.concatenate([start.half_scales, start.centers[..., None]], axis=-1).astype(np.float32)
    moved = parts + reach * shifts
    assert (moved[..., :-1] < 0).any()
    half_scales, centers = kind.nearest(np.maximum(moved[..., :-1], 0), moved[..., -1])
    expected = HLQTensor(half_scales, centers, start.codes, 64).dequantize()
    np.testing.assert_array_equal(matrix.values().detach().numpy(), expected)
    np.testing.assert_array_equal(matrix.tensor().dequantize(), expected)
    np.testing.assert_array_equal(matrix.tensor().codes, start.codes)
    pack(matrix.tensor())


@pytest.mark.parametrize("learned", [LearnedLevels, LearnedMatrix])
@pytest.mark.parametrize(("bits", "moves"), [(2, False), (1, True), (3, True), (4, True)])
def test_gradients_reach_levels_and_weights(learned, bits, moves):
    start = random_matrix(bits, 32)
    matrix, rng = learned(start, "cpu"), np.random.default_rng(2)
    if moves:
        matrix.shifts.data += torch.asarray(rng.normal(scale=0.2, size=matrix.shifts.shape).astype(np.float32))
    if moves and learned is LearnedMatrix:
        matrix.pull.data += torch.asarray(rng.normal(scale=0.4, size=matrix.pull.shape).astype(np.float32))
        assert (matrix.tensor().codes != start.codes).mean() > 0.01
    slope = rng.normal(size=start.codes.shape).astype(np.float32)
    matrix.pass_back(torch.asarray(0.25 * slope))
    matrix.pass_back(torch.asarray(0.75 * slope))
    reach = start.half_scales.astype(np.float32).sum(axis=-1, keepdims=True)
    by_group = slope.reshape(*start.centers.shape, -1)
    sign = signs(bits)[matrix.tensor().codes.reshape(by_group.shape)]
    expected = np.concatenate([(by_group[..., None] * sign).sum(axis=2), by_group.sum(axis=-1, keepdims=True)], axis=-1)
    above_zero = matrix.tensor().half_scales > 0
    found = matrix.shifts.grad.numpy()
    np.testing.assert_allclose(found[..., -1], (reach * expected)[..., -1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        found[..., :-1][above_zero], (reach * expected)[..., :-1][above_zero], rtol=1e-4, atol=1e-5
    )
    if learned is LearnedMatrix:
        np.testing.assert_allclose(matrix.pull.grad.numpy(), reach * by_group, rtol=1e-6)


def test_levels_that_are_evenly_spaced_are_refused():
    even = HLQTensor(
        np.full((1, 1, 2), (1, 2), dtype=np.float16),
        np.zeros((1, 1), dtype=np.float32),
        np.zeros((1, 32), dtype=np.uint8),
        32,
        BlockKind("even16"),
    )
    with pytest.raises(ElutqError, match="a matrix is of kind even16"):
        LearnedLevels(even, "cpu")


@pytest.mark.parametrize("learned", [LearnedLevels, LearnedMatrix])
def test_a_half_scale_below_zero_has_no_gradient(learned):
    matrix = learned(random_matrix(2, 32), "cpu")
    matrix.shifts.data[0, 0, 1] = -9.0
    matrix.pass_back(torch.ones(6, 256))
    assert matrix.shifts.grad[0, 0, 1] == 0.0
    assert (matrix.shifts.grad[0, 0, 2] != 0.0) and (matrix.shifts.grad[1:, :, 2] != 0.0).all()


def test_the_descent_is_adam():
    start = np.random.default_rng(3).normal(size=7).astype(np.float32)
    ours, theirs = (torch.tensor(start, requires_grad=True) for _ in range(2))
    n_steps, rate = 20, 0.01
    steps = descent.Descent([(ours, rate)])
    adam = torch.optim.Adam([theirs], betas=descent.BETAS, eps=descent.EPSILON)
    for step in range(n_steps):
        schedule = min(1, (step + 1) / descent.WARM_UP_STEPS) * (1 + np.cos(np.pi * step / n_steps)) / 2
        adam.param_groups[0]["lr"] = rate * schedule
        for parameter in (ours, theirs):
            parameter.grad = None
            ((parameter - 1) ** 4).sum().backward()
        steps.step(step / n_steps)
        adam.step()
    np.testing.assert_allclose(ours.detach().numpy(), theirs.detach().numpy(), rtol=1e-5)
    assert ours.grad is None


def test_sequences_that_no_stage_has_seen_judge_what_all_others_teach():
    for n_sequences, n_held_out in ((1, 1), (64, 8), (1000, 32)):
        train, judges = descent.split_sequences(n_sequences, n_held_out)
        assert train.tolist() == list(range(n_sequences))
        assert judges.tolist() == list(range(n_held_out))


def test_without_any_some_calibration_sequences_are_not_learned_from():
    for n_sequences in (2, 9, 1000):
        train, held_out = descent.split_sequences(n_sequences)
        assert len(train) > 0
        assert 0 < len(held_out) <= descent.MOST_HELD_OUT
        assert not set(train) & set(held_out)
        batches = descent.shuffled_batches(train, 4, (0, 1))
        assert sorted(np.concatenate(batches)) == sorted(train)
    with pytest.raises(ElutqError, match="needs 2 calibration sequences"):
        descent.split_sequences(1)
