/* Where things lie in a row of the KV cache: one head's key or value at one position (elutq_cache_kernels). */
#ifndef ELUTQ_CACHE_ROW_H
#define ELUTQ_CACHE_ROW_H

#include <string.h>

#include "elutq_kernels.h"

static inline size_t elutq_cache_row_bytes(enum elutq_cache_type type, uint32_t head_dim) {
    return type == ELUTQ_CACHE_F16 ? head_dim * sizeof(uint16_t) : head_dim + sizeof(float);
}

/* What the numbers of a row are multiples of. */
static inline float elutq_cache_row_scale(const void *row, enum elutq_cache_type type, uint32_t head_dim) {
    float scale = 1.0f;
    if (type == ELUTQ_CACHE_Q8)
        memcpy(&scale, (const int8_t *)row + head_dim, sizeof scale);
    return scale;
}

#endif
