#include "session.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "damage.h"
#include "key_balance.h"

#define ALIGNMENT 64

/* 64-byte aligned memory that lives as long as the session; NULL when there is none. */
static void *allocate(struct elutq_session *session, uint64_t n_items, size_t item_bytes) {
    uint64_t n_bytes;
    if (session->n_allocations == ELUTQ_MAX_ALLOCATIONS || __builtin_mul_overflow(n_items, item_bytes, &n_bytes) ||
        n_bytes > SIZE_MAX - ALIGNMENT)
        return NULL;
    void *memory = aligned_alloc(ALIGNMENT, (n_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT + (n_bytes == 0) * ALIGNMENT);
    if (memory != NULL)
        session->allocations[session->n_allocations++] = memory;
    return memory;
}

static float *allocate_floats(struct elutq_session *session, uint64_t n) {
    return allocate(session, n, sizeof(float));
}

static uint32_t largest_of(uint32_t a, uint32_t b) {
    return a > b ? a : b;
}

/* Of the matrices with one group size: most tokens whose tables one of them takes, and whether one ever takes levels. */
struct needs {
    uint32_t table_tokens;
    bool levels;
};

static void note_needs(const struct elutq_session *session, const struct elutq_linear *linear, struct needs *needs) {
    const struct elutq_matrix *weight = &linear->weight;
    const uint32_t most = session->batch_tokens;
    if (weight->bits == 16)
        return;
    struct needs *of_size = &needs[elutq_group_index(weight->group_size)];
    const bool levels = elutq_takes_levels(session->model->kernels, weight, most);
    const uint32_t table_tokens = levels ? session->model->kernels->levels_from[weight->bits] - 1 : most;
    of_size->table_tokens = largest_of(of_size->table_tokens, largest_of(table_tokens, 1));
    of_size->levels |= levels;
}

static void find_needs(const struct elutq_session *session, struct needs needs[ELUTQ_GROUP_SIZES]) {
    const struct elutq_model *model = session->model;
    note_needs(session, &model->head, needs);
    for (uint32_t i = 0; i < model->config.n_layers; i++) {
        const struct elutq_layer *layer = &model->layers[i];
        const struct elutq_linear *linears[] = {&layer->q,    &layer->k,  &layer->v,   &layer->o,
                                                &layer->gate, &layer->up, &layer->down};
        for (size_t j = 0; j < sizeof linears / sizeof linears[0]; j++)
            note_needs(session, linears[j], needs);
    }
}

/* Between the tables of two tokens, so that what a kernel looks up for some tokens is spread over the sets of a cache. */
#define TABLE_PADDING 512

static bool allocate_tables(struct elutq_session *session, uint32_t n_columns, uint32_t group_size, uint32_t n_tokens) {
    struct elutq_tables *tables = allocate(session, n_tokens, sizeof *tables);
    uint64_t entry_bytes = (uint64_t)n_columns / ELUTQ_CELL_COLUMNS * 16 + TABLE_PADDING, n_groups = n_columns / group_size + 1;
    int8_t *entries = allocate(session, n_tokens, entry_bytes);
    uint8_t *multipliers = allocate(session, n_tokens, n_columns / ELUTQ_CELL_COLUMNS);
    float *scales = allocate_floats(session, 2 * n_tokens * n_groups);
    if (tables == NULL || entries == NULL || multipliers == NULL || scales == NULL)
        return false;
    for (uint32_t token = 0; token < n_tokens; token++)
        tables[token] = (struct elutq_tables){
            .entries = entries + token * entry_bytes,
            .multipliers = multipliers + (size_t)token * (n_columns / ELUTQ_CELL_COLUMNS),
            .scales = scales + 2 * token * n_groups,
            .sums = scales + (2 * token + 1) * n_groups,
        };
    session->input.tables[elutq_group_index(group_size)] = tables;
    return true;
}

static bool allocate_levels(struct elutq_session *session, uint32_t n_columns, uint32_t group_size, uint32_t n_tokens) {
    uint64_t padded = (n_tokens + ELUTQ_LEVELS_TOKENS - 1) / ELUTQ_LEVELS_TOKENS * ELUTQ_LEVELS_TOKENS;
    uint64_t n_scales = padded * (n_columns / group_size);
    struct elutq_levels *levels = &session->input.levels[elutq_group_index(group_size)];
    levels->values = allocate(session, padded, n_columns);
    levels->high = allocate(session, padded, n_columns);
    levels->high_cells = allocate(session, n_scales, sizeof *levels->high_cells);
    levels->scales = allocate_floats(session, n_scales);
    levels->sums = allocate_floats(session, n_scales);
    levels->biases = allocate(session, n_scales, sizeof *levels->biases);
    if (levels->values == NULL || levels->high == NULL || levels->high_cells == NULL || levels->scales == NULL ||
        levels->sums == NULL || levels->biases == NULL)
        return false;
    memset(levels->values, 0, padded * n_columns);
    memset(levels->high, 0, padded * n_columns);
    memset(levels->high_cells, 0, n_scales * sizeof *levels->high_cells);
    memset(levels->biases, 0, n_scales * sizeof *levels->biases);
    return true;
}

static bool allocate_input(struct elutq_session *session) {
    const struct elutq_config *config = &session->model->config;
    const uint32_t n_tokens = session->batch_tokens;
    struct needs needs[ELUTQ_GROUP_SIZES] = {{0, false}};
    uint32_t n_columns =
        largest_of(largest_of(config->hidden_size, config->intermediate_size), config->n_heads * config->head_dim);
    find_needs(session, needs);
    session->input.x = allocate_floats(session, (uint64_t)n_tokens * n_columns);
    if (session->input.x == NULL)
        return false;
    for (uint32_t i = 0; i < ELUTQ_GROUP_SIZES; i++) {
        if (needs[i].table_tokens > 0 && !allocate_tables(session, n_columns, 32u << i, needs[i].table_tokens))
            return false;
        if (needs[i].levels && !allocate_levels(session, n_columns, 32u << i, n_tokens))
            return false;
    }
    return true;
}

/* Only where keys are rounded to int8: fp16 has room for outliers. */
static bool balance_keys(struct elutq_session *session) {
    const struct elutq_config *config = &session->model->config;
    if (session->cache_type != ELUTQ_CACHE_Q8)
        return true;
    session->key_balance = allocate_floats(session, 2ull * config->n_layers * config->n_kv_heads * config->head_dim);
    if (session->key_balance != NULL)
        elutq_key_balance(session->model, session->key_balance);
    return session->key_balance != NULL;
}

static bool allocate_buffers(struct elutq_session *session, unsigned n_threads) {
    const struct elutq_config *config = &session->model->config;
    const uint64_t n = session->batch_tokens, head_dim = config->head_dim;
    const uint64_t q_size = config->n_heads * head_dim, kv_size = config->n_kv_heads * head_dim;
    const uint64_t n_rows = (uint64_t)config->n_layers * config->n_kv_heads * session->context_size;
    session->keys = allocate(session, n_rows, elutq_cache_row_bytes(session->cache_type, config->head_dim));
    session->values = allocate(session, n_rows, elutq_cache_row_bytes(session->cache_type, config->head_dim));
    session->frequencies = allocate_floats(session, head_dim / 2);
    session->hidden = allocate_floats(session, n * config->hidden_size);
    session->q = allocate_floats(session, n * q_size);
    session->k = allocate_floats(session, n * kv_size);
    session->v = allocate_floats(session, n * kv_size);
    session->attended = allocate_floats(session, n * q_size);
    session->gate = allocate_floats(session, n * config->intermediate_size);
    session->up = allocate_floats(session, n * config->intermediate_size);
    session->cosines = allocate_floats(session, n * head_dim / 2);
    session->sines = allocate_floats(session, n * head_dim / 2);
    session->chunks = allocate_floats(session, n_threads * n * ELUTQ_CHUNK_STRIDE);
    const uint64_t attend_rows = (uint64_t)n_threads * ELUTQ_ATTEND_TOKENS * (config->n_heads / config->n_kv_heads);
    session->scores = allocate_floats(session, attend_rows * ELUTQ_ATTEND_STRIDE);
    session->heads = allocate_floats(session, 2 * attend_rows * head_dim);
    const void *needed[] = {session->keys, session->values,   session->frequencies, session->hidden,  session->q,
                            session->k,    session->v,        session->attended,    session->gate,    session->up,
                            session->cosines, session->sines, session->chunks,      session->scores,
                            session->heads};
    for (size_t i = 0; i < sizeof needed / sizeof needed[0]; i++)
        if (needed[i] == NULL)
            return false;
    return allocate_input(session) && balance_keys(session);
}

/* theta^(-2i / head_dim), in float as the checkpoints' own code has it, divided where RoPE is scaled. */
static void fill_frequencies(struct elutq_session *session) {
    const struct elutq_model *model = session->model;
    const uint32_t head_dim = model->config.head_dim;
    for (uint32_t i = 0; i < head_dim / 2; i++) {
        session->frequencies[i] = 1.0f / powf(model->config.rope_theta, (float)(2 * i) / (float)head_dim);
        if (model->rope_divisors != NULL)
            session->frequencies[i] /= model->rope_divisors[i];
    }
}

uint64_t elutq_model_kv_bytes(const elutq_model *model, enum elutq_cache_type cache_type) {
    const struct elutq_config *config = &model->config;
    return 2ull * config->n_layers * config->n_kv_heads * elutq_cache_row_bytes(cache_type, config->head_dim);
}

int elutq_session_create(elutq_model *model, uint32_t context_size, enum elutq_cache_type cache_type, unsigned n_threads,
                         elutq_session **out, char *error, size_t error_bytes) {
    const struct elutq_error report = {error, error_bytes};
    *out = NULL;
    if (context_size < 1 || context_size > model->config.context_length)
        return elutq_fail(&report, ELUTQ_ERROR_ARGUMENT, "a context of %u tokens is not between 1 and the model's %u",
                          context_size, model->config.context_length);
    if (cache_type != ELUTQ_CACHE_F16 && cache_type != ELUTQ_CACHE_Q8)
        return elutq_fail(&report, ELUTQ_ERROR_ARGUMENT, "there is no cache of type %d", (int)cache_type);
    if (n_threads < 1 || n_threads > ELUTQ_MAX_THREADS)
        return elutq_fail(&report, ELUTQ_ERROR_ARGUMENT, "%u threads is not between 1 and %d", n_threads, ELUTQ_MAX_THREADS);
    struct elutq_session *session = calloc(1, sizeof *session);
    if (session == NULL)
        return elutq_fail(&report, ELUTQ_ERROR_MEMORY, "out of memory");
    atomic_fetch_add(&model->n_owners, 1);
    session->model = model;
    session->context_size = context_size;
    session->cache_type = cache_type;
    session->batch_tokens = context_size < ELUTQ_BATCH_TOKENS ? context_size : ELUTQ_BATCH_TOKENS;
    if (!allocate_buffers(session, n_threads)) {
        elutq_session_destroy(session);
        return elutq_fail(&report, ELUTQ_ERROR_MEMORY, "out of memory for a context of %u tokens; ask for a smaller one",
                          context_size);
    }
    fill_frequencies(session);
    int status = elutq_pool_create(n_threads, &session->pool);
    if (status != ELUTQ_OK) {
        elutq_session_destroy(session);
        return elutq_fail(&report, status, "cannot start %u threads", n_threads);
    }
    *out = session;
    return ELUTQ_OK;
}

int elutq_session_destroy(elutq_session *session) {
    if (session == NULL)
        return ELUTQ_OK;
    if (!elutq_begin_call(session))
        return ELUTQ_ERROR_IN_USE;
    elutq_pool_destroy(session->pool);
    for (unsigned i = 0; i < session->n_allocations; i++)
        free(session->allocations[i]);
    elutq_model_close(session->model);
    free(session);
    return ELUTQ_OK;
}

static int check_tokens(const elutq_session *session, const int32_t *tokens, size_t n_tokens, size_t n_logits,
                        const struct elutq_error *report) {
    if (n_tokens == 0 || n_logits > n_tokens)
        return elutq_fail(report, ELUTQ_ERROR_ARGUMENT, "no tokens, or more logits asked for than tokens given");
    if (n_tokens > session->context_size - session->position)
        return elutq_fail(report, ELUTQ_ERROR_CONTEXT, "the context is full: %u of %u tokens are used and %zu more were given",
                          session->position, session->context_size, n_tokens);
    for (size_t i = 0; i < n_tokens; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= session->model->config.vocab_size)
            return elutq_fail(report, ELUTQ_ERROR_ARGUMENT, "token id %d is outside the vocabulary of %u", tokens[i],
                              session->model->config.vocab_size);
    return ELUTQ_OK;
}

/*
 * What a damaged scale leads to, and what no scale in a sound file does: a logit that is not a number. Scales themselves
 * are not looked at when a file is opened, because that would read all of it.
 */
static int check_logits(const struct elutq_session *session, const float *logits, size_t n, const struct elutq_error *report) {
    uint32_t bad = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &logits[i], sizeof bits);
        bad |= (bits & 0x7F800000u) == 0x7F800000u;
    }
    if (!bad)
        return ELUTQ_OK;
    const struct elutq_tensor *tensor = elutq_find_damage(session->model);
    if (tensor == NULL)
        return elutq_fail(report, ELUTQ_ERROR_FORMAT, "the model computes numbers too large for its formats");
    return elutq_fail(report, ELUTQ_ERROR_FORMAT,
                      "%.*s holds a scale or weight that no model has; the file is damaged, copy or download it again",
                      (int)tensor->name.n_bytes, tensor->name.bytes);
}

