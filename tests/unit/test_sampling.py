"""Sampling against distributions worked out by hand, and the filters one by one."""

import math
import re
from collections import Counter

import numpy as np
import pytest

from elutq_cli.generation.sampling import Sampler, SamplingOptions, largest, log_probabilities
from elutq_formats.errors import ElutqError

OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temp": 1.0}
PROBABILITIES = np.array([0.05, 0.4, 0.1, 0.25, 0.2])
LOGITS = np.log(PROBABILITIES).astype(np.float32) + np.float32(3)


def sampler(**options):
    return Sampler(SamplingOptions(**(OFF | options)))


def drawn(n=4000, history=(), logits=LOGITS, **options):
    """Counts of n draws; the seed is fixed, so the counts are too."""
    source = sampler(**options)
    return Counter(source.sample(logits, list(history)) for _ in range(n))


def assert_distribution(counts, expected):
    """Every count within 5 standard deviations of its binomial."""
    n = sum(counts.values())
    assert set(counts) == set(expected)
    for token, p in expected.items():
        assert abs(counts[token] - n * p) < 5 * math.sqrt(n * p * (1 - p)) + 1


def test_draws_follow_the_softmax():
    assert_distribution(drawn(), dict(enumerate(PROBABILITIES)))


def test_temperature_sharpens_and_flattens():
    for temp in (0.5, 2.0):
        weights = PROBABILITIES ** (1 / temp)
        assert_distribution(drawn(temp=temp), dict(enumerate(weights / weights.sum())))


def test_greedy_takes_the_likeliest_and_the_first_of_equals():
    assert drawn(10, temp=0) == {1: 10}
    assert drawn(10, logits=np.array([0, 2, 2, 1], np.float32), temp=0) == {1: 10}


def test_greedy_ignores_the_seed_and_the_filters():
    assert {sampler(temp=0, seed=seed, top_k=2, top_p=0.1).sample(LOGITS, []) for seed in range(20)} == {1}


@pytest.mark.parametrize(
    ("top_k", "kept"), [(1, [1]), (2, [1, 3]), (4, [1, 2, 3, 4]), (5, range(5)), (99, range(5)), (-1, range(5))]
)
def test_top_k_keeps_the_k_likeliest(top_k, kept):
    total = sum(PROBABILITIES[token] for token in kept)
    assert_distribution(drawn(top_k=top_k), {token: PROBABILITIES[token] / total for token in kept})


def test_top_k_breaks_ties_by_the_lower_id():
    assert set(drawn(300, logits=np.zeros(8, np.float32), top_k=3)) == {0, 1, 2}


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.01, [1]), (0.39, [1]), (0.41, [1, 3]), (0.66, [1, 3, 4]), (0.86, [1, 2, 3, 4]), (0.99, range(5))],
)
def test_top_p_keeps_the_smallest_set_that_reaches_p(top_p, kept):
    total = sum(PROBABILITIES[token] for token in kept)
    assert_distribution(drawn(top_p=top_p), {token: PROBABILITIES[token] / total for token in kept})


@pytest.mark.parametrize(("min_p", "kept"), [(0.1, range(5)), (0.2, [1, 2, 3, 4]), (0.45, [1, 3, 4]), (1.0, [1])])
def test_min_p_is_a_share_of_the_likeliest(min_p, kept):
    total = sum(PROBABILITIES[token] for token in kept)
    assert_distribution(drawn(min_p=min_p), {token: PROBABILITIES[token] / total for token in kept})


def test_filters_are_taken_before_the_temperature():
    # At temperature 100 all five are as likely; top-p must still see the probabilities of the model.
    assert set(drawn(500, temp=100.0, top_p=0.66)) == {1, 3, 4}


def test_repeat_penalty_divides_positive_and_multiplies_negative_logits():
    logits = np.array([2.0, -2.0, 0.5], np.float32)
    penalised = sampler(repeat_penalty=2.0)._penalised(logits, [0, 1])
    assert penalised.tolist() == [1.0, -4.0, 0.5]
    assert logits.tolist() == [2.0, -2.0, 0.5]


def test_presence_penalty_counts_once_and_frequency_penalty_each_time():
    logits = np.zeros(4, np.float32)
    penalised = sampler(presence_penalty=0.5, frequency_penalty=0.25)._penalised(logits, [1, 2, 2, 2])
    assert penalised.tolist() == [0.0, -0.75, -1.25, 0.0]


@pytest.mark.parametrize(
    ("last_n", "expected"), [(-1, [-1, -1, -1]), (2, [0, -1, -1]), (1, [0, 0, -1]), (0, [0, 0, 0])]
)
def test_penalties_look_back_so_many_tokens(last_n, expected):
    penalised = sampler(presence_penalty=1.0, repeat_last_n=last_n)._penalised(np.zeros(3, np.float32), [0, 1, 2])
    assert penalised.tolist() == expected


