/* Keys and values of a session's cache, copied out of it and into it. */
#include <math.h>
#include <string.h>

#include "session.h"

static int export_rows(const elutq_session *session, uint32_t first, uint32_t n_tokens, uint8_t *state) {
    const struct elutq_config *config = &session->model->config;
    if (first > session->position || n_tokens > session->position - first)
        return ELUTQ_ERROR_ARGUMENT;
    const size_t n_bytes = n_tokens * elutq_cache_row_bytes(session->cache_type, config->head_dim);
    for (uint32_t layer = 0; layer < config->n_layers; layer++)
        for (uint32_t part = 0; part < 2; part++)
            for (uint32_t head = 0; head < config->n_kv_heads; head++, state += n_bytes) {
                const uint8_t *rows = part == 0 ? session->keys : session->values;
                memcpy(state, rows + elutq_cache_offset(session, layer, head, first), n_bytes);
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

static int import_rows(elutq_session *session, const uint8_t *state, uint32_t n_tokens) {
    const struct elutq_config *config = &session->model->config;
    if (n_tokens > session->context_size - session->position)
        return ELUTQ_ERROR_CONTEXT;
    const size_t row_bytes = elutq_cache_row_bytes(session->cache_type, config->head_dim), n_bytes = n_tokens * row_bytes;
    const size_t n_rows = 2 * (size_t)config->n_layers * config->n_kv_heads * n_tokens;
    for (size_t row = 0; row < n_rows; row++)
        if (!row_is_finite(state + row * row_bytes, session->cache_type, config->head_dim))
            return ELUTQ_ERROR_FORMAT;
    for (uint32_t layer = 0; layer < config->n_layers; layer++)
        for (uint32_t part = 0; part < 2; part++)
            for (uint32_t head = 0; head < config->n_kv_heads; head++, state += n_bytes) {
                uint8_t *rows = part == 0 ? session->keys : session->values;
                memcpy(rows + elutq_cache_offset(session, layer, head, session->position), state, n_bytes);
            }
    session->position += n_tokens;
    return ELUTQ_OK;
}

int elutq_session_export(elutq_session *session, uint32_t first, uint32_t n_tokens, uint8_t *state) {
    if (!elutq_begin_call(session))
        return ELUTQ_ERROR_IN_USE;
    return elutq_end_call(session, export_rows(session, first, n_tokens, state));
}

int elutq_session_import(elutq_session *session, const uint8_t *state, uint32_t n_tokens) {
    if (!elutq_begin_call(session))
        return ELUTQ_ERROR_IN_USE;
    return elutq_end_call(session, import_rows(session, state, n_tokens));
}
