#include "sequence.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "aligned.h"
#include "key_balance.h"

uint64_t elutq_model_kv_bytes(const elutq_model *model, enum elutq_cache_type cache_type) {
    const struct elutq_config *config = &model->config;
    return 2ull * config->n_layers * config->n_kv_heads * elutq_cache_row_bytes(cache_type, config->head_dim);
}

/* Only where keys are rounded to int8: fp16 has room for outliers. */
static bool balance_keys(struct elutq_sequence *sequence) {
    const struct elutq_config *config = &sequence->model->config;
    if (sequence->cache_type != ELUTQ_CACHE_Q8)
        return true;
    const uint64_t n_rows = 2ull * config->n_layers * config->n_kv_heads;
    sequence->key_balance = elutq_allocate_aligned(n_rows * config->head_dim, sizeof(float));
    if (sequence->key_balance != NULL)
        elutq_key_balance(sequence->model, sequence->key_balance);
    return sequence->key_balance != NULL;
}

static bool allocate_cache(struct elutq_sequence *sequence) {
    const struct elutq_config *config = &sequence->model->config;
    const uint64_t n_rows = (uint64_t)config->n_layers * config->n_kv_heads * sequence->context_size;
    const size_t row_bytes = elutq_cache_row_bytes(sequence->cache_type, config->head_dim);
    sequence->keys = elutq_allocate_aligned(n_rows, row_bytes);
    sequence->values = elutq_allocate_aligned(n_rows, row_bytes);
    return sequence->keys != NULL && sequence->values != NULL && balance_keys(sequence);
}

int elutq_sequence_create(elutq_model *model, uint32_t context_size, enum elutq_cache_type cache_type, elutq_sequence **out,
                          char *error, size_t error_bytes) {
    const struct elutq_error report = {error, error_bytes};
    *out = NULL;
    if (context_size < 1 || context_size > model->config.context_length)
        return elutq_fail(&report, ELUTQ_ERROR_ARGUMENT, "a context of %u tokens is not between 1 and the model's %u",
                          context_size, model->config.context_length);
    if (cache_type != ELUTQ_CACHE_F16 && cache_type != ELUTQ_CACHE_Q8)
        return elutq_fail(&report, ELUTQ_ERROR_ARGUMENT, "there is no cache of type %d", (int)cache_type);
    struct elutq_sequence *sequence = calloc(1, sizeof *sequence);
    if (sequence == NULL)
        return elutq_fail(&report, ELUTQ_ERROR_MEMORY, "out of memory");
    atomic_fetch_add(&model->n_owners, 1);
    sequence->model = model;
    sequence->context_size = context_size;
    sequence->cache_type = cache_type;
    if (!allocate_cache(sequence)) {
        elutq_sequence_destroy(sequence);
        return elutq_fail(&report, ELUTQ_ERROR_MEMORY, "out of memory for a context of %u tokens; ask for a smaller one",
                          context_size);
    }
    *out = sequence;
    return ELUTQ_OK;
}

int elutq_sequence_destroy(elutq_sequence *sequence) {
    if (sequence == NULL)
        return ELUTQ_OK;
    if (!elutq_begin_call(&sequence->in_use))
        return ELUTQ_ERROR_IN_USE;
    elutq_free_aligned(sequence->keys);
    elutq_free_aligned(sequence->values);
    elutq_free_aligned(sequence->key_balance);
    elutq_model_close(sequence->model);
    free(sequence);
    return ELUTQ_OK;
}

uint32_t elutq_sequence_position(const elutq_sequence *sequence) {
    return sequence->position;
}

int elutq_sequence_rewind(elutq_sequence *sequence, uint32_t position) {
    if (!elutq_begin_call(&sequence->in_use))
        return ELUTQ_ERROR_IN_USE;
    if (position > sequence->position)
        return elutq_end_call(&sequence->in_use, ELUTQ_ERROR_ARGUMENT);
    sequence->position = position;
    return elutq_end_call(&sequence->in_use, ELUTQ_OK);
}

static int export_rows(const elutq_sequence *sequence, uint32_t first, uint32_t n_tokens, uint8_t *state) {
    const struct elutq_config *config = &sequence->model->config;
    if (first > sequence->position || n_tokens > sequence->position - first)
        return ELUTQ_ERROR_ARGUMENT;
    const size_t n_bytes = n_tokens * elutq_cache_row_bytes(sequence->cache_type, config->head_dim);
    for (uint32_t layer = 0; layer < config->n_layers; layer++)
        for (uint32_t part = 0; part < 2; part++)
            for (uint32_t head = 0; head < config->n_kv_heads; head++, state += n_bytes) {
                const uint8_t *rows = part == 0 ? sequence->keys : sequence->values;
                memcpy(state, rows + elutq_cache_offset(sequence, layer, head, first), n_bytes);
            }
    return ELUTQ_OK;
}

/* Whether every number of a row of the cache is finite. */
static bool row_is_finite(const uint8_t *row, enum elutq_cache_type type, uint32_t head_dim) {
    if (type == ELUTQ_CACHE_Q8)
        return isfinite(elutq_cache_row_scale(row, type, head_dim));
    uint16_t half;
    for (uint32_t i = 0; i < head_dim; i++) {
        memcpy(&half, row + i * sizeof half, sizeof half);
        if ((half & 0x7C00) == 0x7C00)
            return false;
    }
    return true;
}

static int import_rows(elutq_sequence *sequence, const uint8_t *state, uint32_t n_tokens) {
    const struct elutq_config *config = &sequence->model->config;
    if (n_tokens > sequence->context_size - sequence->position)
        return ELUTQ_ERROR_CONTEXT;
    const size_t row_bytes = elutq_cache_row_bytes(sequence->cache_type, config->head_dim), n_bytes = n_tokens * row_bytes;
    const size_t n_rows = 2 * (size_t)config->n_layers * config->n_kv_heads * n_tokens;
    for (size_t row = 0; row < n_rows; row++)
        if (!row_is_finite(state + row * row_bytes, sequence->cache_type, config->head_dim))
            return ELUTQ_ERROR_FORMAT;
    for (uint32_t layer = 0; layer < config->n_layers; layer++)
        for (uint32_t part = 0; part < 2; part++)
            for (uint32_t head = 0; head < config->n_kv_heads; head++, state += n_bytes) {
                uint8_t *rows = part == 0 ? sequence->keys : sequence->values;
                memcpy(rows + elutq_cache_offset(sequence, layer, head, sequence->position), state, n_bytes);
            }
    sequence->position += n_tokens;
    return ELUTQ_OK;
}

int elutq_sequence_export(elutq_sequence *sequence, uint32_t first, uint32_t n_tokens, uint8_t *state) {
    if (!elutq_begin_call(&sequence->in_use))
        return ELUTQ_ERROR_IN_USE;
    return elutq_end_call(&sequence->in_use, export_rows(sequence, first, n_tokens, state));
}

int elutq_sequence_import(elutq_sequence *sequence, const uint8_t *state, uint32_t n_tokens) {
    if (!elutq_begin_call(&sequence->in_use))
        return ELUTQ_ERROR_IN_USE;
    return elutq_end_call(&sequence->in_use, import_rows(sequence, state, n_tokens));
}
