"""Products by tables, of one token and of several: the scalar kernels' bits in every set, within a bound of float64."""

import numpy as np
import pytest
from kernel_calls import OTHER_KINDS, SCALAR, SETS, SHAPES, STRIDE, Matrix, floats, random_tensor, rows_of

from elutq_formats.hlq import HLQTensor
from elutq_native import ffi

VECTOR_SETS = [name for name in SETS if name != "scalar"]
ROWS = (1, 31, 33, 256, 300)


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
        kernels.gemv(matrix.struct, tables.struct, matrix.part(chunk), floats(y))
        results.append(y)
    return np.concatenate(results)[: matrix.n_rows]


def gemm_tables(kernels, matrix, x, memory):
    n_tokens = len(x)
    tables = [Tables(kernels, row, matrix.group_size, memory) for row in x]
    structs = ffi.new("struct elutq_tables[]", [each.struct[0] for each in tables])
    results = []
    for chunk in range(matrix.n_chunks):
        y = memory.array((n_tokens - 1) * STRIDE + matrix.padded_rows(chunk), np.float32)
        kernels.gemm_tables(matrix.struct, structs, n_tokens, matrix.part(chunk), floats(y))
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
@pytest.mark.parametrize("n_tokens", [2, 3, 4, 11])
@pytest.mark.parametrize("rows", [1, 33, 300])
@pytest.mark.parametrize(("bits", "group_size"), SHAPES)
def test_a_batch_gives_each_token_what_gemv_gives(name, bits, group_size, rows, n_tokens, memory, rng):
    matrix = Matrix(random_tensor(rng, rows, bits, group_size), memory)
    x = rng.standard_normal((n_tokens, matrix.n_columns)).astype(np.float32)
    expected = [gemv(SCALAR, matrix, row, memory) for row in x]
    assert np.array_equal(gemm_tables(SETS[name], matrix, x, memory), expected)


@pytest.mark.parametrize("kind", OTHER_KINDS)
@pytest.mark.parametrize("rows", [33, 300])
@pytest.mark.parametrize(("bits", "group_size"), SHAPES)
def test_every_kind_is_within_the_tables_rounding_of_float64_and_equal_everywhere(
    kind, bits, group_size, rows, memory, rng
):
    tensor = random_tensor(rng, rows, bits, group_size, kind=kind)
    x = rng.standard_normal((9, tensor.columns)).astype(np.float32)
    matrix = Matrix(tensor, memory)
    scalar = np.stack([gemv(SCALAR, matrix, row, memory) for row in x])
    for row, found in zip(x, scalar, strict=True):
        assert (np.abs(found - tensor.dequantize().astype(np.float64) @ row) <= table_bound(tensor, row)).all()
    for name in VECTOR_SETS:
        assert np.array_equal(gemv(SETS[name], matrix, x[0], memory), scalar[0]), name
        assert np.array_equal(gemm_tables(SETS[name], matrix, x, memory), scalar), name


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("group_size", [128, 256])
def test_extreme_tables_do_not_overflow(name, group_size, memory):
    """All weights +, all activations equal: every integer sum is as large as it can be."""
    half_scales, centers = np.full((32, 1, 2), 1.0, np.float16), np.zeros((32, 1), np.float16)
    tensor = HLQTensor(half_scales, centers, np.full((32, group_size), 3, np.uint8), group_size)
    for value in (1.0, -1.0):
        x, matrix = np.full(group_size, value, np.float32), Matrix(tensor, memory)
        bound, exact = table_bound(tensor, x).max(), 2 * group_size * value
        assert np.abs(gemv(SETS[name], matrix, x, memory) - exact).max() <= bound
        assert np.abs(gemm_tables(SETS[name], matrix, np.stack([x] * 5), memory) - exact).max() <= bound


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("group_size", [32, 64, 128, 256])
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
