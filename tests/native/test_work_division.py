"""How a pass divides its work among many threads: by arithmetic on the items of each stage, no time is taken."""

import itertools

import pytest

from elutq_cli.shapes import named_shape
from elutq_native import lib

ROWS_A_TILE = 32


def tiles_of(rows):
    return -(-rows // ROWS_A_TILE)


def share_of_the_busiest(matrices, n_threads):
    """Tiles of the thread that has most, and of the average one: (most, mean)."""
    total = sum(map(tiles_of, matrices))
    tiles = lib.elutq_tiles_per_item(total, n_threads)
    items = [min(tiles, tiles_of(rows) - first) for rows in matrices for first in range(0, tiles_of(rows), tiles)]
    bounds = [len(items) * thread // n_threads for thread in range(n_threads + 1)]
    most = max(sum(items[first:end]) for first, end in itertools.pairwise(bounds))
    return most, total / n_threads


def products(name):
    """Rows of the matrices of each stage of a layer, and of the head's."""
    config = named_shape(name)
    heads, kv_heads = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    return {
        "qkv": [heads, kv_heads, kv_heads],
        "attn_output": [config.hidden_size],
        "gate_up": [config.intermediate_size] * 2,
        "down": [config.hidden_size],
        "head": [config.vocab_size],
    }


@pytest.mark.parametrize("shape", ["qwen2.5-0.5b", "llama2-7b", "llama3-70b"])
@pytest.mark.parametrize("n_threads", [1, 2, 3, 4])
def test_few_threads_take_whole_superblocks_unless_one_would_have_half_as_much_again(shape, n_threads):
    for stage, matrices in products(shape).items():
        most, mean = share_of_the_busiest(matrices, n_threads)
        print(shape, n_threads, stage, round(most / mean, 3))
        assert most <= 1.5 * mean


@pytest.mark.parametrize("shape", ["qwen2.5-0.5b", "llama2-7b", "llama3-70b"])
@pytest.mark.parametrize("n_threads", [8, 16])
def test_the_busiest_of_sixteen_threads_has_little_more_than_the_average(shape, n_threads):
    shares = {stage: share_of_the_busiest(matrices, n_threads) for stage, matrices in products(shape).items()}
    ratios = {stage: most / mean for stage, (most, mean) in shares.items()}
    print(shape, n_threads, {stage: round(ratio, 3) for stage, ratio in ratios.items()})
    few = {stage for stage, (_, mean) in shares.items() if mean < 4}  # tiles: the busiest has one more than the average
    assert all(ratio <= 1.15 for stage, ratio in ratios.items() if stage not in few)
    assert all(most < mean + 1 for most, mean in (shares[stage] for stage in few))
    assert sum(most for most, _ in shares.values()) <= 1.15 * sum(mean for _, mean in shares.values())


@pytest.mark.parametrize("shape", ["llama2-7b", "llama3-70b"])
def test_of_sixty_four_threads_none_waits_for_another_by_more_than_a_third(shape):
    for stage, matrices in products(shape).items():
        most, mean = share_of_the_busiest(matrices, 64)
        print(shape, stage, round(most / mean, 3))
        assert most <= 1.34 * mean


def test_items_are_superblocks_where_there_are_enough():
    assert lib.elutq_tiles_per_item(128, 16) == 8
    assert lib.elutq_tiles_per_item(28, 1) == 8
    assert lib.elutq_tiles_per_item(28, 2) == 8
    assert lib.elutq_tiles_per_item(28, 16) == 2
    assert lib.elutq_tiles_per_item(1, 256) == 1