def test_penalties_change_what_greedy_takes():
    assert drawn(1, history=[1], temp=0, presence_penalty=5.0) == {3: 1}


def test_same_seed_same_draws_and_another_seed_others():
    logits = np.random.default_rng(7).standard_normal(500).astype(np.float32)
    draws = {seed: [source.sample(logits, []) for _ in range(50)] for seed in (1, 2) for source in [sampler(seed=seed)]}
    again = sampler(seed=1)
    assert draws[1] == [again.sample(logits, []) for _ in range(50)]
    assert draws[1] != draws[2]


def test_huge_logits_do_not_overflow():
    logits = np.array([3e38, -3e38, 3e38], np.float32)
    assert set(drawn(100, logits=logits)) == {0, 2}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("penalty", [1e30, -1e30])
def test_the_largest_penalties_do_not_overflow(penalty):
    options = {"presence_penalty": penalty, "frequency_penalty": penalty, "repeat_penalty": 1e30, "temp": 0}
    assert sampler(**options).sample(np.array([1e3, -1e3, 5.0], np.float32), [0, 1] * 2048) == (2 if penalty > 0 else 0)


@pytest.mark.filterwarnings("error")
def test_the_smallest_temperature_takes_the_likeliest():
    assert set(drawn(20, logits=np.array([-500.0, 3.0, 2.9, -np.inf], np.float32), temp=1e-310, min_p=0)) == {1}


def test_one_token_may_be_impossible():
    assert set(drawn(200, logits=np.array([-np.inf, 0.0, 0.0], np.float32), top_k=3)) == {1, 2}


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("temp", [0, 1])
def test_logits_that_are_not_finite_are_refused(value, temp):
    with pytest.raises(ElutqError, match="not finite"):
        sampler(temp=temp).sample(np.array([0.0, value, 1.0], np.float32), [])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("repeat_penalty", 0),
        ("repeat_last_n", -2),
        ("top_k", -2),
        ("top_p", -0.01),
        ("top_p", 1.01),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("temp", -0.5),
        ("temp", math.nan),
        ("temp", math.inf),
        ("repeat_penalty", math.inf),
        ("presence_penalty", math.nan),
        ("frequency_penalty", -math.inf),
        ("seed", -1),
        ("repeat_penalty", 1e-45),
        ("repeat_penalty", 1e31),
        ("presence_penalty", -1e39),
        ("frequency_penalty", 1e31),
    ],
)
def test_options_out_of_range_are_named(option, value):
    with pytest.raises(ElutqError, match=re.escape(str(value))):
        SamplingOptions(**{option: value})


def test_log_probabilities_sum_to_one():
    logits = np.array([1000.0, 999.0, -1000.0, 998.5], np.float32)
    logprobs = log_probabilities(logits)
    assert np.exp(logprobs).sum() == pytest.approx(1.0, abs=1e-12)
    assert logprobs[0] - logprobs[1] == pytest.approx(1.0)


def test_a_bias_is_added_before_everything_else():
    bias = ((0, math.log(8)), (3, -100.0))
    weights = np.array([0.4, 0.4, 0.1, 0, 0.2])
    counts = drawn(logit_bias=bias)
    assert_distribution(counts, {token: weights[token] / weights.sum() for token in (0, 1, 2, 4)})
    assert drawn(10, logit_bias=((2, 2.0),), temp=0) == {2: 10}
    # The penalty divides what the bias made of the logit: log(0.1) + 3 + 2 = 2.70, halved, is less than 2.08.
    assert drawn(10, history=[2], logit_bias=((2, 2.0),), temp=0, repeat_penalty=2.0) == {1: 10}


def test_a_token_that_is_masked_cannot_be_drawn():
    logits = np.array([0, -np.inf, 0, -np.inf], np.float32)
    assert set(drawn(500, logits=logits)) == {0, 2}
    source = sampler()
    source._random = type("Last", (), {"random": staticmethod(lambda: 1.0)})()  # what rounding can make of a draw
    assert source.sample(logits, []) == 2


@pytest.mark.parametrize("bias", [math.nan, math.inf, 1e39])
def test_a_bias_that_is_not_finite(bias):
    with pytest.raises(ElutqError, match="bias of token 3"):
        SamplingOptions(logit_bias=((3, bias),))


@pytest.mark.parametrize("size", [1, 63, 64, 1000, 49152])
@pytest.mark.parametrize("kind", ["apart", "many equal", "most impossible", "ascending"])
def test_the_largest_are_those_of_a_stable_sort(size, kind):
    values = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    if kind == "many equal":
        values = np.round(values)
    elif kind == "most impossible":
        values[values < 1] = -np.inf
    elif kind == "ascending":
        values.sort()
    for n in {0, 1, 5, min(40, size), size}:
        assert np.array_equal(largest(values, n), np.argsort(-values, kind="stable")[:n])
