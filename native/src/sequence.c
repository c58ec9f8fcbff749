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

_Static_assert(ELUTQ_REWIND_TOKENS >= ELUTQ_PIECE_TOKENS, "a pass must not overwrite what its own tokens see");

static uint32_t window_rows(const struct elutq_config *config, uint32_t context_size) {
    const uint64_t most = (uint64_t)config->sliding_window + ELUTQ_REWIND_TOKENS;
    return config->n_sliding_layers > 0 && most < context_size ? (uint32_t)most : context_size;
}

/* Rows of all layers' keys, or values. */
static uint64_t count_rows(const struct elutq_config *config, uint32_t context_size) {
    const uint64_t n_sliding = config->n_sliding_layers, n_whole = config->n_layers - n_sliding;
    return config->n_kv_heads * (n_whole * context_size + n_sliding * window_rows(config, context_size));
}

uint64_t elutq_model_cache_bytes(const elutq_model *model, uint32_t context_size, enum elutq_cache_type cache_type) {
    return 2 * count_rows(&model->config, context_size) * elutq_cache_row_bytes(cache_type, model->config.head_dim);
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
    const uint64_t n_rows = count_rows(config, sequence->context_size);
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
    sequence->window_rows = window_rows(&model->config, context_size);
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

uint32_t elutq_sequence_oldest(const elutq_sequence *sequence) {
    return sequence->position == 0 ? 0 : sequence->oldest;
}

uint32_t elutq_sequence_earliest(const elutq_sequence *sequence) {
    const uint32_t oldest = elutq_sequence_oldest(sequence);
    return oldest == 0 ? 0 : oldest + sequence->model->config.sliding_window - 1;
}

int elutq_sequence_rewind(elutq_sequence *sequence, uint32_t position) {
    if (!elutq_begin_call(&sequence->in_use))
        return ELUTQ_ERROR_IN_USE;
    int status = ELUTQ_OK;
    if (position > sequence->position)
        status = ELUTQ_ERROR_ARGUMENT;
    else if (!elutq_can_go_on(sequence, position))
        status = ELUTQ_ERROR_OVERWRITTEN;
    else
        sequence->position = position;
    return elutq_end_call(&sequence->in_use, status);
}

/* Of n positions from `first` on, how many have rows one behind the other, from the first one's on. */
static uint32_t contiguous(const struct elutq_sequence *sequence, uint32_t layer, uint32_t first, uint32_t n) {
    const uint32_t left = elutq_cache_rows(sequence, layer) - elutq_cache_row(sequence, layer, first);
    return n < left ? n : left;
}

/* The first position from `first` on that a layer holds, or `end`. */
static uint32_t first_held(const elutq_sequence *sequence, uint32_t layer, uint32_t first, uint32_t end) {
    const uint32_t oldest = sequence->model->layers[layer].window != 0 ? elutq_sequence_oldest(sequence) : 0;
    return oldest <= first ? first : oldest < end ? oldest : end;
}

static int export_rows(const elutq_sequence *sequence, uint32_t first, uint32_t n_tokens, uint8_t *state, size_t n_bytes) {
    const struct elutq_config *config = &sequence->model->config;
    if (first > sequence->position || n_tokens > sequence->position - first)
        return ELUTQ_ERROR_ARGUMENT;
    const size_t row_bytes = elutq_cache_row_bytes(sequence->cache_type, config->head_dim);
    const uint32_t end = first + n_tokens;
    uint64_t needed = 0;
    for (uint32_t layer = 0; layer < config->n_layers; layer++)
        needed += 2 * (uint64_t)config->n_kv_heads * (end - first_held(sequence, layer, first, end)) * row_bytes;
    if (n_bytes != needed)
        return ELUTQ_ERROR_ARGUMENT;
    for (uint32_t layer = 0; layer < config->n_layers; layer++) {
        const uint32_t held = first_held(sequence, layer, first, end);
        for (uint32_t part = 0; part < 2; part++)
            for (uint32_t head = 0; head < config->n_kv_heads; head++)
                for (uint32_t at = held, n; at < end; at += n, state += n * row_bytes) {
                    const uint8_t *rows = part == 0 ? sequence->keys : sequence->values;
                    n = contiguous(sequence, layer, at, end - at);
                    memcpy(state, rows + elutq_cache_offset(sequence, layer, head, elutq_cache_row(sequence, layer, at)),
                           n * row_bytes);
                }
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

/* Rows of some positions of a layer from `first` to `end`, which a ring may be too small to hold all of. */
static const uint8_t *import_layer(elutq_sequence *sequence, uint32_t layer, uint32_t first, uint32_t end,
                                   const uint8_t *state) {
    const struct elutq_config *config = &sequence->model->config;
    const size_t row_bytes = elutq_cache_row_bytes(sequence->cache_type, config->head_dim);
    const uint32_t n_rows = elutq_cache_rows(sequence, layer), n_lost = end - first > n_rows ? end - first - n_rows : 0;
    for (uint32_t part = 0; part < 2; part++)
        for (uint32_t head = 0; head < config->n_kv_heads; head++) {
            state += n_lost * row_bytes;
            for (uint32_t at = first + n_lost, n; at < end; at += n, state += n * row_bytes) {
                uint8_t *rows = part == 0 ? sequence->keys : sequence->values;
                n = contiguous(sequence, layer, at, end - at);
                memcpy(rows + elutq_cache_offset(sequence, layer, head, elutq_cache_row(sequence, layer, at)), state,
                       n * row_bytes);
            }
        }
    return state;
}

static int import_rows(elutq_sequence *sequence, const uint8_t *state, uint32_t n_tokens, uint32_t n_recent) {
    const struct elutq_config *config = &sequence->model->config;
    if (n_recent > n_tokens)
        return ELUTQ_ERROR_ARGUMENT;
    if (n_tokens > sequence->context_size - sequence->position)
        return ELUTQ_ERROR_CONTEXT;
    const size_t row_bytes = elutq_cache_row_bytes(sequence->cache_type, config->head_dim);
    const size_t n_sliding = config->n_sliding_layers, n_whole = config->n_layers - n_sliding;
    const size_t n_rows = 2 * (size_t)config->n_kv_heads * (n_whole * n_tokens + n_sliding * n_recent);
    for (size_t row = 0; row < n_rows; row++)
        if (!row_is_finite(state + row * row_bytes, sequence->cache_type, config->head_dim))
            return ELUTQ_ERROR_FORMAT;
    const uint32_t first = sequence->position, end = first + n_tokens;
    elutq_overwrite(sequence, first, end);
    for (uint32_t layer = 0; layer < config->n_layers; layer++)
        state = import_layer(sequence, layer, sequence->model->layers[layer].window != 0 ? end - n_recent : first, end, state);
    if (n_sliding > 0 && n_recent < n_tokens && end - n_recent > sequence->oldest)
        sequence->oldest = end - n_recent;
    sequence->position = end;
    return ELUTQ_OK;
}

int elutq_sequence_export(elutq_sequence *sequence, uint32_t first, uint32_t n_tokens, uint8_t *state, size_t n_bytes) {
    if (!elutq_begin_call(&sequence->in_use))
        return ELUTQ_ERROR_IN_USE;
    return elutq_end_call(&sequence->in_use, export_rows(sequence, first, n_tokens, state, n_bytes));
}

int elutq_sequence_import(elutq_sequence *sequence, const uint8_t *state, uint32_t n_tokens, uint32_t n_recent) {
    if (!elutq_begin_call(&sequence->in_use))
        return ELUTQ_ERROR_IN_USE;
    return elutq_end_call(&sequence->in_use, import_rows(sequence, state, n_tokens, n_recent));
}
