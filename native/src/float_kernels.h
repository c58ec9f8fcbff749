/*
 * The kernels whose loops are the same on every instruction set, written once over the sixteen-lane operations of a
 * vec16_<isa>.h, which must be included first. Sums run in sixteen strided lanes, so that all sets give the same bits.
 * A file that includes this defines ELUTQ_TABLE_BIAS as well, what its gemv wants added to a table entry (0 or 128), and
 * ELUTQ_F16_TILE, the rows and tokens of an fp16 product that its registers hold sums of.
 */
#ifndef ELUTQ_FLOAT_KERNELS_H
#define ELUTQ_FLOAT_KERNELS_H

#include <math.h>
#include <string.h>

#include "elutq_format.h"
#include "elutq_kernels.h"

/*
 * What is streamed from memory is asked for ahead, twice: far ahead into L2, then near into L1. The hardware's prefetcher
 * alone stops at the end of each 4 KB page: measured on a server core, decode rises from 0.76 to 0.92 of plain read
 * (docs/kernels.md); where the hardware does better by itself it costs nothing. Bytes.
 */
#define ELUTQ_PREFETCH_FAR 4096
#define ELUTQ_PREFETCH_NEAR 1280

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

INLINE v16 load_half_first(const uint16_t *p, uint32_t n) {
    uint16_t lanes[16] = {0};
    memcpy(lanes, p, n * sizeof *p);
    return v16_load_half(lanes);
}

/*
 * exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln(2)/2. The polynomial is the Taylor series to r^7: its remainder,
 * r^8/8! < 5.3e-9, is below half an ulp of a float. x is clamped to where 2^n is a normal float.
 */
