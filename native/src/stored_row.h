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

#endif
