"""How a pass divides its work among many threads: by arithmetic on the items of each stage, no time is taken."""

import itertools
import math

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


FEW_TILES = {
    ("qwen2.5-0.5b", 16): {"qkv": 3 / 2.25},
    ("qwen2.5-0.5b", 32): {"qkv": 2 / 1.125},
    ("qwen2.5-0.5b", 64): {"qkv": 1 / 0.5625, "attn_output": 1 / 0.4375, "down": 1 / 0.4375},
}
"""Stages of 36 or 28 tiles: what is possible when the busiest thread has one, two or three of them."""


@pytest.mark.parametrize("shape", ["qwen2.5-0.5b", "llama2-7b", "llama3-70b"])
@pytest.mark.parametrize("n_threads", [8, 16, 32, 64])
def test_the_busiest_of_many_threads_has_little_more_than_the_average(shape, n_threads):
    """At most 1.15 times as much, but where one tile makes that difference: kernels multiply none in halves."""
    shares = {stage: share_of_the_busiest(matrices, n_threads) for stage, matrices in products(shape).items()}
    ratios = {stage: most / mean for stage, (most, mean) in shares.items()}
    print(shape, n_threads, {stage: round(ratio, 3) for stage, ratio in ratios.items()})
    assert {stage: ratio for stage, ratio in ratios.items() if ratio > 1.15} == FEW_TILES.get((shape, n_threads), {})
    assert all(shares[stage][0] == math.ceil(shares[stage][1]) for stage in FEW_TILES.get((shape, n_threads), {}))


def test_items_are_superblocks_where_there_are_enough():
    assert lib.elutq_tiles_per_item(128, 16) == 8
    assert lib.elutq_tiles_per_item(28, 1) == 8
    assert lib.elutq_tiles_per_item(28, 2) == 8
    assert lib.elutq_tiles_per_item(28, 16) == 2
    assert lib.elutq_tiles_per_item(1, 256) == 1


LINE = 64


def parts_of(n_columns, line_columns, n_parts):
    """Columns of each part that has some: (first, end)."""
    bounds = [lib.elutq_part_start(n_columns, line_columns, n_parts, part) for part in range(n_parts + 1)]
    assert bounds[0] == 0 and bounds[-1] == n_columns
    return [(first, end) for first, end in itertools.pairwise(bounds) if first < end]


def lines_of(parts, bytes_a_column):
    """Cache lines that each part writes of an array that begins with a line."""
    return [range(int(first * bytes_a_column) // LINE, -(-int(end * bytes_a_column) // LINE)) for first, end in parts]


def assert_no_line_is_shared(parts, bytes_a_column):
    for lines, following in itertools.pairwise(lines_of(parts, bytes_a_column)):
        assert lines.stop <= following.start


@pytest.mark.parametrize("n_columns", [64, 896, 4096, 4864, 8192, 11008, 28672])
@pytest.mark.parametrize("n_threads", [1, 2, 3, 4, 8, 16, 64])
def test_threads_that_build_one_rows_tables_write_no_line_together(n_columns, n_threads):
    """Activations, entries and multipliers; a group's scale and sum, 8 bytes of thousands, lie beside others'."""
    parts = parts_of(n_columns, lib.ELUTQ_TABLES_LINE_COLUMNS, n_threads)
    for bytes_a_column in (4, 4, 1 / 4):
        assert_no_line_is_shared(parts, bytes_a_column)
    most = max(end - first for first, end in parts)
    assert most <= n_columns / n_threads + lib.ELUTQ_TABLES_LINE_COLUMNS
    assert all(first % 256 == 0 for first, _ in parts)  # whole groups


@pytest.mark.parametrize(
    ("n_columns", "group_size"),
    [(896, 32), (896, 64), (896, 128), (4864, 128), (4864, 256), (4096, 128), (11008, 256), (28672, 64)],
)
@pytest.mark.parametrize("n_threads", [1, 2, 3, 4, 8, 16, 64])
def test_threads_that_round_a_batch_to_levels_write_no_line_together(n_columns, group_size, n_threads):
    line = lib.ELUTQ_LEVELS_LINE_GROUPS * group_size
    for n_blocks in (1, 2, 3, 16):
        parts = parts_of(n_blocks * n_columns, line, max(n_blocks, n_threads))
        values, scales, high_cells = 8, 8 * 4 / group_size, 8 * 8 / group_size
        for bytes_a_column in (values, scales, high_cells):
            assert_no_line_is_shared(parts, bytes_a_column)
        assert all(first % group_size == 0 for first, _ in parts)