INLINE v16 v16_exp(v16 x) {
    x = v16_max(v16_min(x, v16_set1(88.0f)), v16_set1(-87.0f));
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

/* Signs of the four activations of a cell in table entries 0 .. 15: bit i of the entry's index is the sign of column i. */
static const float TABLE_SIGNS[4][16] = {
    {-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1},
    {-1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1},
    {-1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1},
    {-1, -1, -1, -1, -1, -1, -1, -1, 1, 1, 1, 1, 1, 1, 1, 1},
};

/* Groups whose largest value is below this are taken for zero, so that 127 / largest stays finite. */
#define SMALLEST_SCALED 1e-30f

/*
 * Each entry is rounded once, from the float sum: its error is at most scale / 2, where scale = (largest sum of four
 * magnitudes in the group) / 127. A row's result is therefore off by at most
 * sum over groups of scale_g * (group_size / 8) * sum_k |h_k| from rounding the tables.
 */
KERNEL void build_tables(const float *x, uint32_t group_size, uint32_t first_group, uint32_t end_group,
                         struct elutq_tables *tables) {
    const uint32_t n_cells = group_size / ELUTQ_CELL_COLUMNS;
    const v16 s0 = v16_load(TABLE_SIGNS[0]), s1 = v16_load(TABLE_SIGNS[1]);
    const v16 s2 = v16_load(TABLE_SIGNS[2]), s3 = v16_load(TABLE_SIGNS[3]);
    for (uint32_t group = first_group; group < end_group; group++) {
        const float *xg = x + (size_t)group * group_size;
        float sums[128 / ELUTQ_CELL_COLUMNS][16];
        v16 largest = v16_set1(0), total = v16_set1(0);
        for (uint32_t i = 0; i < group_size; i += 16)
            total = v16_add(total, v16_load(xg + i));
        for (uint32_t cell = 0; cell < n_cells; cell++) {
            const float *xc = xg + ELUTQ_CELL_COLUMNS * cell;
            v16 first = v16_fma(s1, v16_set1(xc[1]), v16_mul(s0, v16_set1(xc[0])));
            v16 second = v16_fma(s3, v16_set1(xc[3]), v16_mul(s2, v16_set1(xc[2])));
            v16 sum = v16_add(first, second);
            largest = v16_max(sum, largest);
            v16_store(sums[cell], sum);
        }
        float magnitude = v16_largest(largest);
        int scaled = magnitude > SMALLEST_SCALED;
        v16 inverse = v16_set1(scaled ? 127.0f / magnitude : 0.0f);
        int8_t *entries = tables->entries + (size_t)group * n_cells * 16;
        for (uint32_t cell = 0; cell < n_cells; cell++)
            v16_store_i8(entries + 16 * cell, v16_mul(v16_load(sums[cell]), inverse));
        if (ELUTQ_TABLE_BIAS)
            for (uint32_t i = 0; i < 16 * n_cells; i++)
                entries[i] = (int8_t)(entries[i] ^ ELUTQ_TABLE_BIAS);
        tables->scales[group] = scaled ? magnitude / 127.0f : 0.0f;
        tables->sums[group] = v16_sum(total);
    }
}

/*
 * How gemm_levels rounds half scales to whole steps (kernels_scalar.c): scales tried, and the largest, which leaves room
 * for every step to round up.
 */
#define ELUTQ_LEVELS_TRIALS 4
#define ELUTQ_LEVELS_TOP(bits) (255.0f - 0.5f * (float)(bits))

/* int8 values with one scale a group: each is off by at most scale / 2, scale = largest magnitude / 127. */
KERNEL __attribute__((unused)) void build_levels(const float *x, uint32_t n_columns, uint32_t group_size, uint32_t token,
                                                 struct elutq_levels *levels) {
    const uint32_t n_groups = n_columns / group_size, lane = token % ELUTQ_LEVELS_TOKENS;
    const size_t block = token / ELUTQ_LEVELS_TOKENS;
    int8_t *values = levels->values + block * n_columns * ELUTQ_LEVELS_TOKENS + (size_t)lane * ELUTQ_CELL_COLUMNS;
    for (uint32_t group = 0; group < n_groups; group++) {
        const float *xg = x + (size_t)group * group_size;
        v16 largest = v16_set1(0), total = v16_set1(0);
        for (uint32_t i = 0; i < group_size; i += 16) {
            v16 xi = v16_load(xg + i);
            total = v16_add(total, xi);
            largest = v16_max(v16_abs(xi), largest);
        }
        float magnitude = v16_largest(largest);
        int scaled = magnitude > SMALLEST_SCALED;
        v16 inverse = v16_set1(scaled ? 127.0f / magnitude : 0.0f);
        v16 value_sum = v16_set1(0); /* of whole numbers below 2^24: exact */
        for (uint32_t i = 0; i < group_size; i += 16) {
            v16 rounded = v16_round(v16_mul(v16_load(xg + i), inverse));
            int8_t bytes[16];
            value_sum = v16_add(value_sum, rounded);
            v16_store_i8(bytes, rounded);
            for (uint32_t j = 0; j < 16; j += ELUTQ_CELL_COLUMNS)
                memcpy(values + ((size_t)group * group_size + i + j) * ELUTQ_LEVELS_TOKENS, bytes + j, ELUTQ_CELL_COLUMNS);
        }
        size_t at = (block * n_groups + group) * ELUTQ_LEVELS_TOKENS + lane;
        levels->scales[at] = scaled ? magnitude / 127.0f : 0.0f;
        levels->sums[at] = v16_sum(total);
        levels->biases[at] = -128 * (int32_t)v16_sum(value_sum);
    }
}

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

KERNEL void rope(float *x, const float *cosines, const float *sines, uint32_t head_dim) {
    uint32_t half = head_dim / 2, i = 0;
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

KERNEL void add(const float *x, uint32_t n, float *y) {
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16)
        v16_store(y + i, v16_add(v16_load(y + i), v16_load(x + i)));
    for (; i < n; i++)
        y[i] += x[i];
}

KERNEL void to_f16(const float *x, uint32_t n, uint16_t *y) {
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16)
        v16_store_half(y + i, v16_load(x + i));
    if (i < n) {
        uint16_t lanes[16];
        v16_store_half(lanes, load_first(x + i, n - i));
        memcpy(y + i, lanes, (n - i) * sizeof *y);
    }
}

