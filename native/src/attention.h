/*
 * Storing keys and values, and attention over them, once for every type of cache (stored_row.h). Part of float_kernels.h,
 * which includes it.
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

INLINE float exp_of(float x) {
    float first;
    store_first(&first, v16_exp(v16_set1(x)), 1);
    return first;
}

/* In place: scores[n], n > 0 -> exp(score - largest). */
INLINE struct elutq_weighing weigh(float *scores, uint32_t n) {
    v16 lanes = v16_set1(-INFINITY);
    const uint32_t whole = n & ~15u;
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
    return (struct elutq_weighing){largest, v16_sum(total)};
}

/* y[n] = y * factor + x * x_factor. */
INLINE void blend(float factor, const float *x, float x_factor, uint32_t n, float *y) {
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16)
        v16_store(y + i, v16_fma(v16_load(x + i), v16_set1(x_factor), v16_mul(v16_load(y + i), v16_set1(factor))));
    if (i < n)
        store_first(y + i,
                    v16_fma(load_first(x + i, n - i), v16_set1(x_factor), v16_mul(load_first(y + i, n - i), v16_set1(factor))),
                    n - i);
}

/* Source: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018). */
KERNEL void join_parts(const struct elutq_weighing *part_weighings, const float *part_y, uint32_t n, uint32_t head_dim,
                       struct elutq_weighing *weighings, float *y) {
    for (uint32_t i = 0; i < n; i++) {
        const struct elutq_weighing before = weighings[i], part = part_weighings[i];
        if (part.total == 0) /* its keys come after this row's token */
            continue;
        const float largest = part.largest > before.largest ? part.largest : before.largest;
        const float factor = exp_of(before.largest - largest), part_factor = exp_of(part.largest - largest);
        weighings[i] = (struct elutq_weighing){largest, fmaf(part.total, part_factor, before.total * factor)};
        blend(factor, part_y + (size_t)i * head_dim, part_factor, head_dim, y + (size_t)i * head_dim);
    }
}

KERNEL void finish_parts(const struct elutq_weighing *weighings, uint32_t n, uint32_t head_dim, float *y) {
    for (uint32_t i = 0; i < n; i++) {
        const v16 inverse = v16_set1(1.0f / weighings[i].total);
        float *row = y + (size_t)i * head_dim;
        uint32_t j = 0;
        for (; j + 16 <= head_dim; j += 16)
            v16_store(row + j, v16_mul(v16_load(row + j), inverse));
        if (j < head_dim)
            store_first(row + j, v16_mul(load_first(row + j, head_dim - j), inverse), head_dim - j);
    }
}

/*
 * Asks for what follows a piece of the rows before `end`. Behind them may lie pages that nothing was ever written to, and a
 * processor looks such a page up in vain each time that it is asked for.
 */
INLINE void ask_for_rows(const uint8_t *piece, size_t n_bytes, const uint8_t *end) {
    if (end - piece > ELUTQ_LINES_AHEAD * ELUTQ_LINE_BYTES)
        ask_ahead(piece, n_bytes);
}

/* Keys that the registers hold dot products of, with four queries each; with one query, four. */
#define KEYS_AT_A_TIME (ELUTQ_F16_TILE * ELUTQ_F16_TILE / 4)

/* sums[key * n_queries + q] += keys[key] * queries[q] over numbers i .. i + lanes - 1 of n, lanes at most sixteen. */
INLINE void add_dots(const uint8_t *keys, enum elutq_cache_type type, uint32_t n_keys, const float *queries,
                     uint32_t n_queries, uint32_t n, uint32_t i, uint32_t lanes, v16 *sums) {
    const size_t row_bytes = elutq_cache_row_bytes(type, n);
    v16 k[4];
    ELUTQ_UNROLL(4)
    for (uint32_t key = 0; key < n_keys; key++)
        k[key] = lanes == 16 ? load_stored(keys + key * row_bytes, type, i)
                             : load_stored_first(keys + key * row_bytes, type, i, lanes);
    ELUTQ_UNROLL(4)
    for (uint32_t q = 0; q < n_queries; q++) {
        v16 x = lanes == 16 ? v16_load(queries + (size_t)q * n + i) : load_first(queries + (size_t)q * n + i, lanes);
        ELUTQ_UNROLL(4)
        for (uint32_t key = 0; key < n_keys; key++)
            sums[key * n_queries + q] = v16_fma(k[key], x, sums[key * n_queries + q]);
    }
}

/*
 * dots[q * stride + key] = scale * keys[key][n] . queries[q][n], n_keys and n_queries constants of at most four. Each product
 * is summed in sixteen lanes, in the order of the numbers, whatever it is computed beside.
 */
