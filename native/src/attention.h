/*
 * Storing keys and values, and attention over them, once for every type of cache (stored_row.h). Rows of one head lie one
 * behind the other. Part of float_kernels.h, which includes it.
 */
#ifndef ELUTQ_ATTENTION_H
#define ELUTQ_ATTENTION_H

KERNEL void store_f16(const float *x, uint32_t n, void *row) {
    uint16_t *y = row;
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16)
        v16_store_half(y + i, v16_load(x + i));
    if (i < n) {
        uint16_t lanes[16];
        v16_store_half(lanes, load_first(x + i, n - i));
        memcpy(y + i, lanes, (n - i) * sizeof *y);
    }
}

/* Each number is off by at most scale / 2, scale = largest magnitude / 127; the scale is NaN where a number is not finite. */
KERNEL void store_q8(const float *x, uint32_t n, void *row) {
    int8_t *y = row;
    const uint32_t whole = n & ~15u;
    v16 largest = v16_set1(0), nothing = v16_set1(0);
    for (uint32_t i = 0; i < n; i += 16) {
        v16 xi = i < whole ? v16_load(x + i) : load_first(x + i, n - i);
        largest = v16_max(v16_abs(xi), largest);
        nothing = v16_fma(xi, v16_set1(0), nothing);
    }
    const float magnitude = v16_largest(largest);
    const int scaled = magnitude > SMALLEST_SCALED;
    const v16 inverse = v16_set1(scaled ? 127.0f / magnitude : 0.0f);
    for (uint32_t i = 0; i < whole; i += 16)
        v16_store_i8(y + i, v16_mul(v16_load(x + i), inverse));
    if (whole < n) {
        int8_t lanes[16];
        v16_store_i8(lanes, v16_mul(load_first(x + whole, n - whole), inverse));
        memcpy(y + whole, lanes, n - whole);
    }
    const float scale = (scaled ? magnitude / 127.0f : 0.0f) + v16_sum(nothing);
    memcpy(y + n, &scale, sizeof scale);
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

/*
 * Asks for what follows a piece of the rows before `end`. Behind them may lie pages that nothing was ever written to, and a
 * processor looks such a page up in vain each time that it is asked for.
 */
INLINE void ask_for_rows(const uint8_t *piece, size_t n_bytes, const uint8_t *end) {
    if (end - piece > ELUTQ_LINES_AHEAD * ELUTQ_LINE_BYTES)
        ask_ahead(piece, n_bytes);
}

/* Keys that the registers hold dot products of, with four queries each. */
#define KEYS_AT_A_TIME (ELUTQ_F16_TILE * ELUTQ_F16_TILE / 4)

/* sums[key][q] += keys[key] * queries[q] over numbers i .. i + lanes - 1 of n, lanes at most sixteen. */
INLINE void add_dots(const uint8_t *keys, enum elutq_cache_type type, uint32_t n_keys, const float *queries, uint32_t n,
                     uint32_t i, uint32_t lanes, v16 (*sums)[4]) {
    const size_t row_bytes = elutq_cache_row_bytes(type, n);
    v16 k[KEYS_AT_A_TIME];
#pragma GCC unroll 4
    for (uint32_t key = 0; key < n_keys; key++)
        k[key] = lanes == 16 ? load_stored(keys + key * row_bytes, type, i)
                             : load_stored_first(keys + key * row_bytes, type, i, lanes);
#pragma GCC unroll 4
    for (uint32_t q = 0; q < 4; q++) {
        v16 x = lanes == 16 ? v16_load(queries + (size_t)q * n + i) : load_first(queries + (size_t)q * n + i, lanes);
#pragma GCC unroll 4
        for (uint32_t key = 0; key < n_keys; key++)
            sums[key][q] = v16_fma(k[key], x, sums[key][q]);
    }
}

/* dots[q * stride + key] = scale * keys[key][n] . queries[q][n] for n_keys keys and four queries. */
INLINE void dot_keys_4(const uint8_t *keys, enum elutq_cache_type type, uint32_t n_keys, const float *queries, uint32_t n,
                       float scale, float *dots, size_t stride) {
    const size_t row_bytes = elutq_cache_row_bytes(type, n);
    v16 sums[KEYS_AT_A_TIME][4];
#pragma GCC unroll 4
    for (uint32_t key = 0; key < n_keys; key++)
#pragma GCC unroll 4
        for (uint32_t q = 0; q < 4; q++)
            sums[key][q] = v16_set1(0);
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16)
        add_dots(keys, type, n_keys, queries, n, i, 16, sums);
    if (i < n)
        add_dots(keys, type, n_keys, queries, n, i, n - i, sums);
#pragma GCC unroll 4
    for (uint32_t key = 0; key < n_keys; key++) {
        const float key_scale = scale * elutq_cache_row_scale(keys + key * row_bytes, type, n);
        float whole[4];
        v16_sum_4(sums[key], whole);
#pragma GCC unroll 4
        for (uint32_t q = 0; q < 4; q++)
            dots[q * stride + key] = key_scale * whole[q];
    }
}

