"""Rows of the key-value cache, in f16 and q8, and attention over them, in every set."""

import numpy as np
import pytest
from kernel_calls import F16, Q8, SCALAR, SETS, floats

from elutq_native import ffi, lib


def rows_of_q8(x):
    """Rounds rows (n, head_dim) as the int8 cache does, in float64: whole numbers and their scales (n,)."""
    scales = np.abs(x.astype(np.float64)).max(axis=1) / 127
    return np.rint(x / np.where(scales > 0, scales, 1)[:, None]), scales


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("head_dim", [2, 8, 20, 64, 100, 128])
def test_int8_rows_of_the_cache(name, head_dim, memory, rng):
    x = (rng.standard_normal((5, head_dim)) * [[0.01], [1], [30], [0], [1e-35]]).astype(np.float32)
    wanted, scales = rows_of_q8(x * [[1], [1], [1], [1], [0]])  # what is too small for a scale becomes zero
    for row, numbers, scale in zip(x, wanted, scales, strict=True):
        found = memory.array(head_dim + 4, np.int8)
        SETS[name].cache[Q8].store(floats(memory.copy(row)), head_dim, ffi.from_buffer(found))
        assert found[head_dim:].view(np.float32)[0] == pytest.approx(scale, rel=1e-6)
        assert np.abs(found[:head_dim] - numbers).max() <= (np.abs(row / scale % 1 - 0.5).min() < 1e-4 if scale else 0)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("head_dim", [64, 20])
