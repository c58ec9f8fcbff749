/* A sequence: the keys and values of one text, and how many tokens it has. It owns neither threads nor scratch. */
#ifndef ELUTQ_SEQUENCE_H
#define ELUTQ_SEQUENCE_H

#include "cache_row.h"
#include "in_use.h"
#include "model.h"

/*
 * A head of a layer has rows of the cache one behind the other: as many as the context has tokens, or in a layer that has a
 * window window_rows, a ring in which later positions take the rows of those that no token sees any more.
 */
struct elutq_sequence {
    struct elutq_model *model; /* shared, and kept open */
    uint32_t context_size;
    uint32_t window_rows; /* context_size where that is less, or no layer has a window */
    enum elutq_cache_type cache_type;
    uint32_t position;      /* tokens that it holds */
    uint32_t oldest;        /* rings have the rows of positions from here on; means nothing at position 0 */
    elutq_in_use in_use;    /* a call is under way, or a pass that appends to it */
    uint8_t *keys, *values; /* [n_layers][n_kv_heads][elutq_cache_rows] */
    float *key_balance;     /* key_balance.h; NULL where keys are not rounded to int8 */
};

/* Rows that a layer's heads have. */
static inline uint32_t elutq_cache_rows(const struct elutq_sequence *sequence, uint32_t layer) {
    return sequence->model->layers[layer].window != 0 ? sequence->window_rows : sequence->context_size;
}

/* The row of a position. */
static inline uint32_t elutq_cache_row(const struct elutq_sequence *sequence, uint32_t layer, uint32_t position) {
    return position % elutq_cache_rows(sequence, layer);
}

/* Bytes from the beginning of the keys, or of the values, to a row of a layer's head; the next rows follow it. */
static inline size_t elutq_cache_offset(const struct elutq_sequence *sequence, uint32_t layer, uint32_t kv_head, uint32_t row) {
    const struct elutq_config *config = &sequence->model->config;
    const uint32_t n_sliding = sequence->model->layers[layer].n_sliding_before;
    const size_t rows_before =
        (size_t)(layer - n_sliding) * sequence->context_size + (size_t)n_sliding * sequence->window_rows;
    const size_t rows = config->n_kv_heads * rows_before + (size_t)kv_head * elutq_cache_rows(sequence, layer) + row;
    return rows * elutq_cache_row_bytes(sequence->cache_type, config->head_dim);
}

/* Before keys and values of positions first .. end - 1 are written: rings lose what lies in their rows. */
static inline void elutq_overwrite(struct elutq_sequence *sequence, uint32_t first, uint32_t end) {
    const uint32_t oldest = end > sequence->window_rows ? end - sequence->window_rows : 0;
    if (first == 0 || oldest > sequence->oldest)
        sequence->oldest = oldest;
}

/* Whether what tokens at the position see is there. */
static inline bool elutq_can_go_on(const struct elutq_sequence *sequence, uint32_t position) {
    return position == 0 || position >= elutq_sequence_earliest(sequence);
}

#endif