/* sum of weights[n] (fp16) * x[n], in four times sixteen lanes to hide the latency of fma. */
INLINE float dot_half(const uint16_t *weights, const float *x, uint32_t n) {
    v16 a0 = v16_set1(0), a1 = a0, a2 = a0, a3 = a0;
    uint32_t i = 0;
    for (; i + 64 <= n; i += 64) {
        a0 = v16_fma(v16_load_half(weights + i), v16_load(x + i), a0);
        a1 = v16_fma(v16_load_half(weights + i + 16), v16_load(x + i + 16), a1);
        a2 = v16_fma(v16_load_half(weights + i + 32), v16_load(x + i + 32), a2);
        a3 = v16_fma(v16_load_half(weights + i + 48), v16_load(x + i + 48), a3);
    }
    for (; i + 16 <= n; i += 16)
        a0 = v16_fma(v16_load_half(weights + i), v16_load(x + i), a0);
    if (i < n)
        a1 = v16_fma(load_half_first(weights + i, n - i), load_first(x + i, n - i), a1);
    return v16_sum(v16_add(v16_add(a0, a1), v16_add(a2, a3)));
}

/* Dot products of ELUTQ_F16_TILE rows with as many tokens, each in sixteen lanes: y[token][row]. */
INLINE void multiply_f16_tile(const uint16_t *weights, const float *x, size_t x_stride, uint32_t n_columns, float *y) {
    v16 sums[ELUTQ_F16_TILE][ELUTQ_F16_TILE];
#pragma GCC unroll 4
    for (uint32_t r = 0; r < ELUTQ_F16_TILE; r++)
#pragma GCC unroll 4
        for (uint32_t t = 0; t < ELUTQ_F16_TILE; t++)
            sums[r][t] = v16_set1(0);
    for (uint32_t i = 0; i < n_columns; i += 16) {
        const uint32_t left = n_columns - i;
        v16 w[ELUTQ_F16_TILE];
#pragma GCC unroll 4
        for (uint32_t r = 0; r < ELUTQ_F16_TILE; r++) {
            const uint16_t *at = weights + (size_t)r * n_columns + i;
            w[r] = left >= 16 ? v16_load_half(at) : load_half_first(at, left);
        }
#pragma GCC unroll 4
        for (uint32_t t = 0; t < ELUTQ_F16_TILE; t++) {
            v16 xt = left >= 16 ? v16_load(x + t * x_stride + i) : load_first(x + t * x_stride + i, left);
#pragma GCC unroll 4
            for (uint32_t r = 0; r < ELUTQ_F16_TILE; r++)
                sums[r][t] = v16_fma(w[r], xt, sums[r][t]);
        }
    }
#pragma GCC unroll 4
    for (uint32_t t = 0; t < ELUTQ_F16_TILE; t++)
#pragma GCC unroll 4
        for (uint32_t r = 0; r < ELUTQ_F16_TILE; r++)
            y[(size_t)t * ELUTQ_CHUNK_STRIDE + r] = v16_sum(sums[r][t]);
}