/* All passes over the tokens; moves the position. */
static int run_passes(elutq_session *session, const int32_t *tokens, size_t n_tokens, float *logits, size_t n_logits,
                      const struct elutq_error *report) {
    struct elutq_mapping *mapping = &session->model->gguf.mapping;
    for (size_t done = 0; done < n_tokens;) {
        size_t left = n_tokens - done;
        uint32_t n = left < session->batch_tokens ? (uint32_t)left : session->batch_tokens;
        size_t after = left - n; /* tokens of later passes */
        uint32_t wanted = n_logits <= after ? 0 : n_logits - after < n ? (uint32_t)(n_logits - after) : n;
        int status = elutq_mapping_check(mapping, report);
        if (status != ELUTQ_OK)
            return status;
        status = elutq_forward(session, tokens + done, n, logits, wanted);
        if (status == ELUTQ_ERROR_CANCELLED) {
            atomic_store(&session->cancelled, false);
            return elutq_fail(report, status, "cancelled");
        }
        if (status != ELUTQ_OK)
            return elutq_fail(report, status,
                              "this process was forked and has not the session's threads; open a session in it");
        logits += (size_t)wanted * session->model->config.vocab_size;
        session->position += n;
        done += n;
    }
    return elutq_mapping_check(mapping, report);
}