INLINE void dot_keys(const uint8_t *keys, enum elutq_cache_type type, uint32_t n_keys, const float *queries,
                     uint32_t n_queries, uint32_t n, float scale, float *dots, size_t stride) {
    const size_t row_bytes = elutq_cache_row_bytes(type, n);
    const uint32_t n_dots = n_keys * n_queries;
    v16 sums[16];
    float whole[16];
    ELUTQ_UNROLL(16)
    for (uint32_t i = 0; i < n_dots; i++)
        sums[i] = v16_set1(0);
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16)
        add_dots(keys, type, n_keys, queries, n_queries, n, i, 16, sums);
    if (i < n)
        add_dots(keys, type, n_keys, queries, n_queries, n, i, n - i, sums);
    if (n_dots % 4 == 0)
        ELUTQ_UNROLL(4)
        for (uint32_t four = 0; four < n_dots; four += 4)
            v16_sum_4(sums + four, whole + four);
    else
        whole[0] = v16_sum(sums[0]);
    ELUTQ_UNROLL(4)
    for (uint32_t key = 0; key < n_keys; key++) {
        const float key_scale = scale * elutq_cache_row_scale(keys + key * row_bytes, type, n);
        ELUTQ_UNROLL(4)
        for (uint32_t q = 0; q < n_queries; q++)
            dots[q * stride + key] = key_scale * whole[key * n_queries + q];
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
        ELUTQ_UNROLL(4)
        for (uint32_t row = 0; row < n_rows; row++)
            sum = v16_fma(v16_set1(weights[row]), load_stored(rows + row * row_bytes, type, i), sum);
        v16_store(y + i, sum);
    }
    if (i < n) {
        v16 sum = load_first(y + i, n - i);
        ELUTQ_UNROLL(4)
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
        ELUTQ_UNROLL(4)
        for (uint32_t q = 0; q < 4; q++)
            ELUTQ_UNROLL(4)
            for (uint32_t j = 0; j < VALUE_LANES / 16; j++)
                sums[q][j] = v16_load(y + q * (size_t)n + i + 16 * j);
        for (uint32_t row = 0; row < n_rows; row++) {
            const uint8_t *at = values + row * row_bytes;
            if (row < n_following)
                ELUTQ_PREFETCH(at + i * row_bytes / n + VALUES_AT_A_TIME * row_bytes, 3);
            ELUTQ_UNROLL(4)
            for (uint32_t j = 0; j < VALUE_LANES / 16; j++) {
                v16 value = load_stored(at, type, i + 16 * j);
                ELUTQ_UNROLL(4)
                for (uint32_t q = 0; q < 4; q++)
                    sums[q][j] = v16_fma(v16_set1(weights[q * stride + row]), value, sums[q][j]);
            }
        }
        ELUTQ_UNROLL(4)
        for (uint32_t q = 0; q < 4; q++)
            ELUTQ_UNROLL(4)
            for (uint32_t j = 0; j < VALUE_LANES / 16; j++)
                v16_store(y + q * (size_t)n + i + 16 * j, sums[q][j]);
    }
    for (uint32_t row = 0; i < n && row < n_rows; row++)
        for (uint32_t q = 0; q < 4; q++)
            add_weighted(values + row * row_bytes, type, 1, weights + q * stride + row, i, n, y + q * (size_t)n);
}

/* scores[q][key] = scale * queries[q] . keys[key], scores a row of ELUTQ_ATTEND_STRIDE for each query. */
INLINE void score_keys(enum elutq_cache_type type, const float *queries, uint32_t n_rows, const uint8_t *keys, uint32_t n_keys,
                       const uint8_t *end, uint32_t head_dim, float scale, float *scores) {
    const size_t row_bytes = elutq_cache_row_bytes(type, head_dim);
    const uint32_t n_fours = n_rows & ~3u;
    for (uint32_t key = 0; key < n_keys; key += n_keys - key < 4 ? 1 : 4) {
        const uint8_t *rows = keys + key * row_bytes;
        const uint32_t n = n_keys - key < 4 ? 1 : 4;
        for (uint32_t i = 0; i < n; i++)
            ask_for_rows(rows + i * row_bytes, row_bytes, end);
        for (uint32_t q = 0; q < n_rows; q += q < n_fours ? 4 : 1) {
            float *dots = scores + (size_t)q * ELUTQ_ATTEND_STRIDE + key;
            const float *x = queries + (size_t)q * head_dim;
            if (q >= n_fours && n == 4)
                dot_keys(rows, type, 4, x, 1, head_dim, scale, dots, ELUTQ_ATTEND_STRIDE);
            else if (q >= n_fours)
                dot_keys(rows, type, 1, x, 1, head_dim, scale, dots, ELUTQ_ATTEND_STRIDE);
            else if (n == 4)
                for (uint32_t i = 0; i < 4; i += KEYS_AT_A_TIME)
                    dot_keys(rows + i * row_bytes, type, KEYS_AT_A_TIME, x, 4, head_dim, scale, dots + i, ELUTQ_ATTEND_STRIDE);
            else
                dot_keys(rows, type, 1, x, 4, head_dim, scale, dots, ELUTQ_ATTEND_STRIDE);
        }
    }
}

