"""Every kernel of every instruction set against the scalar one (same bits) and against float64 (derived bounds).

Inputs and outputs lie between guard pages, so that a read or write out of bounds ends the test run.
"""

import numpy as np
import pytest
from guarded import GuardedMemory

from elutq_formats.hlq import HLQTensor, pack
from elutq_native import ffi, lib

SEED = 20261122
F16, Q8 = lib.ELUTQ_CACHE_F16, lib.ELUTQ_CACHE_Q8
CHUNK, STRIDE, LANES = lib.ELUTQ_CHUNK_ROWS, lib.ELUTQ_CHUNK_STRIDE, lib.ELUTQ_LEVELS_TOKENS


def kernel_sets():
    sets, i = [], 0
    while (kernels := lib.elutq_kernels_at(i)) != ffi.NULL:
        sets.append(kernels)
        i += 1
    return {ffi.string(kernels.name).decode(): kernels for kernels in sets if lib.elutq_kernels_supported(kernels)}


SETS = kernel_sets()
SCALAR = SETS["scalar"]
VECTOR_SETS = [name for name in SETS if name != "scalar"]
SHAPES = [(bits, group) for bits in (1, 2, 3, 4) for group in (32, 64, 128)]
ROWS = (1, 31, 33, 256, 300)


@pytest.fixture
def memory():
    return GuardedMemory()


@pytest.fixture
def rng(request):
    seed = [SEED, *request.node.name.encode()]
    print("seed", seed)
    return np.random.default_rng(seed)


def floats(array):
    return ffi.from_buffer("float[]", array)


def random_tensor(rng, rows, bits, group_size, n_groups=3):
    return HLQTensor(
        half_scales=rng.uniform(0.0, 0.02, (rows, n_groups, bits)).astype(np.float16),
        centers=rng.normal(0, 0.004, (rows, n_groups)).astype(np.float16),
        codes=rng.integers(0, 2**bits, (rows, n_groups * group_size), dtype=np.uint8),
        group_size=group_size,
    )


