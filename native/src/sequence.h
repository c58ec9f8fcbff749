/* A sequence: the keys and values of one text, and how many tokens it has. It owns neither threads nor scratch. */
#ifndef ELUTQ_SEQUENCE_H
#define ELUTQ_SEQUENCE_H

#include "cache_row.h"
#include "in_use.h"
#include "model.h"

struct elutq_sequence {
    struct elutq_model *model; /* shared, and kept open */
    uint32_t context_size;
    enum elutq_cache_type cache_type;
    uint32_t position;      /* tokens that it holds */
    atomic_bool in_use;     /* a call is under way, or a pass that appends to it */
    uint8_t *keys, *values; /* rows of the cache [n_layers][n_kv_heads][context_size] */
    float *key_balance;     /* key_balance.h; NULL where keys are not rounded to int8 */
};

/* Bytes from the beginning of the keys, or of the values, to a head's row of a position; later positions' follow it. */
static inline size_t elutq_cache_offset(const struct elutq_sequence *sequence, uint32_t layer, uint32_t kv_head,
                                        uint32_t position) {
    const struct elutq_config *config = &sequence->model->config;
    const size_t row = ((size_t)layer * config->n_kv_heads + kv_head) * sequence->context_size + position;
    return row * elutq_cache_row_bytes(sequence->cache_type, config->head_dim);
}

#endif
