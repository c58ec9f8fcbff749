/* Products with fp16 matrices, and attention over the fp16 KV cache. Part of float_kernels.h, which includes it. */
#ifndef ELUTQ_HALF_KERNELS_H
#define ELUTQ_HALF_KERNELS_H

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

/* Keys that the registers hold dot products of, with four queries each. */
#define KEYS_AT_A_TIME (ELUTQ_F16_TILE * ELUTQ_F16_TILE / 4)

/* sums[key][q] += keys[key] * queries[q] over the first `lanes` of sixteen lanes; rows are n values apart. */
INLINE void add_dots(const uint16_t *keys, uint32_t n_keys, const float *queries, uint32_t n, uint32_t lanes, v16 (*sums)[4]) {
    v16 k[KEYS_AT_A_TIME];
#pragma GCC unroll 4
    for (uint32_t key = 0; key < n_keys; key++)
        k[key] = lanes == 16 ? v16_load_half(keys + (size_t)key * n) : load_half_first(keys + (size_t)key * n, lanes);
#pragma GCC unroll 4
    for (uint32_t q = 0; q < 4; q++) {
        v16 x = lanes == 16 ? v16_load(queries + (size_t)q * n) : load_first(queries + (size_t)q * n, lanes);
#pragma GCC unroll 4
        for (uint32_t key = 0; key < n_keys; key++)
            sums[key][q] = v16_fma(k[key], x, sums[key][q]);
    }
}

/* dots[q * stride + key] = scale * keys[key][n] . queries[q][n] for n_keys keys and four queries. */
INLINE void dot_half_4(const uint16_t *keys, uint32_t n_keys, const float *queries, uint32_t n, float scale, float *dots,
                       size_t stride) {
    v16 sums[KEYS_AT_A_TIME][4];
#pragma GCC unroll 4
    for (uint32_t key = 0; key < n_keys; key++)
#pragma GCC unroll 4
        for (uint32_t q = 0; q < 4; q++)
            sums[key][q] = v16_set1(0);
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16)
        add_dots(keys + i, n_keys, queries + i, n, 16, sums);
    if (i < n)
        add_dots(keys + i, n_keys, queries + i, n, n - i, sums);
    float whole[KEYS_AT_A_TIME][4];
#pragma GCC unroll 4
    for (uint32_t key = 0; key < n_keys; key++)
        v16_sum_4(sums[key], whole[key]);
#pragma GCC unroll 4
    for (uint32_t q = 0; q < 4; q++)
#pragma GCC unroll 4
        for (uint32_t key = 0; key < n_keys; key++)
            dots[q * stride + key] = scale * whole[key][q];
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

/* Keys whose values stay in L1 while four queries take them up, part after part. */
#define VALUES_AT_A_TIME 64

/* Sixteen lanes times as many as the registers hold the sums of, for four queries. */
#define VALUE_LANES (8 * ELUTQ_F16_TILE)

/*
 * y[q * n] += sum over rows of weights[q * stride + row] * values[row][n] (fp16) for four queries, so that a value is
 * converted once for all. Asks for the rows that follow.
 */
INLINE void add_weighted_rows(const uint16_t *values, uint32_t n_rows, const float *weights, size_t stride, uint32_t n,
                              float *y) {
    uint32_t i = 0;
    for (; i + VALUE_LANES <= n; i += VALUE_LANES) {
        v16 sums[4][VALUE_LANES / 16];
#pragma GCC unroll 4
        for (uint32_t q = 0; q < 4; q++)
#pragma GCC unroll 4
            for (uint32_t j = 0; j < VALUE_LANES / 16; j++)
                sums[q][j] = v16_load(y + q * (size_t)n + i + 16 * j);
        for (uint32_t row = 0; row < n_rows; row++) {
            const uint16_t *at = values + (size_t)row * n + i;
            __builtin_prefetch(at + (size_t)VALUES_AT_A_TIME * n, 0, 3);
#pragma GCC unroll 4
            for (uint32_t j = 0; j < VALUE_LANES / 16; j++) {
                v16 value = v16_load_half(at + 16 * j);
#pragma GCC unroll 4
                for (uint32_t q = 0; q < 4; q++)
                    sums[q][j] = v16_fma(v16_set1(weights[q * stride + row]), value, sums[q][j]);
            }
        }
#pragma GCC unroll 4
        for (uint32_t q = 0; q < 4; q++)
#pragma GCC unroll 4
            for (uint32_t j = 0; j < VALUE_LANES / 16; j++)
                v16_store(y + q * (size_t)n + i + 16 * j, sums[q][j]);
    }
    for (uint32_t row = 0; i < n && row < n_rows; row++)
        for (uint32_t q = 0; q < 4; q++)
            add_weighted(values + (size_t)row * n + i, weights[q * stride + row], n - i, y + q * (size_t)n + i);
}