KERNEL void gemm_f16(const struct elutq_matrix *matrix, const float *x, size_t x_stride, uint32_t n_tokens, uint32_t chunk,
                     float *y) {
    const uint32_t first = chunk * ELUTQ_CHUNK_ROWS, n_columns = matrix->n_columns;
    const uint32_t n_rows = matrix->n_rows - first < ELUTQ_CHUNK_ROWS ? matrix->n_rows - first : ELUTQ_CHUNK_ROWS;
    const uint16_t *weights = (const uint16_t *)matrix->data + (size_t)first * n_columns;
    const uint32_t tiled_rows = n_rows - n_rows % ELUTQ_F16_TILE, tiled_tokens = n_tokens - n_tokens % ELUTQ_F16_TILE;
    for (uint32_t row = 0; row < tiled_rows; row += ELUTQ_F16_TILE)
        for (uint32_t token = 0; token < tiled_tokens; token += ELUTQ_F16_TILE)
            multiply_f16_tile(weights + (size_t)row * n_columns, x + token * x_stride, x_stride, n_columns,
                              y + (size_t)token * ELUTQ_CHUNK_STRIDE + row);
    for (uint32_t row = 0; row < n_rows; row++)
        for (uint32_t token = row < tiled_rows ? tiled_tokens : 0; token < n_tokens; token++)
            y[(size_t)token * ELUTQ_CHUNK_STRIDE + row] =
                dot_half(weights + (size_t)row * n_columns, x + token * x_stride, n_columns);
}

/* In place: scores[n] -> exp(scores - max) / sum. */
INLINE void softmax(float *scores, uint32_t n) {
    v16 lanes = v16_set1(-INFINITY);
    uint32_t whole = n & ~15u;
    for (uint32_t i = 0; i < whole; i += 16)
        lanes = v16_max(v16_load(scores + i), lanes);
    float largest = v16_largest(lanes);
    for (uint32_t i = whole; i < n; i++)
        largest = scores[i] > largest ? scores[i] : largest;
    v16 total = v16_set1(0), shift = v16_set1(largest);
    for (uint32_t i = 0; i < whole; i += 16) {
        v16 e = v16_exp(v16_sub(v16_load(scores + i), shift));
        total = v16_add(total, e);
        v16_store(scores + i, e);
    }
    if (whole < n) {
        float lanes_left[16] = {0};
        store_first(lanes_left, v16_exp(v16_sub(load_first(scores + whole, n - whole), shift)), n - whole);
        memcpy(scores + whole, lanes_left, (n - whole) * sizeof *scores);
        total = v16_add(total, v16_load(lanes_left));
    }
    v16 inverse = v16_set1(1.0f / v16_sum(total));
    for (uint32_t i = 0; i < whole; i += 16)
        v16_store(scores + i, v16_mul(v16_load(scores + i), inverse));
    if (whole < n)
        store_first(scores + whole, v16_mul(load_first(scores + whole, n - whole), inverse), n - whole);
}

/* dots[q * stride] = scale * keys[n] . queries[q][n] for four queries, so that a key is converted once for all. */
INLINE void dot_half_4(const uint16_t *key, const float *queries, uint32_t n, float scale, float *dots, size_t stride) {
    v16 a0 = v16_set1(0), a1 = a0, a2 = a0, a3 = a0;
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16) {
        v16 k = v16_load_half(key + i);
        a0 = v16_fma(k, v16_load(queries + i), a0);
        a1 = v16_fma(k, v16_load(queries + n + i), a1);
        a2 = v16_fma(k, v16_load(queries + 2 * (size_t)n + i), a2);
        a3 = v16_fma(k, v16_load(queries + 3 * (size_t)n + i), a3);
    }
    if (i < n) {
        v16 k = load_half_first(key + i, n - i);
        a0 = v16_fma(k, load_first(queries + i, n - i), a0);
        a1 = v16_fma(k, load_first(queries + n + i, n - i), a1);
        a2 = v16_fma(k, load_first(queries + 2 * (size_t)n + i, n - i), a2);
        a3 = v16_fma(k, load_first(queries + 3 * (size_t)n + i, n - i), a3);
    }
    dots[0] = scale * v16_sum(a0);
    dots[stride] = scale * v16_sum(a1);
    dots[2 * stride] = scale * v16_sum(a2);
    dots[3 * stride] = scale * v16_sum(a3);
}