/* weights[q * stride + row] *= the row's scale, so that sums can take its numbers as they are stored. */
INLINE void scale_weights(const uint8_t *rows, enum elutq_cache_type type, uint32_t n_rows, uint32_t n, uint32_t n_queries,
                          float *weights, size_t stride) {
    if (type == ELUTQ_CACHE_F16)
        return;
    for (uint32_t row = 0; row < n_rows; row++) {
        const float scale = elutq_cache_row_scale(rows + row * elutq_cache_row_bytes(type, n), type, n);
        for (uint32_t q = 0; q < n_queries; q++)
            weights[q * stride + row] *= scale;
    }
}

/* y[i .. n) += sum over n_rows rows of weights[row] * rows[row][i .. n): y is loaded and stored once for all of them. */
INLINE void add_weighted(const uint8_t *rows, enum elutq_cache_type type, uint32_t n_rows, const float *weights, uint32_t i,
                         uint32_t n, float *y) {
    const size_t row_bytes = elutq_cache_row_bytes(type, n);
    for (; i + 16 <= n; i += 16) {
        v16 sum = v16_load(y + i);
#pragma GCC unroll 4
        for (uint32_t row = 0; row < n_rows; row++)
            sum = v16_fma(v16_set1(weights[row]), load_stored(rows + row * row_bytes, type, i), sum);
        v16_store(y + i, sum);
    }
    if (i < n) {
        v16 sum = load_first(y + i, n - i);
#pragma GCC unroll 4
        for (uint32_t row = 0; row < n_rows; row++)
            sum = v16_fma(v16_set1(weights[row]), load_stored_first(rows + row * row_bytes, type, i, n - i), sum);
        store_first(y + i, sum, n - i);
    }
}

/* Keys whose values stay in L1 while four queries take them up, part after part. */
#define VALUES_AT_A_TIME 64

/* Sixteen lanes times as many as the registers hold the sums of, for four queries. */
#define VALUE_LANES (8 * ELUTQ_F16_TILE)

/*
 * y[q * n] += sum over rows of weights[q * stride + row] * values[row][n] for four queries, so that a value is converted
 * once for all. Asks for the first n_following of the rows behind these.
 */