def test_a_number_that_is_not_finite_shows_in_the_scale_of_an_int8_row(name, bad, head_dim, memory):
    for at in (0, head_dim // 2, head_dim - 1):
        x, row = np.ones(head_dim, np.float32), memory.array(head_dim + 4, np.int8)
        x[at] = bad
        SETS[name].cache[Q8].store(floats(memory.copy(x)), head_dim, ffi.from_buffer(row))
        assert not np.isfinite(row[head_dim:].view(np.float32)[0])


def stored(kernels, cache_type, x, memory):
    """Rows of the cache, and what they stand for in float64: (n, head_dim)."""
    n, head_dim = x.shape
    rows = memory.array((n, 2 * head_dim if cache_type == F16 else head_dim + 4), np.uint8)
    for source, row in zip(x, rows, strict=True):
        kernels.cache[cache_type].store(floats(source.copy()), head_dim, ffi.from_buffer(row))
    if cache_type == F16:
        return rows, rows.view(np.float16).astype(np.float64)
    scales = np.ascontiguousarray(rows[:, head_dim:]).view(np.float32).astype(np.float64)
    return rows, rows[:, :head_dim].view(np.int8) * scales


def attend(kernels, cache_type, queries, rows, n_keys, memory, softcap=0, first=0):
    """What queries (n_tokens, n_queries, head_dim) attend to in rows of keys and of values, their parts joined.

    rows: a ring of (n_rows, row_bytes) each, in which the n_keys begin at row ``first``.
    """
    n_tokens, n_queries, head_dim = queries.shape
    n_rows, found = n_tokens * n_queries, []
    for part in range(-(-n_keys // lib.ELUTQ_ATTEND_KEYS)):
        scores = memory.array((n_rows, lib.ELUTQ_ATTEND_STRIDE), np.float32)
        weighings, y = memory.array((n_rows, 2), np.float32), memory.array(queries.shape, np.float32)
        ring = ffi.new("struct elutq_ring *", [*map(ffi.from_buffer, rows), len(rows[0]), first, n_keys])
        arguments = (floats(memory.copy(queries)), n_tokens, n_queries, ring, part, head_dim, 0.3, softcap)
        weighing = ffi.from_buffer("struct elutq_weighing[]", weighings)
        kernels.cache[cache_type].attend(*arguments, floats(scores), weighing, floats(y))
        found.append((weighing, y))
    (weighing, y), *others = found
    for other_weighing, other in others:
        kernels.join_parts(other_weighing, floats(other), n_rows, head_dim, weighing, floats(y))
    kernels.finish_parts(weighing, n_rows, head_dim, floats(y))
    return y


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("cache_type", [F16, Q8], ids=["f16", "q8"])
@pytest.mark.parametrize("head_dim", [8, 20, 64, 128])
@pytest.mark.parametrize("n_keys", [4, 16, 37, 258, 521])
@pytest.mark.parametrize(("n_tokens", "n_queries"), [(1, 1), (1, 3), (1, 6), (3, 1), (4, 2)])
def test_attention(name, cache_type, head_dim, n_keys, n_tokens, n_queries, memory, rng):
    shape = (n_tokens, n_queries, head_dim)
    q = memory.copy(rng.standard_normal(shape).astype(np.float32))
    (key_rows, k), (value_rows, v) = (
        stored(SETS[name], cache_type, rng.standard_normal((n_keys, head_dim)).astype(np.float32), memory)
        for _ in range(2)
    )
    rows = key_rows, value_rows
    y = attend(SETS[name], cache_type, q, rows, n_keys, memory)
    exact = np.exp(0.3 * q.astype(np.float64) @ k.T)
    seen = np.arange(n_keys) <= (n_keys - n_tokens + np.arange(n_tokens))[:, None, None]
    exact = np.where(seen, exact, 0)
    exact = exact / exact.sum(axis=-1, keepdims=True) @ v
    assert np.allclose(y, exact, atol=2e-6)
    assert np.array_equal(y, attend(SCALAR, cache_type, q, rows, n_keys, memory))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("n_keys", [4, 37, 259])
def test_scores_have_a_softcap(name, n_keys, memory, rng):
    q = memory.copy(rng.normal(0, 3, (2, 3, 20)).astype(np.float32))
    pairs = [stored(SETS[name], F16, rng.normal(0, 3, (n_keys, 20)).astype(np.float32), memory) for _ in range(2)]
    (key_rows, k), (value_rows, v) = pairs
    y = attend(SETS[name], F16, q, (key_rows, value_rows), n_keys, memory, 2.5)
    exact = np.exp(2.5 * np.tanh(0.3 * q.astype(np.float64) @ k.T / 2.5))
    exact = np.where(np.arange(n_keys) <= (n_keys - 2 + np.arange(2))[:, None, None], exact, 0)
    assert np.allclose(y, exact / exact.sum(axis=-1, keepdims=True) @ v, atol=2e-5)
    assert np.array_equal(y, attend(SCALAR, F16, q, (key_rows, value_rows), n_keys, memory, 2.5))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("cache_type", [F16, Q8], ids=["f16", "q8"])
@pytest.mark.parametrize("n_keys", [4, 37, 259])  # of 259 some tokens see a second piece
@pytest.mark.parametrize("n_queries", [1, 3, 6])
def test_a_token_attends_in_a_batch_as_it_does_alone(name, cache_type, n_keys, n_queries, memory, rng):
    n_tokens, head_dim = 4, 20
    q = rng.standard_normal((n_tokens, n_queries, head_dim)).astype(np.float32)
    rows = [
        stored(SETS[name], cache_type, rng.standard_normal((n_keys, head_dim)).astype(np.float32), memory)[0]
        for _ in range(2)
    ]

    together = attend(SETS[name], cache_type, q, rows, n_keys, memory)
    for token in range(n_tokens):
        alone = attend(SETS[name], cache_type, q[token : token + 1], rows, n_keys - n_tokens + token + 1, memory)
        assert np.array_equal(together[token], alone[0])


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("cache_type", [F16, Q8], ids=["f16", "q8"])
@pytest.mark.parametrize(("n_tokens", "n_queries"), [(1, 1), (1, 6), (4, 3)])
def test_where_the_keys_lie_in_a_ring_changes_no_bit(name, cache_type, n_tokens, n_queries, memory, rng):
    """Rows that are not attended to hold what is not finite: whoever reads one shows it."""
    head_dim, n_rows = 20, 530
    q = rng.standard_normal((n_tokens, n_queries, head_dim)).astype(np.float32)
    for n_keys in (5, 300, 517, n_rows):
        rows = [
            stored(SETS[name], cache_type, rng.standard_normal((n_keys, head_dim)).astype(np.float32), memory)[0]
            for _ in range(2)
        ]
        wanted = attend(SETS[name], cache_type, q, rows, n_keys, memory)
        for first in (0, 1, n_rows - n_keys, n_rows - n_keys // 2, n_rows - 3, n_rows - 1):
            rings = []
            for array in rows:
                ring = memory.array((n_rows, array.shape[1]), np.uint8)
                ring[:] = 0xFF
                ring[(first + np.arange(n_keys)) % n_rows] = array
                rings.append(ring)
            first %= n_rows
            assert np.array_equal(attend(SETS[name], cache_type, q, rings, n_keys, memory, first=first), wanted)