/* y[n] += sum over four rows of weights[row] * values[row][n] (fp16): y is loaded and stored once for the four. */
INLINE void add_weighted_4(const uint16_t *values, const float *weights, uint32_t n, float *y) {
    v16 w0 = v16_set1(weights[0]), w1 = v16_set1(weights[1]), w2 = v16_set1(weights[2]), w3 = v16_set1(weights[3]);
    const uint16_t *v1 = values + n, *v2 = v1 + n, *v3 = v2 + n;
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16) {
        v16 sum = v16_fma(w0, v16_load_half(values + i), v16_load(y + i));
        sum = v16_fma(w1, v16_load_half(v1 + i), sum);
        sum = v16_fma(w2, v16_load_half(v2 + i), sum);
        v16_store(y + i, v16_fma(w3, v16_load_half(v3 + i), sum));
    }
    if (i < n) {
        v16 sum = v16_fma(w0, load_half_first(values + i, n - i), load_first(y + i, n - i));
        sum = v16_fma(w1, load_half_first(v1 + i, n - i), sum);
        sum = v16_fma(w2, load_half_first(v2 + i, n - i), sum);
        store_first(y + i, v16_fma(w3, load_half_first(v3 + i, n - i), sum), n - i);
    }
}

/* y[n] += weight * values[n] (fp16). */
INLINE void add_weighted(const uint16_t *values, float weight, uint32_t n, float *y) {
    v16 w = v16_set1(weight);
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16)
        v16_store(y + i, v16_fma(w, v16_load_half(values + i), v16_load(y + i)));
    if (i < n)
        store_first(y + i, v16_fma(w, load_half_first(values + i, n - i), load_first(y + i, n - i)), n - i);
}

/* Asks for n values that lie ahead in the KV cache. */
INLINE void prefetch_half(const uint16_t *row, uint32_t n) {
    for (size_t i = 0; i < n * sizeof *row; i += 64) {
        __builtin_prefetch((const char *)row + ELUTQ_PREFETCH_FAR + i, 0, 2);
        __builtin_prefetch((const char *)row + ELUTQ_PREFETCH_NEAR + i, 0, 3);
    }
}

KERNEL void attend(const float *queries, uint32_t n_queries, const uint16_t *keys, const uint16_t *values, uint32_t n_keys,
                   uint32_t head_dim, float scale, float *scores, float *y) {
    for (uint32_t key = 0; key < n_keys; key++) {
        const uint16_t *row = keys + (size_t)key * head_dim;
        prefetch_half(row, head_dim);
        uint32_t q = 0;
        for (; q + 4 <= n_queries; q += 4)
            dot_half_4(row, queries + (size_t)q * head_dim, head_dim, scale, scores + (size_t)q * n_keys + key, n_keys);
        for (; q < n_queries; q++)
            scores[(size_t)q * n_keys + key] = scale * dot_half(row, queries + (size_t)q * head_dim, head_dim);
    }
    for (uint32_t q = 0; q < n_queries; q++)
        softmax(scores + (size_t)q * n_keys, n_keys);
    memset(y, 0, (size_t)n_queries * head_dim * sizeof *y);
    uint32_t key = 0;
    for (; key + 4 <= n_keys; key += 4) {
        const uint16_t *rows = values + (size_t)key * head_dim;
        prefetch_half(rows, 4 * head_dim);
        for (uint32_t q = 0; q < n_queries; q++)
            add_weighted_4(rows, scores + (size_t)q * n_keys + key, head_dim, y + (size_t)q * head_dim);
    }
    for (; key < n_keys; key++)
        for (uint32_t q = 0; q < n_queries; q++)
            add_weighted(values + (size_t)key * head_dim, scores[(size_t)q * n_keys + key], head_dim,
                         y + (size_t)q * head_dim);
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

/* The members of struct elutq_kernels that this file defines, for its initialiser. */
#define ELUTQ_FLOAT_KERNELS                                                                                                    \
    .build_tables = build_tables, .gemm_f16 = gemm_f16, .rms_scale = rms_scale, .scale_by = scale_by, .rope = rope,           \
    .swiglu = swiglu, .add = add, .to_f16 = to_f16, .attend = attend, .read_floats = read_floats

#endif