/* y[q] += sum over keys of weights[q][key] * values[key], weights as score_keys has scores. Asks for values before `end`. */
INLINE void add_values(enum elutq_cache_type type, float *weights, uint32_t n_rows, const uint8_t *values, uint32_t n_keys,
                       const uint8_t *end, uint32_t head_dim, float *y) {
    const size_t row_bytes = elutq_cache_row_bytes(type, head_dim), stride = ELUTQ_ATTEND_STRIDE;
    const uint32_t n_fours = n_rows & ~3u;
    scale_weights(values, type, n_keys, head_dim, n_rows, weights, stride);
    for (uint32_t key = 0; n_fours > 0 && key < n_keys; key += VALUES_AT_A_TIME) {
        const uint32_t left = n_keys - key, n = left < VALUES_AT_A_TIME ? left : VALUES_AT_A_TIME;
        const uint8_t *rows = values + key * row_bytes;
        const uint32_t following = (uint32_t)((size_t)(end - rows) / row_bytes) - n;
        for (uint32_t q = 0; q < n_fours; q += 4)
            add_weighted_4(rows, type, n, q == 0 ? following : 0, weights + q * stride + key, stride, head_dim,
                           y + (size_t)q * head_dim);
    }
    for (uint32_t key = 0; n_fours < n_rows && key < n_keys; key += 4) {
        const uint32_t n = n_keys - key < 4 ? n_keys - key : 4;
        const uint8_t *rows = values + key * row_bytes;
        ask_for_rows(rows, 4 * row_bytes, end);
        for (uint32_t q = n_fours; q < n_rows; q++) {
            if (n == 4)
                add_weighted(rows, type, 4, weights + q * stride + key, 0, head_dim, y + (size_t)q * head_dim);
            else
                add_weighted(rows, type, n, weights + q * stride + key, 0, head_dim, y + (size_t)q * head_dim);
        }
    }
}

/* Keys, and their values, that lie one behind the other, and where those end that follow them in this way. */
struct span {
    const uint8_t *keys, *values, *keys_end, *values_end;
    uint32_t n;
};

/* The first of n keys from key `first` on, as many as lie one behind the other: the ring cuts them once at most. */
INLINE struct span span_of(const struct elutq_ring *ring, uint32_t first, uint32_t n, size_t row_bytes) {
    const uint32_t before = ring->n_rows - ring->first, row = first < before ? ring->first + first : first - before;
    const uint32_t left = ring->n_keys - first, room = ring->n_rows - row, n_behind = left < room ? left : room;
    const uint8_t *keys = (const uint8_t *)ring->keys + row * row_bytes;
    const uint8_t *values = (const uint8_t *)ring->values + row * row_bytes;
    return (struct span){keys, values, keys + n_behind * row_bytes, values + n_behind * row_bytes, n < n_behind ? n : n_behind};
}

INLINE void attend(enum elutq_cache_type type, const float *queries, uint32_t n_tokens, uint32_t n_queries,
                   const struct elutq_ring *ring, uint32_t part, uint32_t head_dim, float scale, float softcap, float *scores,
                   struct elutq_weighing *weighings, float *y) {
    const size_t row_bytes = elutq_cache_row_bytes(type, head_dim);
    const uint32_t n_rows = n_tokens * n_queries, first = part * ELUTQ_ATTEND_KEYS, left = ring->n_keys - first;
    const uint32_t n = left < ELUTQ_ATTEND_KEYS ? left : ELUTQ_ATTEND_KEYS;
    struct span span;
    for (uint32_t key = 0; key < n; key += span.n) {
        span = span_of(ring, first + key, n - key, row_bytes);
        score_keys(type, queries, n_rows, span.keys, span.n, span.keys_end, head_dim, scale, scores + key);
    }
    for (uint32_t q = 0; q < n_rows; q++) {
        float *weights = scores + (size_t)q * ELUTQ_ATTEND_STRIDE;
        const uint32_t all = ring->n_keys - (n_tokens - 1 - q / n_queries); /* that this query sees, from the first */
        const uint32_t after = all > first ? all - first : 0, n_seen = after < n ? after : n;
        if (softcap != 0)
            soften(weights, n_seen, softcap);
        weighings[q] = n_seen > 0 ? weigh(weights, n_seen) : (struct elutq_weighing){-INFINITY, 0};
        memset(weights + n_seen, 0, (n - n_seen) * sizeof *weights);
    }
    memset(y, 0, (size_t)n_rows * head_dim * sizeof *y);
    for (uint32_t key = 0; key < n; key += span.n) {
        span = span_of(ring, first + key, n - key, row_bytes);
        add_values(type, scores + key, n_rows, span.values, span.n, span.values_end, head_dim, y);
    }
}

#define ATTEND(name, type)                                                                                                     \
    KERNEL void name(const float *queries, uint32_t n_tokens, uint32_t n_queries, const struct elutq_ring *ring,               \
                     uint32_t part, uint32_t head_dim, float scale, float softcap, float *scores,                              \
                     struct elutq_weighing *weighings, float *y) {                                                             \
        attend(type, queries, n_tokens, n_queries, ring, part, head_dim, scale, softcap, scores, weighings, y);                \
    }
ATTEND(attend_f16, ELUTQ_CACHE_F16)
ATTEND(attend_q8, ELUTQ_CACHE_Q8)
#undef ATTEND

#endif
