/*
 * The kernels whose loops are the same on every instruction set, written once over the sixteen-lane operations of a
 * vec16_<isa>.h, which must be included first. Sums run in sixteen strided lanes, so that all sets give the same bits.
 * A file that includes this defines ELUTQ_F16_TILE as well, the rows and tokens of an fp16 product that its registers hold
 * sums of.
 */
#ifndef ELUTQ_FLOAT_KERNELS_H
#define ELUTQ_FLOAT_KERNELS_H

#include <math.h>
#include <string.h>

#include "elutq_format.h"
#include "elutq_kernels.h"
#include "stream.h"

/* The first n < 16 floats at p, then zeros. */
INLINE v16 load_first(const float *p, uint32_t n) {
    float lanes[16] = {0};
    memcpy(lanes, p, n * sizeof *p);
    return v16_load(lanes);
}

INLINE void store_first(float *p, v16 a, uint32_t n) {
    float lanes[16];
    v16_store(lanes, a);
    memcpy(p, lanes, n * sizeof *p);
}

/*
 * exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln(2)/2. The polynomial is the Taylor series to r^7: its remainder,
 * r^8/8! < 5.3e-9, is below half an ulp of a float. x is clamped to where 2^n is a normal float.
 */
INLINE v16 v16_exp(v16 x) {
    x = v16_max(v16_set1(-87.0f), v16_min(v16_set1(88.0f), x)); /* in this order a NaN stays one */
    v16 n = v16_round(v16_mul(x, v16_set1(1.44269504f)));
    v16 r = v16_fma(n, v16_set1(-0.693359375f), x); /* ln 2 in two parts, the first exact times n */
    r = v16_fma(n, v16_set1(2.12194440e-4f), r);
    v16 p = v16_set1(1.0f / 5040);
    p = v16_fma(p, r, v16_set1(1.0f / 720));
    p = v16_fma(p, r, v16_set1(1.0f / 120));
    p = v16_fma(p, r, v16_set1(1.0f / 24));
    p = v16_fma(p, r, v16_set1(1.0f / 6));
    p = v16_fma(p, r, v16_set1(0.5f));
    p = v16_fma(p, r, v16_set1(1.0f));
    p = v16_fma(p, r, v16_set1(1.0f));
    return v16_scale2(p, n);
}

/* tanh(u) = 1 - 2 / (exp(2 u) + 1): off by no more than 2^-23 and the error of exp. */
INLINE v16 soften_lanes(v16 x, v16 cap, v16 twice_inverse) {
    v16 one = v16_set1(1), e = v16_exp(v16_mul(x, twice_inverse));
    return v16_mul(cap, v16_sub(one, v16_div(v16_set1(2), v16_add(e, one))));
}

KERNEL void soften(float *x, uint32_t n, float cap) {
    const v16 caps = v16_set1(cap), twice_inverse = v16_set1(2.0f / cap);
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16)
        v16_store(x + i, soften_lanes(v16_load(x + i), caps, twice_inverse));
    if (i < n)
        store_first(x + i, soften_lanes(load_first(x + i, n - i), caps, twice_inverse), n - i);
}

#include "activation_kernels.h"
#include "stored_row.h"
#include "f16_gemm.h"
#include "attention.h"

KERNEL float rms_scale(const float *x, uint32_t n, float epsilon) {
    v16 squares = v16_set1(0);
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16) {
        v16 xi = v16_load(x + i);
        squares = v16_fma(xi, xi, squares);
    }
    if (i < n) {
        v16 xi = load_first(x + i, n - i);
        squares = v16_fma(xi, xi, squares);
    }
    return 1.0f / sqrtf(v16_sum(squares) / (float)n + epsilon);
}

KERNEL void scale_by(const float *x, float scale, const float *weight, uint32_t n, float *y) {
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16)
        v16_store(y + i, v16_mul(v16_mul(v16_load(x + i), v16_set1(scale)), v16_load(weight + i)));
    for (; i < n; i++)
        y[i] = x[i] * scale * weight[i];
}

KERNEL void rope(float *x, const float *cosines, const float *sines, uint32_t n) {
    uint32_t half = n / 2, i = 0;
    float *a = x, *b = x + half;
    for (; i + 16 <= half; i += 16) {
        v16 ai = v16_load(a + i), bi = v16_load(b + i), c = v16_load(cosines + i), s = v16_load(sines + i);
        v16_store(a + i, v16_sub(v16_mul(ai, c), v16_mul(bi, s)));
        v16_store(b + i, v16_add(v16_mul(bi, c), v16_mul(ai, s)));
    }
    for (; i < half; i++) {
        float ai = a[i], bi = b[i];
        a[i] = ai * cosines[i] - bi * sines[i];
        b[i] = bi * cosines[i] + ai * sines[i];
    }
}

INLINE v16 swiglu_lanes(v16 gate, v16 up) {
    v16 one = v16_set1(1), negative = v16_sub(v16_set1(0), gate);
    return v16_mul(v16_div(gate, v16_add(one, v16_exp(negative))), up);
}

