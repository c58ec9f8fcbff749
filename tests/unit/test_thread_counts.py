"""How many threads decode: chosen by made-up times, since real ones would make tests of the machine."""

import itertools

import numpy as np
import pytest

import elutq
from elutq_cli.generation import language_model
from elutq_cli.generation.statistics import describe_threads
from elutq_cli.generation.thread_counts import PART_BYTES, PARTS, SECONDS, VISITS, fewest_threads, parts_of_a_pass
from elutq_native import Engine

SIXTEEN = {4: 17.1, 8: 25.7, 12: 24.0, 16: 21.7}
"""Tokens a second of a 7B on a server of 16 virtual cores (docs/benchmarks.md; of 12 threads made up)."""


def chosen(speeds, n_parts=4, noise=lambda: 1.0):
    """What is chosen when threads do ``speeds[threads]`` parts a second, times what noise makes it take longer."""
    return fewest_threads(max(speeds), n_parts, lambda threads, part: 0.01 * (1 + part) / speeds[threads] * noise())


@pytest.mark.parametrize("n_parts", [1, 2, 4])
@pytest.mark.parametrize(
    ("speeds", "best"),
    [
        ({4: 4, 8: 8, 12: 12, 16: 16}, 16),
        ({4: 7, 8: 7, 12: 7, 16: 7}, 4),
        ({4: 9, 8: 8, 12: 7, 16: 6}, 4),
        (SIXTEEN, 8),
        ({4: 20, 8: 25.2, 12: 25.7, 16: 25.9}, 8),
        ({4: 20, 8: 24.5, 12: 25.7, 16: 25.9}, 12),
        ({4: 5, 8: 8, 9: 9}, 9),
        ({4: 5, 8: 9, 12: 9, 16: 9, 24: 9, 32: 9, 48: 12, 64: 12, 96: 8}, 48),
    ],
)
def test_the_smallest_number_of_threads_that_is_about_as_fast_as_any_decodes(speeds, best, n_parts):
    assert chosen(speeds, n_parts) == best


@pytest.mark.parametrize("seed", range(20))
def test_what_others_do_meanwhile_changes_no_choice(seed):
    """A third of the times is longer, up to three times as long."""
    rng = np.random.default_rng(seed)
    assert chosen(SIXTEEN, noise=lambda: 1 + 2 * rng.random() * (rng.random() < 1 / 3)) == 8


@pytest.mark.parametrize("n_threads", range(1, 9))
def test_up_to_eight_threads_all_decode_and_nothing_is_measured(n_threads):
    def measured(threads, part):
        raise AssertionError

    assert fewest_threads(n_threads, 4, measured) == n_threads


def calls_of(n_threads, n_parts, seconds):
    calls = []

    def measure(threads, part):
        calls.append((threads, part))
        return seconds

    fewest_threads(n_threads, n_parts, measure)
    return calls


def test_all_numbers_take_all_parts_equally_often_and_never_the_one_that_was_just_taken():
    calls = calls_of(16, 4, SECONDS / 1000)
    warm, timed = calls[:4], calls[4:]
    assert warm == [(16, part) for part in range(4)]
    assert sorted(timed) == sorted(VISITS * list(itertools.product((4, 8, 12, 16), range(4))))
    assert all(first[1] != second[1] for first, second in itertools.pairwise(timed))


def test_measuring_ends_when_enough_time_has_gone_by():
    assert len(calls_of(16, 4, SECONDS)) == 4 + 4  # one round, however long it takes
    assert len(calls_of(16, 4, SECONDS / 10)) == 4 + 3 * 4
    assert max(len(calls_of(n_threads, 4, 2e-3)) for n_threads in (16, 64, 256)) * 2e-3 < 0.2


@pytest.mark.parametrize(
    ("n_layers", "n_bytes"),
    [(24, 185 << 20), (32, 2 << 30), (80, 20 << 30), (126, 120 << 30), (2, 1 << 30), (16, 600 << 20)],
)
def test_parts_are_of_a_few_milliseconds_or_the_whole(n_layers, n_bytes):
    parts = parts_of_a_pass(n_layers, n_bytes)
    layers = [layer for first, n in parts for layer in range(first, first + n)]
    assert len(set(layers)) == len(layers) and set(layers) <= set(range(n_layers))
    assert all(n >= 1 and (n == 1 or n * n_bytes <= n_layers * PART_BYTES) for _, n in parts) or parts == [
        (0, n_layers)
    ]
    assert (len(parts) == 1) == (n_bytes <= 2 * PART_BYTES) and len(parts) <= PARTS


@pytest.fixture
def nine_threads(monkeypatch):
    """A machine on which nine threads generate best, and how often eight and others were measured on it."""
    seen = []

    def rehearse(engine, first_layer, n_layers):
        assert (first_layer, n_layers) == (0, engine.model.info.n_layers)
        seen.append(engine.decode_threads)
        return {4: 2.0, 8: 1.0, 9: 1.5}[engine.decode_threads]

    monkeypatch.setattr(language_model, "choose_threads", lambda model: 9)
    monkeypatch.setattr(Engine, "rehearse", rehearse)
    return seen


def test_a_model_measures_once_how_many_threads_decode(nine_threads, novels_2bit):
    with elutq.load(novels_2bit, ctx_size=32) as model:
        engine = model.scheduler.engine
        assert (engine.threads, engine.decode_threads) == (9, 8)
        assert nine_threads == [9, 4, 8, 9]
        text = elutq.generate(model, [1, 2, 3], 8, temp=0)
        model.start(64)
        assert model.scheduler.engine.decode_threads == 8 and len(nine_threads) == 4
        assert elutq.generate(model, [1, 2, 3], 8, temp=0).text == text.text


def test_a_number_that_is_given_is_for_decode_too(nine_threads, novels_2bit):
    with elutq.load(novels_2bit, ctx_size=32, threads=9) as model:
        assert (model.scheduler.engine.threads, model.scheduler.engine.decode_threads) == (9, 9)
    assert not nine_threads


def test_a_real_machine_of_nine_threads_measures_too(monkeypatch, novels_2bit):
    """On however many cores: which number it comes to is the machine's affair."""
    monkeypatch.setattr(language_model, "choose_threads", lambda model: 9)
    with elutq.load(novels_2bit, ctx_size=32) as model:
        assert model.scheduler.engine.decode_threads in (4, 8, 9)


def test_threads_are_printed_with_those_that_decode():
    assert describe_threads(1, 1) == "1 thread"
    assert describe_threads(16, 16) == "16 threads"
    assert describe_threads(16, 8) == "16 threads, 8 of them for decode"
