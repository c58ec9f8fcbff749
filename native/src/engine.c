#include "engine.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "aligned.h"

/* 64-byte aligned memory that lives as long as the engine; NULL when there is none. */
static void *allocate(struct elutq_engine *engine, uint64_t n_items, size_t item_bytes) {
    if (engine->n_allocations == ELUTQ_MAX_ALLOCATIONS)
        return NULL;
    void *memory = elutq_allocate_aligned(n_items, item_bytes);
    if (memory != NULL)
        engine->allocations[engine->n_allocations++] = memory;
    return memory;
}

static float *allocate_floats(struct elutq_engine *engine, uint64_t n) {
    return allocate(engine, n, sizeof(float));
}

static uint32_t largest_of(uint32_t a, uint32_t b) {
    return a > b ? a : b;
}

/* Of the matrices with one group size: whether there are any, and whether one of them ever takes levels. */
struct needs {
    bool tables, levels;
};

static void note_needs(const struct elutq_engine *engine, const struct elutq_linear *linear, struct needs *needs) {
    const struct elutq_matrix *weight = &linear->weight;
    if (weight->bits == 16)
        return;
    const uint32_t levels_from = engine->model->kernels->levels_from[weight->bits];
    struct needs *of_size = &needs[elutq_group_index(weight->group_size)];
    of_size->tables = true;
    of_size->levels |= levels_from != 0 && levels_from <= ELUTQ_PIECE_TOKENS;
}

static void find_needs(const struct elutq_engine *engine, struct needs needs[ELUTQ_GROUP_SIZES]) {
    const struct elutq_model *model = engine->model;
    note_needs(engine, &model->head, needs);
    for (uint32_t i = 0; i < model->config.n_layers; i++) {
        const struct elutq_layer *layer = &model->layers[i];
        const struct elutq_linear *linears[] = {&layer->q,    &layer->k,  &layer->v,   &layer->o,
                                                &layer->gate, &layer->up, &layer->down};
        for (size_t j = 0; j < sizeof linears / sizeof linears[0]; j++)
            note_needs(engine, linears[j], needs);
    }
}

/* Between the tables of two tokens, so that what a kernel looks up for some tokens is spread over the sets of a cache. */
#define TABLE_PADDING 512

static bool allocate_tables(struct elutq_engine *engine, uint32_t n_columns, uint32_t group_size, uint32_t n_tokens) {
    struct elutq_tables *tables = allocate(engine, n_tokens, sizeof *tables);
    uint64_t entry_bytes = (uint64_t)n_columns / ELUTQ_CELL_COLUMNS * 16 + TABLE_PADDING, n_groups = n_columns / group_size + 1;
    int8_t *entries = allocate(engine, n_tokens, entry_bytes);
    uint8_t *multipliers = allocate(engine, n_tokens, n_columns / ELUTQ_CELL_COLUMNS);
    float *scales = allocate_floats(engine, 2 * n_tokens * n_groups);
    if (tables == NULL || entries == NULL || multipliers == NULL || scales == NULL)
        return false;
    for (uint32_t token = 0; token < n_tokens; token++)
        tables[token] = (struct elutq_tables){
            .entries = entries + token * entry_bytes,
            .multipliers = multipliers + (size_t)token * (n_columns / ELUTQ_CELL_COLUMNS),
            .scales = scales + 2 * token * n_groups,
            .sums = scales + (2 * token + 1) * n_groups,
        };
    engine->input.tables[elutq_group_index(group_size)] = tables;
    return true;
}