int elutq_session_eval(elutq_session *session, const int32_t *tokens, size_t n_tokens, float *logits, size_t n_logits,
                       char *error, size_t error_bytes) {
    const struct elutq_error report = {error, error_bytes};
    if (!elutq_begin_call(session))
        return elutq_fail(&report, ELUTQ_ERROR_IN_USE, "another thread is using this session; open one for each thread");
    const uint32_t start = session->position;
    int status = check_tokens(session, tokens, n_tokens, n_logits, &report);
    if (status == ELUTQ_OK)
        status = run_passes(session, tokens, n_tokens, logits, n_logits, &report);
    if (status == ELUTQ_OK)
        status = check_logits(session, logits, n_logits * session->model->config.vocab_size, &report);
    if (status != ELUTQ_OK)
        session->position = start;
    return elutq_end_call(session, status);
}

uint32_t elutq_session_position(const elutq_session *session) {
    return session->position;
}

int elutq_session_rewind(elutq_session *session, uint32_t position) {
    if (!elutq_begin_call(session))
        return ELUTQ_ERROR_IN_USE;
    if (position > session->position)
        return elutq_end_call(session, ELUTQ_ERROR_ARGUMENT);
    session->position = position;
    return elutq_end_call(session, ELUTQ_OK);
}

void elutq_session_cancel(elutq_session *session) {
    atomic_store(&session->cancelled, true);
}