KERNEL void swiglu(const float *gate, const float *up, uint32_t n, float *y) {
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16)
        v16_store(y + i, swiglu_lanes(v16_load(gate + i), v16_load(up + i)));
    if (i < n)
        store_first(y + i, swiglu_lanes(load_first(gate + i, n - i), load_first(up + i, n - i)), n - i);
}

/* (1 + tanh(u)) / 2 = 1 / (1 + exp(-2u)), u = sqrt(2 / pi) (gate + 0.044715 gate^3): see Hendrycks and Gimpel 2016. */
INLINE v16 geglu_lanes(v16 gate, v16 up) {
    v16 one = v16_set1(1), square = v16_mul(gate, gate);
    v16 slope = v16_fma(square, v16_set1(-2 * 0.7978845608f * 0.044715f), v16_set1(-2 * 0.7978845608f));
    return v16_mul(v16_div(gate, v16_add(one, v16_exp(v16_mul(gate, slope)))), up);
}

KERNEL void geglu(const float *gate, const float *up, uint32_t n, float *y) {
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16)
        v16_store(y + i, geglu_lanes(v16_load(gate + i), v16_load(up + i)));
    if (i < n)
        store_first(y + i, geglu_lanes(load_first(gate + i, n - i), load_first(up + i, n - i)), n - i);
}

KERNEL void add(const float *x, uint32_t n, float *y) {
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16)
        v16_store(y + i, v16_add(v16_load(y + i), v16_load(x + i)));
    for (; i < n; i++)
        y[i] += x[i];
}

KERNEL void add_scaled(const float *x, float scale, uint32_t n, float *y) {
    const v16 scales = v16_set1(scale);
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16)
        v16_store(y + i, v16_fma(v16_load(x + i), scales, v16_load(y + i)));
    if (i < n)
        store_first(y + i, v16_fma(load_first(x + i, n - i), scales, load_first(y + i, n - i)), n - i);
}

/* Rows that are multiplied side by side. */
#define MULTIPLIED_ROWS 4

INLINE void multiply_some_floats(const float *weights, const float *x, uint32_t n_rows, uint32_t n_columns, float *y) {
    v16 sums[MULTIPLIED_ROWS];
    uint32_t i = 0;
    for (uint32_t row = 0; row < n_rows; row++)
        sums[row] = v16_set1(0);
    for (; i + 16 <= n_columns; i += 16) {
        const v16 xi = v16_load(x + i);
        ELUTQ_UNROLL(4)
        for (uint32_t row = 0; row < n_rows; row++)
            sums[row] = v16_fma(v16_load(weights + (size_t)row * n_columns + i), xi, sums[row]);
    }
    if (i < n_columns)
        for (uint32_t row = 0; row < n_rows; row++)
            sums[row] = v16_fma(load_first(weights + (size_t)row * n_columns + i, n_columns - i),
                                load_first(x + i, n_columns - i), sums[row]);
    for (uint32_t row = 0; row < n_rows; row++)
        y[row] = v16_sum(sums[row]);
}

KERNEL void multiply_floats(const float *weights, const float *x, uint32_t n_rows, uint32_t n_columns, float *y) {
    uint32_t row = 0;
    for (; row + MULTIPLIED_ROWS <= n_rows; row += MULTIPLIED_ROWS)
        multiply_some_floats(weights + (size_t)row * n_columns, x, MULTIPLIED_ROWS, n_columns, y + row);
    for (; row < n_rows; row++)
        multiply_some_floats(weights + (size_t)row * n_columns, x, 1, n_columns, y + row);
}

/* Maxima cost the least of what keeps a compiler from leaving the loads out, whatever floats the bytes make. */
KERNEL float read_floats(const float *bytes, size_t n) {
    v16 a = v16_set1(0), b = a, c = a, d = a;
    for (size_t i = 0; i + 64 <= n; i += 64) {
        a = v16_max(a, v16_load(bytes + i));
        b = v16_max(b, v16_load(bytes + i + 16));
        c = v16_max(c, v16_load(bytes + i + 32));
        d = v16_max(d, v16_load(bytes + i + 48));
    }
    return v16_largest(v16_max(v16_max(a, b), v16_max(c, d)));
}

/* The members of struct elutq_kernels that this file and its parts define, for its initialiser. */
#define ELUTQ_FLOAT_KERNELS                                                                                                    \
    .build_tables = build_tables, .gemm_f16 = gemm_f16, .rms_scale = rms_scale, .scale_by = scale_by, .rope = rope,           \
    .swiglu = swiglu, .geglu = geglu, .soften = soften, .add = add, .add_scaled = add_scaled,                      \
    .multiply_floats = multiply_floats, .join_parts = join_parts, .finish_parts = finish_parts,   \
    .read_floats = read_floats,                                                                                               \
    .cache = {[ELUTQ_CACHE_F16] = {store_f16, attend_f16}, [ELUTQ_CACHE_Q8] = {store_q8, attend_q8}}

#endif
