/*
 * Rows of numbers as a file or the KV cache stores them, read as floats. `type` is a constant wherever these functions are
 * inlined, so that each use is compiled for its type. Part of float_kernels.h, which includes it.
 */
#ifndef ELUTQ_STORED_ROW_H
#define ELUTQ_STORED_ROW_H

#include "cache_row.h"

/* Sixteen numbers of a row from number i on, its scale left out. */
INLINE v16 load_stored(const void *row, enum elutq_cache_type type, uint32_t i) {
    return type == ELUTQ_CACHE_F16 ? v16_load_half((const uint16_t *)row + i) : v16_load_i8((const int8_t *)row + i);
}

/* The same, but the first n < 16 of them and then zeros. */
INLINE v16 load_stored_first(const void *row, enum elutq_cache_type type, uint32_t i, uint32_t n) {
    if (type == ELUTQ_CACHE_F16) {
        uint16_t lanes[16] = {0};
        memcpy(lanes, (const uint16_t *)row + i, n * sizeof *lanes);
        return v16_load_half(lanes);
    }
    int8_t lanes[16] = {0};
    memcpy(lanes, (const int8_t *)row + i, n);
    return v16_load_i8(lanes);
}

/* sum of row[n] * x[n], the row's scale left out, in four times sixteen lanes to hide the latency of fma. */
INLINE float dot_stored(const void *row, enum elutq_cache_type type, const float *x, uint32_t n) {
    v16 a0 = v16_set1(0), a1 = a0, a2 = a0, a3 = a0;
    uint32_t i = 0;
    for (; i + 64 <= n; i += 64) {
        a0 = v16_fma(load_stored(row, type, i), v16_load(x + i), a0);
        a1 = v16_fma(load_stored(row, type, i + 16), v16_load(x + i + 16), a1);
        a2 = v16_fma(load_stored(row, type, i + 32), v16_load(x + i + 32), a2);
        a3 = v16_fma(load_stored(row, type, i + 48), v16_load(x + i + 48), a3);
    }
    for (; i + 16 <= n; i += 16)
        a0 = v16_fma(load_stored(row, type, i), v16_load(x + i), a0);
    if (i < n)
        a1 = v16_fma(load_stored_first(row, type, i, n - i), load_first(x + i, n - i), a1);
    return v16_sum(v16_add(v16_add(a0, a1), v16_add(a2, a3)));
}

#endif