static bool allocate_levels(struct elutq_engine *engine, uint32_t n_columns, uint32_t group_size, uint32_t n_tokens) {
    uint64_t padded = (n_tokens + ELUTQ_LEVELS_TOKENS - 1) / ELUTQ_LEVELS_TOKENS * ELUTQ_LEVELS_TOKENS;
    uint64_t n_scales = padded * (n_columns / group_size);
    struct elutq_levels *levels = &engine->input.levels[elutq_group_index(group_size)];
    levels->values = allocate(engine, padded, n_columns);
    levels->high = allocate(engine, padded, n_columns);
    levels->high_cells = allocate(engine, n_scales, sizeof *levels->high_cells);
    levels->scales = allocate_floats(engine, n_scales);
    levels->sums = allocate_floats(engine, n_scales);
    levels->biases = allocate(engine, n_scales, sizeof *levels->biases);
    if (levels->values == NULL || levels->high == NULL || levels->high_cells == NULL || levels->scales == NULL ||
        levels->sums == NULL || levels->biases == NULL)
        return false;
    memset(levels->values, 0, padded * n_columns);
    memset(levels->high, 0, padded * n_columns);
    memset(levels->high_cells, 0, n_scales * sizeof *levels->high_cells);
    memset(levels->biases, 0, n_scales * sizeof *levels->biases);
    return true;
}

static bool allocate_input(struct elutq_engine *engine) {
    const struct elutq_config *config = &engine->model->config;
    const uint32_t n_tokens = engine->max_rows;
    struct needs needs[ELUTQ_GROUP_SIZES] = {{false, false}};
    uint32_t n_columns =
        largest_of(largest_of(config->hidden_size, config->intermediate_size), config->n_heads * config->head_dim);
    find_needs(engine, needs);
    engine->input.x = allocate_floats(engine, (uint64_t)n_tokens * n_columns);
    if (engine->input.x == NULL)
        return false;
    for (uint32_t i = 0; i < ELUTQ_GROUP_SIZES; i++) {
        if (needs[i].tables && !allocate_tables(engine, n_columns, 32u << i, n_tokens))
            return false;
        if (needs[i].levels && !allocate_levels(engine, n_columns, 32u << i, n_tokens))
            return false;
    }
    return true;
}

static bool allocate_rows(struct elutq_engine *engine) {
    const uint64_t n = engine->max_rows;
    engine->pieces = allocate(engine, n, sizeof *engine->pieces);
    engine->rows = allocate(engine, n, sizeof *engine->rows);
    engine->logit_rows = allocate(engine, n, sizeof *engine->logit_rows);
    engine->logits = allocate(engine, n, sizeof *engine->logits);
    return engine->pieces != NULL && engine->rows != NULL && engine->logit_rows != NULL && engine->logits != NULL;
}

static bool allocate_buffers(struct elutq_engine *engine, unsigned n_threads) {
    const struct elutq_config *config = &engine->model->config;
    const uint64_t n = engine->max_rows, head_dim = config->head_dim;
    const uint64_t q_size = config->n_heads * head_dim, kv_size = config->n_kv_heads * head_dim;
    const uint64_t attend_rows = (uint64_t)n_threads * ELUTQ_ATTEND_TOKENS * (config->n_heads / config->n_kv_heads);
    const struct {
        float **buffer;
        uint64_t n_floats;
    } buffers[] = {
        {&engine->frequencies, (ELUTQ_N_ROPES + 1) * config->rope_dim / 2},
        {&engine->hidden, n * config->hidden_size},
        {&engine->q, n * q_size},
        {&engine->k, n * kv_size},
        {&engine->v, n * kv_size},
        {&engine->attended, n * q_size},
        {&engine->gate, n * config->intermediate_size},
        {&engine->up, n * config->intermediate_size},
        {&engine->written, n * config->hidden_size},
        {&engine->cosines, ELUTQ_N_ROPES * n * config->rope_dim / 2},
        {&engine->sines, ELUTQ_N_ROPES * n * config->rope_dim / 2},
        {&engine->chunks, n_threads * n * ELUTQ_CHUNK_STRIDE},
        {&engine->scores, attend_rows * ELUTQ_ATTEND_STRIDE},
        {&engine->heads, 3 * attend_rows * head_dim},
    };
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; i++)
        if ((*buffers[i].buffer = allocate_floats(engine, buffers[i].n_floats)) == NULL)
            return false;
    engine->weighings = allocate(engine, 2 * attend_rows, sizeof *engine->weighings);
    return engine->weighings != NULL && allocate_rows(engine) && allocate_input(engine);
}