class Matrix:
    """An HLQ matrix as the kernels see it."""

    def __init__(self, tensor, memory):
        self.blocks = memory.copy(pack(tensor))
        self.struct = ffi.new(
            "struct elutq_matrix *",
            {
                "data": ffi.from_buffer("uint8_t[]", self.blocks),
                "n_rows": tensor.rows,
                "n_columns": tensor.columns,
                "bits": tensor.bits,
                "group_size": tensor.group_size,
            },
        )
        self.n_rows, self.n_columns, self.group_size = tensor.rows, tensor.columns, tensor.group_size
        self.n_chunks = -(-tensor.rows // CHUNK)

    def padded_rows(self, chunk):
        return min(CHUNK, -(-(self.n_rows - chunk * CHUNK) // 32) * 32)


class Tables:
    def __init__(self, kernels, x, group_size, memory):
        n_groups = len(x) // group_size
        self.entries = memory.array((len(x) // 4, 16), np.int8)
        self.multipliers = memory.array(len(x) // 4, np.uint8)
        self.scales = memory.array(n_groups, np.float32)
        self.sums = memory.array(n_groups, np.float32)
        self.struct = ffi.new(
            "struct elutq_tables *",
            {
                "entries": ffi.from_buffer("int8_t[]", self.entries),
                "multipliers": ffi.from_buffer("uint8_t[]", self.multipliers),
                "scales": floats(self.scales),
                "sums": floats(self.sums),
            },
        )
        kernels.build_tables(floats(memory.copy(x)), group_size, 0, n_groups, self.struct)


def gemv(kernels, matrix, x, memory):
    tables = Tables(kernels, x, matrix.group_size, memory)
    results = []
    for chunk in range(matrix.n_chunks):
        y = memory.array(matrix.padded_rows(chunk), np.float32)
        kernels.gemv(matrix.struct, tables.struct, chunk, floats(y))
        results.append(y)
    return np.concatenate(results)[: matrix.n_rows]


def gemm_tables(kernels, matrix, x, memory):
    n_tokens = len(x)
    tables = [Tables(kernels, row, matrix.group_size, memory) for row in x]
    structs = ffi.new("struct elutq_tables[]", [each.struct[0] for each in tables])
    results = []
    for chunk in range(matrix.n_chunks):
        y = memory.array((n_tokens - 1) * STRIDE + matrix.padded_rows(chunk), np.float32)
        kernels.gemm_tables(matrix.struct, structs, n_tokens, chunk, floats(y))
        results.append(rows_of(y, n_tokens, matrix.padded_rows(chunk)))
    return np.concatenate(results, axis=1)[:, : matrix.n_rows]


def rows_of(y, n_tokens, n_rows):
    padded = np.concatenate([y, np.zeros(STRIDE, np.float32)])
    return padded[: n_tokens * STRIDE].reshape(n_tokens, STRIDE)[:, :n_rows]


CTYPES = {"int8": "int8_t", "int32": "int32_t", "uint32": "uint32_t", "float32": "float"}


def gemm_levels(kernels, matrix, x, memory):
    n_tokens, n_columns = x.shape
    n_slots, n_groups = -(-n_tokens // LANES), n_columns // matrix.group_size
    arrays = {
        "values": memory.array((n_slots, n_columns, LANES), np.int8),
        "high": memory.array((n_slots, n_columns, LANES), np.int8),
        "high_cells": memory.array((n_slots, n_groups, LANES), np.uint32),
        "scales": memory.array((n_slots, n_groups, LANES), np.float32),
        "sums": memory.array((n_slots, n_groups, LANES), np.float32),
        "biases": memory.array((n_slots, n_groups, LANES), np.int32),
    }
    levels = ffi.new("struct elutq_levels *")
    for name, array in arrays.items():
        setattr(levels, name, ffi.from_buffer(f"{CTYPES[array.dtype.name]}[]", array))
    for token, row in enumerate(x):
        kernels.build_levels(floats(memory.copy(row)), n_columns, matrix.group_size, token, levels)
    results = []
    for chunk in range(matrix.n_chunks):
        y = memory.array((n_tokens - 1) * STRIDE + matrix.padded_rows(chunk), np.float32)
        kernels.gemm_levels(matrix.struct, levels, n_tokens, chunk, floats(y))
        results.append(rows_of(y, n_tokens, matrix.padded_rows(chunk)))
    return np.concatenate(results, axis=1)[:, : matrix.n_rows]


def table_bound(tensor, x):
    """Largest error of a row from rounding the tables: sum_g 129 scale_g sum_k h_k (activation_kernels.h)."""
    n_cells = tensor.group_size // 4
    cells = np.abs(x.astype(np.float64)).reshape(-1, n_cells, 4).sum(axis=2)
    scales = np.maximum(cells.sum(axis=1) / (127 * (258 - n_cells)), cells.max(axis=1) / 127**2)
    heights = tensor.half_scales.astype(np.float64).sum(axis=2)
    return heights @ scales * (258 / 2) + 1e-5


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("bits", "group_size"), SHAPES)
def test_scalar_gemv_is_within_the_tables_rounding_of_float64(bits, group_size, rows, memory, rng):
    tensor = random_tensor(rng, rows, bits, group_size)
    x = rng.standard_normal(tensor.columns).astype(np.float32)
    exact = tensor.dequantize().astype(np.float64) @ x
    error = np.abs(gemv(SCALAR, Matrix(tensor, memory), x, memory) - exact)
    assert (error <= table_bound(tensor, x)).all()


@pytest.mark.parametrize("name", VECTOR_SETS)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("bits", "group_size"), SHAPES)
def test_gemv_gives_the_scalar_bits(name, bits, group_size, rows, memory, rng):
    tensor = random_tensor(rng, rows, bits, group_size)
    x = rng.standard_normal(tensor.columns).astype(np.float32)
    x[: group_size // 2] *= 100.0
    matrix = Matrix(tensor, memory)
    assert np.array_equal(gemv(SETS[name], matrix, x, memory), gemv(SCALAR, matrix, x, memory))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("n_tokens", [2, 4, 7, 11])
@pytest.mark.parametrize("rows", [1, 33, 300])
@pytest.mark.parametrize(("bits", "group_size"), SHAPES)
def test_a_batch_gives_each_token_what_gemv_gives(name, bits, group_size, rows, n_tokens, memory, rng):
    matrix = Matrix(random_tensor(rng, rows, bits, group_size), memory)
    x = rng.standard_normal((n_tokens, matrix.n_columns)).astype(np.float32)
    expected = [gemv(SCALAR, matrix, row, memory) for row in x]
    assert np.array_equal(gemm_tables(SETS[name], matrix, x, memory), expected)


@pytest.mark.parametrize("name", SETS)
def test_extreme_tables_do_not_overflow(name, memory):
    """All weights +, all activations equal: every integer sum is as large as it can be."""
    tensor = HLQTensor(
        np.full((32, 1, 2), 1.0, np.float16), np.zeros((32, 1), np.float16), np.full((32, 128), 3, np.uint8), 128
    )
    for value in (1.0, -1.0):
        x, matrix = np.full(128, value, np.float32), Matrix(tensor, memory)
        bound = table_bound(tensor, x).max()
        assert np.abs(gemv(SETS[name], matrix, x, memory) - 2 * 128 * value).max() <= bound
        assert np.abs(gemm_tables(SETS[name], matrix, np.stack([x] * 5), memory) - 2 * 128 * value).max() <= bound


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_the_multipliers_of_a_group_leave_its_sums_sixteen_bits(name, group_size, memory, rng):
    for spread in (0, 0.5, 1, 2, 4, 8):
        x = (rng.standard_normal(4 * group_size) * 10 ** rng.uniform(-spread, spread, 4 * group_size)).astype(
            np.float32
        )
        tables = Tables(SETS[name], x, group_size, memory)
        multipliers = tables.multipliers.reshape(4, -1).astype(int)
        assert multipliers.min() >= 1 and multipliers.max() <= 127
        assert (multipliers.sum(axis=1) * 127 <= 32767).all() and tables.entries.min() >= -127


@pytest.mark.parametrize("name", SETS)
def test_an_outlier_costs_the_rest_of_its_group_little(name, memory, rng):
    """Only its own cell is rounded coarsely; with one scale a group, the error would grow to about 13 times."""
    tensor = random_tensor(rng, 64, 4, 128)
    x = rng.standard_normal(tensor.columns).astype(np.float32)
    plain = np.abs(gemv(SETS[name], Matrix(tensor, memory), x, memory) - tensor.dequantize().astype(np.float64) @ x)
    for at in (5, 128, 300):
        x[at] = 100.0
    found = gemv(SETS[name], Matrix(tensor, memory), x, memory)
    error = np.abs(found - tensor.dequantize().astype(np.float64) @ x)
    assert np.sqrt(np.mean(error**2)) < 9 * np.sqrt(np.mean(plain**2))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("x", [np.zeros(128), np.full(128, 1e-38), np.full(128, 1e-31)], ids=["zero", "tiny", "small"])
def test_vanishing_activations_give_zero(name, x, memory, rng):
    tensor = random_tensor(rng, 40, 2, 128, n_groups=1)
    y = gemv(SETS[name], Matrix(tensor, memory), x.astype(np.float32), memory)
    assert np.isfinite(y).all() and np.abs(y).max() < 1e-28


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("change", ["scale", "center", "code"])
def test_a_changed_parameter_changes_its_row_alone(name, change, memory, rng):
    tensor = random_tensor(rng, 70, 3, 64)
    x = rng.standard_normal(tensor.columns).astype(np.float32)
    before = gemv(SETS[name], Matrix(tensor, memory), x, memory)
    if change == "scale":
        tensor.half_scales[45, 1, 2] += np.float16(0.01)
    elif change == "center":
        tensor.centers[45, 2] += np.float16(0.01)
    else:
        tensor.codes[45, 100] ^= 4
    after = gemv(SETS[name], Matrix(tensor, memory), x, memory)
    assert np.flatnonzero(before != after).tolist() == [45]


LEVEL_SETS = [name for name in SETS if SETS[name].gemm_levels != ffi.NULL]


@pytest.mark.parametrize("outlier", [1, 100])
@pytest.mark.parametrize("n_tokens", [1, 8, 13])
@pytest.mark.parametrize("rows", [1, 33, 300])
@pytest.mark.parametrize(("bits", "group_size"), SHAPES)
def test_levels_are_close_to_float64_and_equal_everywhere(bits, group_size, rows, n_tokens, outlier, memory, rng):
    tensor = random_tensor(rng, rows, bits, group_size)
    x = rng.standard_normal((n_tokens, tensor.columns)).astype(np.float32)
    x[n_tokens // 2 :, [5, group_size + 30]] *= outlier
    matrix = Matrix(tensor, memory)
    scalar = gemm_levels(SCALAR, matrix, x, memory)
    # Rounding: activations by scale/2 each, a weight's level by less than one step (of 2 sum h / 255).
    groups = x.astype(np.float64).reshape(n_tokens, -1, group_size)
    heights = tensor.half_scales.astype(np.float64).sum(axis=2)
    centred = np.abs(tensor.dequantize() - np.repeat(tensor.centers, group_size, axis=1)).astype(np.float64)
    largest, mean = np.abs(groups).max(axis=2), np.abs(groups).mean(axis=2)
    scales = np.where(largest > 4.999 * mean, np.maximum(3 * mean, (largest < 5.001 * mean) * largest), largest) / 127
    bound = scales / 2 @ centred.reshape(rows, -1, group_size).sum(axis=2).T
    bound += (np.abs(groups) + scales[:, :, None] / 2).sum(axis=2) @ (heights * 2 / 255).T + 1e-5
    error = np.abs(scalar - x.astype(np.float64) @ tensor.dequantize().astype(np.float64).T)
    assert (error <= bound).all()
    for name in LEVEL_SETS:
        assert np.array_equal(gemm_levels(SETS[name], matrix, x, memory), scalar), name


@pytest.mark.parametrize("name", LEVEL_SETS)
@pytest.mark.parametrize("scale", [-0.001, np.nan, np.inf])
def test_levels_of_scales_that_no_model_has_are_not_numbers(name, scale, memory, rng):
    matrix = Matrix(random_tensor(rng, 70, 3, 64), memory)
    scales = matrix.blocks[1 * 3 + 1].view(np.float16)  # of group 1 and tile 1, of the three that there are
    scales[2 * 32 + 45 % 32] = scale
    x = rng.standard_normal((9, matrix.n_columns)).astype(np.float32)
    y = gemm_levels(SETS[name], matrix, x, memory)
    assert np.isnan(y[:, 45]).all() and np.isfinite(np.delete(y, 45, axis=1)).all()


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 16), (259, 40), (300, 192)])
@pytest.mark.parametrize("n_tokens", [1, 4, 7])
def test_f16_product(name, rows, columns, n_tokens, memory, rng):
    weights = memory.copy(rng.standard_normal((rows, columns)).astype(np.float16))
    x = memory.copy(rng.standard_normal((n_tokens, columns)).astype(np.float32))
    fields = {"data": ffi.from_buffer("uint8_t[]", weights), "n_rows": rows, "n_columns": columns, "bits": 16}
    matrix = ffi.new("struct elutq_matrix *", fields)
    exact = x.astype(np.float64) @ weights.astype(np.float64).T
    for chunk in range(-(-rows // CHUNK)):
        n_rows = min(CHUNK, rows - chunk * CHUNK)
        y = memory.array((n_tokens - 1) * STRIDE + n_rows, np.float32)
        SETS[name].gemm_f16(matrix, floats(x), columns, n_tokens, chunk, floats(y))
        for token in range(n_tokens):
            found = y[token * STRIDE : token * STRIDE + n_rows]
            assert np.allclose(found, exact[token, chunk * CHUNK : chunk * CHUNK + n_rows], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 16])
def test_matrix_row(bits, memory, rng):
    if bits == 16:
        weights = rng.standard_normal((7, 64)).astype(np.float16)
        data = memory.copy(weights)
        struct = {"data": ffi.from_buffer("uint8_t[]", data), "n_rows": 7, "n_columns": 64, "bits": 16}
        matrix, expected = ffi.new("struct elutq_matrix *", struct), weights.astype(np.float32)
    else:
        tensor = random_tensor(rng, 300, bits, 32)
        packed = Matrix(tensor, memory)
        matrix, expected = packed.struct, tensor.dequantize()
    for row in {0, 1, 6, len(expected) // 2, len(expected) - 1}:
        y = memory.array(expected.shape[1], np.float32)
        lib.elutq_matrix_row(matrix, row, floats(y))
        assert np.allclose(y, expected[row], rtol=0, atol=1e-7)


LENGTHS = (1, 15, 16, 17, 64, 100)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("n", LENGTHS)
def test_elementwise_kernels(name, n, memory, rng):
    kernels = SETS[name]
    x, w = (memory.copy(rng.normal(0, 3, n).astype(np.float32)) for _ in range(2))
    y = memory.array(n, np.float32)

    scale = kernels.rms_scale(floats(x), n, 1e-5)
    assert scale == pytest.approx(1 / np.sqrt(np.mean(x.astype(np.float64) ** 2) + 1e-5), rel=1e-6)
    kernels.scale_by(floats(x), scale, floats(w), n, floats(y))
    assert np.allclose(y, x * np.float64(scale) * w, rtol=1e-6)

    kernels.swiglu(floats(x), floats(w), n, floats(y))
    assert np.allclose(y, x / (1 + np.exp(-x.astype(np.float64))) * w, rtol=2e-6, atol=1e-30)

    before = y.copy()
    kernels.add(floats(x), n, floats(y))
    assert np.array_equal(y, before + x)

    half = memory.array(n, np.uint16)
    kernels.cache[F16].store(floats(x), n, ffi.from_buffer(half))
    assert np.array_equal(half.view(np.float16), x.astype(np.float16))


@pytest.mark.parametrize("name", SETS)
def test_swiglu_saturates_without_nan(name, memory):
    gate = memory.copy(np.array([-1e4, -100, -88, 0, 88, 100, 1e4], np.float32))
    y, up = memory.array(7, np.float32), memory.copy(np.ones(7, np.float32))
    SETS[name].swiglu(floats(gate), floats(up), 7, floats(y))
    assert np.allclose(y, [0, 0, 0, 0, 88, 100, 1e4], atol=1e-30, rtol=1e-6) and np.isfinite(y).all()


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("head_dim", [2, 8, 34, 64, 128])
def test_rope(name, head_dim, memory, rng):
    x = rng.standard_normal(head_dim).astype(np.float32)
    angles = rng.uniform(0, 6, head_dim // 2)
    y, cosines, sines = memory.copy(x), *(memory.copy(f(angles).astype(np.float32)) for f in (np.cos, np.sin))
    SETS[name].rope(floats(y), floats(cosines), floats(sines), head_dim)
    rotated = (x[: head_dim // 2] + 1j * x[head_dim // 2 :]) * np.exp(1j * angles)
    assert np.allclose(y, np.concatenate([rotated.real, rotated.imag]), atol=1e-6)


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


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("cache_type", [F16, Q8], ids=["f16", "q8"])
@pytest.mark.parametrize("head_dim", [8, 20, 64, 128])
@pytest.mark.parametrize("n_keys", [4, 16, 37])
@pytest.mark.parametrize(("n_tokens", "n_queries"), [(1, 1), (1, 3), (1, 6), (3, 1), (4, 2)])
def test_attention(name, cache_type, head_dim, n_keys, n_tokens, n_queries, memory, rng):
    shape = (n_tokens, n_queries, head_dim)
    q = memory.copy(rng.standard_normal(shape).astype(np.float32))
    (key_rows, k), (value_rows, v) = (
        stored(SETS[name], cache_type, rng.standard_normal((n_keys, head_dim)).astype(np.float32), memory)
        for _ in range(2)
    )
    scores, y = memory.array((n_tokens * n_queries, n_keys), np.float32), memory.array(shape, np.float32)
    rows = [ffi.from_buffer(array) for array in (key_rows, value_rows)]
    arguments = (floats(q), n_tokens, n_queries, *rows, n_keys, head_dim, 0.3, floats(scores))
    SETS[name].cache[cache_type].attend(*arguments, floats(y))
    exact = np.exp(0.3 * q.astype(np.float64) @ k.T)
    seen = np.arange(n_keys) <= (n_keys - n_tokens + np.arange(n_tokens))[:, None, None]
    exact = np.where(seen, exact, 0)
    exact = exact / exact.sum(axis=-1, keepdims=True) @ v
    assert np.allclose(y, exact, atol=2e-6)
    reference = memory.array(shape, np.float32)
    SCALAR.cache[cache_type].attend(*arguments, floats(reference))
    assert np.array_equal(y, reference)


def test_every_half_converts_both_ways(memory):
    """Through the scalar kernels: fp16 -> float32 -> fp16 is the identity on all 65,536 patterns but NaN payloads."""
    patterns = np.arange(65536, dtype=np.uint16)
    values = patterns.view(np.float16)
    data = memory.copy(values.reshape(1, -1))
    fields = {"data": ffi.from_buffer("uint8_t[]", data), "n_rows": 1, "n_columns": 65536, "bits": 16}
    row = memory.array(65536, np.float32)
    lib.elutq_matrix_row(ffi.new("struct elutq_matrix *", fields), 0, floats(row))
    assert np.array_equal(row, values.astype(np.float32), equal_nan=True)
    back = memory.array(65536, np.uint16)
    SCALAR.cache[F16].store(floats(row), 65536, ffi.from_buffer(back))
    numbers = ~np.isnan(values)
    assert np.array_equal(back[numbers], patterns[numbers])
