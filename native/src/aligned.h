/* Memory at the boundaries that kernels load from. */
#ifndef ELUTQ_ALIGNED_H
#define ELUTQ_ALIGNED_H

#include <stddef.h>
#include <stdint.h>

#include "compiler.h"
#include "os/os.h"

#define ELUTQ_ALIGNMENT 64

/* 64-byte aligned memory for n_items, at least one byte of it; NULL when there is none. elutq_free_aligned frees it. */
static inline void *elutq_allocate_aligned(uint64_t n_items, size_t item_bytes) {
    uint64_t n_bytes;
    if (ELUTQ_PRODUCT_OVERFLOWS(n_items, item_bytes, &n_bytes) || n_bytes > SIZE_MAX - ELUTQ_ALIGNMENT)
        return NULL;
    const uint64_t n_lines = n_bytes == 0 ? 1 : (n_bytes + ELUTQ_ALIGNMENT - 1) / ELUTQ_ALIGNMENT;
    return elutq_aligned_memory(ELUTQ_ALIGNMENT, n_lines * ELUTQ_ALIGNMENT);
}

#endif
