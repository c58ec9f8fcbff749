"""How the time of a run depends on the number of workers: by arithmetic, from times that are given."""

import math

import pytest

from elutq_cli.pipeline.compute.backend import native_backend
from elutq_cli.pipeline.recipe import Plan, Recipe
from elutq_cli.pipeline.run import estimate
from elutq_cli.pipeline.run.estimate import PROBE_COLUMNS, PROBE_ROWS, Work, estimate_work, undivided_share
from elutq_cli.pipeline.run.scaling import share_out
from elutq_cli.pipeline.run.traffic import block_traffic
from elutq_cli.shapes import named_shape

TOKENS = 16 * 512


def test_what_is_divided_is_shared_as_far_as_it_has_units_and_the_rest_is_not():
    work = Work(10.0, ((100.0, 50), (12.0, 3)))
    assert [work.seconds(workers) for workers in (1, 2, 3, 50, 1000)] == [122.0, 68.0, 48.0, 16.0, 16.0]
    assert Work(0.0, ((100.0, 50),), 7.0).seconds(50) == 7.0


def test_light_units_stay_where_workers_have_few_cores_and_this_machine_has_more():
    work = Work(10.0, ((100.0, 50),), light=((30.0, 10),), size=0.25)  # a worker is a quarter of this machine
    assert [work.seconds(workers) for workers in (1, 2, 5, 7)] == [110.0, 60.0, 30.0, 26.0]
    assert [work.seconds(workers) for workers in (8, 10)] == [2.5 + 14.0 + 6.0, 2.5 + 10.0 + 3.0]
    config, recipe = named_shape("llama3-8b"), Recipe(method="correct")
    shares = share_out(config, Plan.make(config, recipe), recipe, TOKENS, 1024, work, (7, 8))
    assert shares[0].sent_bytes < shares[1].sent_bytes / 2


def divided(work):
    return sum(seconds for seconds, _ in (*work.divided, *work.light))


def work_of(shape, monkeypatch, method="correct", n_tokens=TOKENS, **times):
    """What is foretold where a probe of each kind takes so many seconds, in the order in which they are made."""
    given = iter([times.get(kind, 0.0) for kind in ("product", "stages", "factor", "finish")])
    monkeypatch.setattr(estimate, "_seconds", lambda function: next(given))
    config, recipe = named_shape(shape), Recipe(method=method, embedding_bits=16, output_bits=16)
    with native_backend(1) as backend:
        return config, estimate_work(config, Plan.make(config, recipe), recipe, n_tokens, backend)


def test_of_a_factor_what_is_too_small_to_be_divided_stays(monkeypatch):
    assert [undivided_share(n) for n in (2048, 4094, 4096, 8192, 14336, 28672)] == [1, 1, 1 / 4, 1 / 16, 1 / 16, 1 / 64]
    config, work = work_of("llama3-8b", monkeypatch, factor=1.0)
    cubes = [4096, 4096, 4096, 14336]  # what readers and writers of both branches take
    layers = config.num_hidden_layers / PROBE_COLUMNS**3
    assert work.here == pytest.approx(layers * sum(n**3 * undivided_share(n) for n in cubes))
    assert work.here + divided(work) == pytest.approx(layers * sum(n**3 for n in cubes))


def test_products_of_tokens_divide_and_packing_stays(monkeypatch):
    config, work = work_of("llama3-8b", monkeypatch, product=1.0)
    assert work.here == 0.0 < divided(work)
    forward = [seconds for seconds, units in work.light if units == TOKENS // 1024]
    n_weights = config.num_hidden_layers * sum(map(math.prod, config.linear_shapes(0).values()))
    assert sum(forward) >= 3 * n_weights * TOKENS / PROBE_COLUMNS**3
    config, work = work_of("llama3-8b", monkeypatch, stages=1.0)
    units = [units for seconds, units in work.divided if seconds]
    assert units == config.num_hidden_layers * [12, 8, 56, 8]  # of q, k and v; o; gate and up; down
    assert work.here == 0.0 < divided(work)
    config, work = work_of("llama3-8b", monkeypatch, finish=1.0)
    n_weights = sum(
        math.prod(shape) for n in range(config.num_hidden_layers) for shape in config.linear_shapes(n).values()
    )
    assert (work.here, divided(work)) == (pytest.approx(n_weights / (PROBE_ROWS * PROBE_COLUMNS)), 0.0)


def test_experts_on_calibration_tokens_stay(monkeypatch):
    _, work = work_of("qwen3-30b-a3b", monkeypatch, product=1.0)
    assert work.here > divided(work) > 0.0


def test_a_plan_shares_what_is_divided_and_counts_what_all_workers_need():
    config, recipe = named_shape("llama3-8b"), Recipe(method="correct")
    plan, work = Plan.make(config, recipe), Work(60.0, ((600.0, 10),))
    shares = share_out(config, plan, recipe, TOKENS, 1024, work, (1, 10))
    assert [share.seconds for share in shares] == [660.0, 120.0]
    blocks = [config.num_hidden_layers * block_traffic(config, 0, recipe, TOKENS, n, 1024).sent for n in (1, 10)]
    for share, of_blocks in zip(shares, blocks, strict=True):
        assert of_blocks < share.sent_bytes < of_blocks + 10e9  # the embedding, the head, and all predictions
        assert share.store_bytes < of_blocks / config.num_hidden_layers
    assert shares[1].carried_bytes > 4 * shares[0].carried_bytes