INLINE void add_weighted_4(const uint8_t *values, enum elutq_cache_type type, uint32_t n_rows, uint32_t n_following,
                           const float *weights, size_t stride, uint32_t n, float *y) {
    const size_t row_bytes = elutq_cache_row_bytes(type, n);
    uint32_t i = 0;
    for (; i + VALUE_LANES <= n; i += VALUE_LANES) {
        v16 sums[4][VALUE_LANES / 16];
#pragma GCC unroll 4
        for (uint32_t q = 0; q < 4; q++)
#pragma GCC unroll 4
            for (uint32_t j = 0; j < VALUE_LANES / 16; j++)
                sums[q][j] = v16_load(y + q * (size_t)n + i + 16 * j);
        for (uint32_t row = 0; row < n_rows; row++) {
            const uint8_t *at = values + row * row_bytes;
            if (row < n_following)
                __builtin_prefetch(at + i * row_bytes / n + VALUES_AT_A_TIME * row_bytes, 0, 3);
#pragma GCC unroll 4
            for (uint32_t j = 0; j < VALUE_LANES / 16; j++) {
                v16 value = load_stored(at, type, i + 16 * j);
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
            add_weighted(values + row * row_bytes, type, 1, weights + q * stride + row, i, n, y + q * (size_t)n);
}

INLINE void attend(enum elutq_cache_type type, const float *queries, uint32_t n_tokens, uint32_t n_queries,
                   const uint8_t *keys, const uint8_t *values, uint32_t n_keys, uint32_t head_dim, float scale, float *scores,
                   float *y) {
    const size_t row_bytes = elutq_cache_row_bytes(type, head_dim);
    const uint32_t n_rows = n_tokens * n_queries;
    const uint32_t n_fours = n_rows & ~3u, n_whole = n_keys - n_keys % KEYS_AT_A_TIME;
    for (uint32_t key = 0; key < n_keys; key += key < n_whole ? KEYS_AT_A_TIME : 1) {
        const uint8_t *rows = keys + key * row_bytes;
        const uint32_t n = key < n_whole ? KEYS_AT_A_TIME : 1;
        for (uint32_t q = 0; q < n_fours; q += 4) {
            float *dots = scores + (size_t)q * n_keys + key;
            if (key < n_whole)
                dot_keys_4(rows, type, KEYS_AT_A_TIME, queries + (size_t)q * head_dim, head_dim, scale, dots, n_keys);
            else
                dot_keys_4(rows, type, 1, queries + (size_t)q * head_dim, head_dim, scale, dots, n_keys);
        }
        for (uint32_t i = 0; i < n; i++) {
            const uint8_t *row = rows + i * row_bytes;
            ask_for_rows(row, row_bytes, keys + n_keys * row_bytes);
            for (uint32_t q = n_fours; q < n_rows; q++)
                scores[(size_t)q * n_keys + key + i] = scale * elutq_cache_row_scale(row, type, head_dim) *
                                                       dot_stored(row, type, queries + (size_t)q * head_dim, head_dim);
        }
    }
    for (uint32_t q = 0; q < n_rows; q++) {
        const uint32_t unseen = n_tokens - 1 - q / n_queries;
        softmax(scores + (size_t)q * n_keys, n_keys - unseen);
        memset(scores + (size_t)(q + 1) * n_keys - unseen, 0, unseen * sizeof *scores);
    }
    memset(y, 0, (size_t)n_rows * head_dim * sizeof *y);
    for (uint32_t key = 0; n_fours > 0 && key < n_keys; key += VALUES_AT_A_TIME) {
        const uint32_t left = n_keys - key, n = left < VALUES_AT_A_TIME ? left : VALUES_AT_A_TIME;
        const uint8_t *rows = values + key * row_bytes;
        scale_weights(rows, type, n, head_dim, n_fours, scores + key, n_keys);
        for (uint32_t q = 0; q < n_fours; q += 4)
            add_weighted_4(rows, type, n, q == 0 ? left - n : 0, scores + (size_t)q * n_keys + key, n_keys, head_dim,
                           y + (size_t)q * head_dim);
    }
    float *last_scores = scores + (size_t)n_fours * n_keys, *last_y = y + (size_t)n_fours * head_dim;
    const uint32_t n_last = n_rows - n_fours;
    for (uint32_t key = 0; n_last > 0 && key < n_keys; key += 4) {
        const uint32_t n = n_keys - key < 4 ? n_keys - key : 4;
        const uint8_t *rows = values + key * row_bytes;
        ask_for_rows(rows, 4 * row_bytes, values + n_keys * row_bytes);
        scale_weights(rows, type, n, head_dim, n_last, last_scores + key, n_keys);
        for (uint32_t q = 0; q < n_last; q++) {
            const float *weights = last_scores + (size_t)q * n_keys + key;
            if (n == 4)
                add_weighted(rows, type, 4, weights, 0, head_dim, last_y + (size_t)q * head_dim);
            else
                add_weighted(rows, type, n, weights, 0, head_dim, last_y + (size_t)q * head_dim);
        }
    }
}

KERNEL void attend_f16(const float *queries, uint32_t n_tokens, uint32_t n_queries, const void *keys, const void *values,
                       uint32_t n_keys, uint32_t head_dim, float scale, float *scores, float *y) {
    attend(ELUTQ_CACHE_F16, queries, n_tokens, n_queries, keys, values, n_keys, head_dim, scale, scores, y);
}

KERNEL void attend_q8(const float *queries, uint32_t n_tokens, uint32_t n_queries, const void *keys, const void *values,
                      uint32_t n_keys, uint32_t head_dim, float scale, float *scores, float *y) {
    attend(ELUTQ_CACHE_Q8, queries, n_tokens, n_queries, keys, values, n_keys, head_dim, scale, scores, y);
}

#endif
