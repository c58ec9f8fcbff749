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

KERNEL void attend(const float *queries, uint32_t n_tokens, uint32_t n_queries, const uint16_t *keys, const uint16_t *values,
                   uint32_t n_keys, uint32_t head_dim, float scale, float *scores, float *y) {
    const uint32_t n_rows = n_tokens * n_queries;
    for (uint32_t key = 0; key < n_keys; key++) {
        const uint16_t *row = keys + (size_t)key * head_dim;
        prefetch_half(row, head_dim);
        uint32_t q = 0;
        for (; q + 4 <= n_rows; q += 4)
            dot_half_4(row, queries + (size_t)q * head_dim, head_dim, scale, scores + (size_t)q * n_keys + key, n_keys);
        for (; q < n_rows; q++)
            scores[(size_t)q * n_keys + key] = scale * dot_half(row, queries + (size_t)q * head_dim, head_dim);
    }
    for (uint32_t q = 0; q < n_rows; q++) {
        const uint32_t unseen = n_tokens - 1 - q / n_queries;
        softmax(scores + (size_t)q * n_keys, n_keys - unseen);
        memset(scores + (size_t)(q + 1) * n_keys - unseen, 0, unseen * sizeof *scores);
    }
    memset(y, 0, (size_t)n_rows * head_dim * sizeof *y);
    uint32_t key = 0;
    for (; key + 4 <= n_keys; key += 4) {
        const uint16_t *rows = values + (size_t)key * head_dim;
        prefetch_half(rows, 4 * head_dim);
        for (uint32_t q = 0; q < n_rows; q++)
            add_weighted_4(rows, scores + (size_t)q * n_keys + key, head_dim, y + (size_t)q * head_dim);
    }
    for (; key < n_keys; key++)
        for (uint32_t q = 0; q < n_rows; q++)
            add_weighted(values + (size_t)key * head_dim, scores[(size_t)q * n_keys + key], head_dim,
                         y + (size_t)q * head_dim);
}

#endif