/* theta^(-2i / rope_dim), in float as the checkpoints' own code has it, divided where RoPE is scaled. */
static void fill_frequencies(const struct elutq_config *config, float theta, const float *divisors, float *frequencies) {
    for (uint32_t i = 0; i < config->rope_dim / 2; i++) {
        frequencies[i] = 1.0f / powf(theta, (float)(2 * i) / (float)config->rope_dim);
        if (divisors != NULL)
            frequencies[i] /= divisors[i];
    }
}

static void fill_all_frequencies(struct elutq_engine *engine) {
    const struct elutq_model *model = engine->model;
    const struct elutq_config *config = &model->config;
    const uint32_t half = config->rope_dim / 2;
    const float local = config->local_rope_theta != 0 ? config->local_rope_theta : config->rope_theta;
    const float *divisors = model->rope_long_divisors != NULL ? model->rope_long_divisors : model->rope_divisors;
    fill_frequencies(config, config->rope_theta, model->rope_divisors, engine->frequencies + ELUTQ_ROPE * half);
    fill_frequencies(config, local, NULL, engine->frequencies + ELUTQ_LOCAL_ROPE * half);
    fill_frequencies(config, config->rope_theta, divisors, engine->frequencies + ELUTQ_N_ROPES * half);
}

int elutq_engine_create(elutq_model *model, uint32_t n_sequences, unsigned n_threads, elutq_engine **out, char *error,
                        size_t error_bytes) {
    const struct elutq_error report = {error, error_bytes};
    *out = NULL;
    if (n_sequences < 1 || n_sequences > ELUTQ_MAX_SEQUENCES)
        return elutq_fail(&report, ELUTQ_ERROR_ARGUMENT, "%u sequences is not between 1 and %d", n_sequences,
                          ELUTQ_MAX_SEQUENCES);
    if (n_threads < 1 || n_threads > ELUTQ_MAX_THREADS)
        return elutq_fail(&report, ELUTQ_ERROR_ARGUMENT, "%u threads is not between 1 and %d", n_threads, ELUTQ_MAX_THREADS);
    struct elutq_engine *engine = calloc(1, sizeof *engine);
    if (engine == NULL)
        return elutq_fail(&report, ELUTQ_ERROR_MEMORY, "out of memory");
    atomic_fetch_add(&model->n_owners, 1);
    engine->model = model;
    engine->max_rows = ELUTQ_PIECE_TOKENS + n_sequences - 1;
    if (!allocate_buffers(engine, n_threads)) {
        elutq_engine_destroy(engine);
        return elutq_fail(&report, ELUTQ_ERROR_MEMORY, "out of memory for %u sequences and %u threads; ask for fewer",
                          n_sequences, n_threads);
    }
    fill_all_frequencies(engine);
    int status = elutq_pool_create(n_threads, &engine->pool);
    if (status != ELUTQ_OK) {
        elutq_engine_destroy(engine);
        return elutq_fail(&report, status, "cannot start %u threads", n_threads);
    }
    *out = engine;
    return ELUTQ_OK;
}

int elutq_engine_destroy(elutq_engine *engine) {
    if (engine == NULL)
        return ELUTQ_OK;
    if (!elutq_begin_call(&engine->in_use))
        return ELUTQ_ERROR_IN_USE;
    elutq_pool_destroy(engine->pool);
    for (unsigned i = 0; i < engine->n_allocations; i++)
        elutq_free_aligned(engine->allocations[i]);
    elutq_free_aligned(engine->parts);
    elutq_model_close(engine->model);
    free(engine);
    return ELUTQ_OK;
}

void elutq_engine_cancel(elutq_engine *engine) {
    atomic_store(&engine->cancelled, true);
}