KERNEL void attend(const float *queries, uint32_t n_tokens, uint32_t n_queries, const uint16_t *keys, const uint16_t *values,
                   uint32_t n_keys, uint32_t head_dim, float scale, float *scores, float *y) {
    const uint32_t n_rows = n_tokens * n_queries;
    const uint32_t n_fours = n_rows & ~3u, n_whole = n_keys - n_keys % KEYS_AT_A_TIME;
    for (uint32_t key = 0; key < n_keys; key += key < n_whole ? KEYS_AT_A_TIME : 1) {
        const uint16_t *rows = keys + (size_t)key * head_dim;
        const uint32_t n = key < n_whole ? KEYS_AT_A_TIME : 1;
        prefetch_ahead(rows, n * head_dim * sizeof *rows);
        for (uint32_t q = 0; q < n_fours; q += 4) {
            float *dots = scores + (size_t)q * n_keys + key;
            if (key < n_whole)
                dot_half_4(rows, KEYS_AT_A_TIME, queries + (size_t)q * head_dim, head_dim, scale, dots, n_keys);
            else
                dot_half_4(rows, 1, queries + (size_t)q * head_dim, head_dim, scale, dots, n_keys);
        }
        for (uint32_t q = n_fours; q < n_rows; q++)
            for (uint32_t i = 0; i < n; i++)
                scores[(size_t)q * n_keys + key + i] =
                    scale * dot_half(rows + (size_t)i * head_dim, queries + (size_t)q * head_dim, head_dim);
    }
    for (uint32_t q = 0; q < n_rows; q++) {
        const uint32_t unseen = n_tokens - 1 - q / n_queries;
        softmax(scores + (size_t)q * n_keys, n_keys - unseen);
        memset(scores + (size_t)(q + 1) * n_keys - unseen, 0, unseen * sizeof *scores);
    }
    memset(y, 0, (size_t)n_rows * head_dim * sizeof *y);
    for (uint32_t key = 0; n_fours > 0 && key < n_keys; key += VALUES_AT_A_TIME) {
        const uint32_t left = n_keys - key, n = left < VALUES_AT_A_TIME ? left : VALUES_AT_A_TIME;
        for (uint32_t q = 0; q < n_fours; q += 4)
            add_weighted_rows(values + (size_t)key * head_dim, n, scores + (size_t)q * n_keys + key, n_keys, head_dim,
                              y + (size_t)q * head_dim);
    }
    uint32_t key = 0;
    for (; n_fours < n_rows && key + 4 <= n_keys; key += 4) {
        const uint16_t *rows = values + (size_t)key * head_dim;
        prefetch_ahead(rows, 4 * head_dim * sizeof *rows);
        for (uint32_t q = n_fours; q < n_rows; q++)
            add_weighted_4(rows, scores + (size_t)q * n_keys + key, head_dim, y + (size_t)q * head_dim);
    }
    for (; key < n_keys; key++)
        for (uint32_t q = n_fours; q < n_rows; q++)
            add_weighted(values + (size_t)key * head_dim, scores[(size_t)q * n_keys + key], head_dim,
                         y + (size_t)q * head_dim);
}

#endif
