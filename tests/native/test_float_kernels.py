"""Kernels of float32 and float16, every set's: against float64."""

import numpy as np
import pytest
from kernel_calls import CHUNK, F16, SCALAR, SETS, STRIDE, Matrix, chunk_part, floats, random_tensor

from elutq_native import ffi, lib


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
        n_rows, part = min(CHUNK, rows - chunk * CHUNK), chunk_part(rows, chunk)
        y = memory.array((n_tokens - 1) * STRIDE + n_rows, np.float32)
        reference, alone = memory.array(y.shape, np.float32), memory.array(n_rows, np.float32)
        SETS[name].gemm_f16(matrix, floats(x), columns, n_tokens, part, floats(y))
        SCALAR.gemm_f16(matrix, floats(x), columns, n_tokens, part, floats(reference))
        for token in range(n_tokens):
            found = y[token * STRIDE : token * STRIDE + n_rows]
            assert np.array_equal(found, reference[token * STRIDE : token * STRIDE + n_rows])
            SETS[name].gemm_f16(matrix, floats(x[token]), columns, 1, part, floats(alone))
            assert np.array_equal(found, alone)
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


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (4, 16), (5, 40), (9, 100)])
def test_product_of_floats(name, rows, columns, memory, rng):
    weights = memory.copy(rng.standard_normal((rows, columns)).astype(np.float32))
    x = memory.copy(rng.standard_normal(columns).astype(np.float32))
    y, reference, alone = (memory.array(n, np.float32) for n in (rows, rows, 1))
    SETS[name].multiply_floats(floats(weights), floats(x), rows, columns, floats(y))
    SCALAR.multiply_floats(floats(weights), floats(x), rows, columns, floats(reference))
    assert np.array_equal(y, reference)
    assert np.allclose(y, weights.astype(np.float64) @ x, rtol=1e-5, atol=1e-5)
    for row in range(rows):
        SETS[name].multiply_floats(floats(weights[row]), floats(x), 1, columns, floats(alone))
        assert alone[0] == y[row]


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

    kernels.geglu(floats(x), floats(w), n, floats(y))
    exact = x.astype(np.float64)
    activated = 0.5 * exact * (1 + np.tanh(np.sqrt(2 / np.pi) * (exact + 0.044715 * exact**3)))
    assert np.allclose(y, activated * w, rtol=2e-5, atol=2e-6)

    y[:] = x
    kernels.soften(floats(y), n, 2.5)
    assert np.allclose(y, 2.5 * np.tanh(exact / 2.5), atol=1e-6)

    y[:] = x
    before = y.copy()
    kernels.add(floats(x), n, floats(y))
    assert np.array_equal(y, before + x)

    y[:] = w
    kernels.add_scaled(floats(x), 0.3, n, floats(y))
    assert np.allclose(y, w + np.float64(np.float32(0.3)) * x, rtol=1e-7, atol=1e-7)

    half = memory.array(n, np.uint16)
    kernels.cache[F16].store(floats(x), n, ffi.from_buffer(half))
    assert np.array_equal(half.view(np.float16), x.astype(np.float16))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("function", ["swiglu", "geglu"])
def test_gates_saturate_without_nan(name, function, memory):
    gate = memory.copy(np.array([-1e4, -100, -88, 0, 88, 100, 1e4], np.float32))
    y, up = memory.array(7, np.float32), memory.copy(np.ones(7, np.float32))
    getattr(SETS[name], function)(floats(gate), floats(up), 7, floats(y))
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
