"""Products by int8 levels, of large batches: the same bits in every set, within a derived bound of float64."""

import numpy as np
import pytest
from kernel_calls import OTHER_KINDS, SCALAR, SETS, SHAPES, STRIDE, Matrix, floats, random_tensor, rows_of

from elutq_native import ffi, lib

LANES = lib.ELUTQ_LEVELS_TOKENS
CTYPES = {"int8": "int8_t", "int32": "int32_t", "uint32": "uint32_t", "uint64": "uint64_t", "float32": "float"}


def gemm_levels(kernels, matrix, x, memory):
    n_tokens, n_columns = x.shape
    n_slots, n_groups = -(-n_tokens // LANES), n_columns // matrix.group_size
    arrays = {
        "values": memory.array((n_slots, n_columns, LANES), np.int8),
        "high": memory.array((n_slots, n_columns, LANES), np.int8),
        "high_cells": memory.array((n_slots, n_groups, LANES), np.uint64),
        "scales": memory.array((n_slots, n_groups, LANES), np.float32),
        "sums": memory.array((n_slots, n_groups, LANES), np.float32),
        "biases": memory.array((n_slots, n_groups, LANES), np.int32),
    }
    levels = ffi.new("struct elutq_levels *")
    for name, array in arrays.items():
        setattr(levels, name, ffi.from_buffer(f"{CTYPES[array.dtype.name]}[]", array))
    for token, row in enumerate(x):
        kernels.build_levels(floats(memory.copy(row)), n_columns, matrix.group_size, token, 0, n_groups, levels)
    results = []
    for chunk in range(matrix.n_chunks):
        y = memory.array((n_tokens - 1) * STRIDE + matrix.padded_rows(chunk), np.float32)
        kernels.gemm_levels(matrix.struct, levels, n_tokens, matrix.part(chunk), floats(y))
        results.append(rows_of(y, n_tokens, matrix.padded_rows(chunk)))
    return np.concatenate(results, axis=1)[:, : matrix.n_rows]


LEVEL_SETS = [name for name in SETS if SETS[name].gemm_levels != ffi.NULL]


def check_levels(tensor, n_tokens, outlier, memory, rng):
    """Hold the scalar product against float64, and every other set's against it."""
    rows, group_size = tensor.rows, tensor.group_size
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


@pytest.mark.parametrize("outlier", [1, 100])
@pytest.mark.parametrize("n_tokens", [1, 8, 13])
@pytest.mark.parametrize("rows", [1, 33, 300])
@pytest.mark.parametrize(("bits", "group_size"), SHAPES)
def test_levels_are_close_to_float64_and_equal_everywhere(bits, group_size, rows, n_tokens, outlier, memory, rng):
    check_levels(random_tensor(rng, rows, bits, group_size), n_tokens, outlier, memory, rng)


@pytest.mark.parametrize("kind", OTHER_KINDS)
@pytest.mark.parametrize(("bits", "group_size"), SHAPES)
def test_levels_of_every_kind_are_close_to_float64_and_equal_everywhere(kind, bits, group_size, memory, rng):
    check_levels(random_tensor(rng, 300, bits, group_size, kind=kind), 13, 100, memory, rng)


@pytest.mark.parametrize("name", LEVEL_SETS)
@pytest.mark.parametrize("scale", [-0.001, np.nan, np.inf])
def test_levels_of_scales_that_no_model_has_are_not_numbers(name, scale, memory, rng):
    matrix = Matrix(random_tensor(rng, 70, 3, 64), memory)
    scales = matrix.blocks[1 * 3 + 1].view(np.float16)  # of group 1 and tile 1, of the three that there are
    scales[2 * 32 + 45 % 32] = scale
    x = rng.standard_normal((9, matrix.n_columns)).astype(np.float32)
    y = gemm_levels(SETS[name], matrix, x, memory)
    assert np.isnan(y[:, 45]).all() and np.isfinite(np.delete(y, 45, axis=1)).all()
