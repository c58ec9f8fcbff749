/* The scratch of one pass: how large each buffer is, and whether a model needs it. */
#include <string.h>

#include "aligned.h"
#include "engine.h"

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

/* Bytes of the cache lines that hold n_bytes: what threads write of two tokens shares none. */
static uint64_t whole_lines(uint64_t n_bytes) {
    return (n_bytes + ELUTQ_ALIGNMENT - 1) / ELUTQ_ALIGNMENT * ELUTQ_ALIGNMENT;
}

static uint32_t largest_of(uint32_t a, uint32_t b) {
    return a > b ? a : b;
}

/* Of the matrices with one group size: whether there are any, and whether one of them ever takes levels. */
struct needs {
    bool tables, levels;
};

/* n_tokens: of the largest piece, as far as its rows share the matrix. */
static void note_needs(const struct elutq_engine *engine, const struct elutq_matrix *weight, uint32_t n_tokens,
                       struct needs *needs) {
    if (weight->bits == 16)
        return;
    const uint32_t levels_from = engine->model->kernels->levels_from[weight->bits];
    struct needs *of_size = &needs[elutq_group_index(weight->group_size)];
    of_size->tables = true;
    of_size->levels |= levels_from != 0 && levels_from <= n_tokens;
}

/* Of all rows' inputs, and of those that experts take. */
static void find_needs(const struct elutq_engine *engine, struct needs all[ELUTQ_GROUP_SIZES],
                       struct needs of_experts[ELUTQ_GROUP_SIZES]) {
    const struct elutq_model *model = engine->model;
    note_needs(engine, &model->head.weight, ELUTQ_PIECE_TOKENS, all);
    for (uint32_t i = 0; i < model->config.n_layers; i++) {
        struct elutq_stored_matrix stored[ELUTQ_LAYER_MATRICES];
        const unsigned n = elutq_layer_matrices(model, i, stored);
        for (unsigned j = 0; j < n; j++) {
            const uint32_t n_tokens =
                stored[j].of_experts ? elutq_rows_an_expert(&model->config, ELUTQ_PIECE_TOKENS) : ELUTQ_PIECE_TOKENS;
            note_needs(engine, stored[j].matrix, n_tokens, all);
            if (stored[j].of_experts)
                note_needs(engine, stored[j].matrix, n_tokens, of_experts);
        }
    }
}

/* Between the tables of two tokens, so that what a kernel looks up for some tokens is spread over the sets of a cache. */
#define TABLE_PADDING 512

static bool allocate_tables(struct elutq_engine *engine, uint32_t n_columns, uint32_t group_size, uint32_t n_tokens,
                            struct elutq_tables **out) {
    struct elutq_tables *tables = allocate(engine, n_tokens, sizeof *tables);
    const uint64_t entry_bytes = whole_lines((uint64_t)n_columns / ELUTQ_CELL_COLUMNS * 16) + TABLE_PADDING;
    const uint64_t multiplier_bytes = whole_lines(n_columns / ELUTQ_CELL_COLUMNS);
    const uint64_t n_groups = whole_lines(n_columns / group_size * sizeof(float)) / sizeof(float);
    int8_t *entries = allocate(engine, n_tokens, entry_bytes);
    uint8_t *multipliers = allocate(engine, n_tokens, multiplier_bytes);
    float *scales = allocate_floats(engine, 2 * n_tokens * n_groups);
    if (tables == NULL || entries == NULL || multipliers == NULL || scales == NULL)
        return false;
    for (uint32_t token = 0; token < n_tokens; token++)
        tables[token] = (struct elutq_tables){
            .entries = entries + token * entry_bytes,
            .multipliers = multipliers + token * multiplier_bytes,
            .scales = scales + 2 * token * n_groups,
            .sums = scales + (2 * token + 1) * n_groups,
        };
    *out = tables;
    return true;
}

static bool allocate_levels(struct elutq_engine *engine, uint32_t n_columns, uint32_t group_size, uint32_t n_tokens,
                            struct elutq_levels *levels) {
    uint64_t padded = (n_tokens + ELUTQ_LEVELS_TOKENS - 1) / ELUTQ_LEVELS_TOKENS * ELUTQ_LEVELS_TOKENS;
    uint64_t n_scales = padded * (n_columns / group_size);
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

/* n_table_columns, n_level_columns: of the widest input that takes either form. */
static bool allocate_input(struct elutq_engine *engine, const struct needs needs[ELUTQ_GROUP_SIZES], uint32_t n_table_columns,
                           uint32_t n_level_columns, uint32_t n_tokens, struct elutq_input *input) {
    for (uint32_t i = 0; i < ELUTQ_GROUP_SIZES; i++) {
        if (needs[i].tables && !allocate_tables(engine, n_table_columns, 32u << i, n_tokens, &input->tables[i]))
            return false;
        if (needs[i].levels && !allocate_levels(engine, n_level_columns, 32u << i, n_tokens, &input->levels[i]))
            return false;
    }
    return true;
}

/* Width of the MLP that a layer has, or shares between its experts; the largest there is. */
static uint32_t mlp_size(const struct elutq_model *model) {
    uint32_t size = 0;
    for (uint32_t i = 0; i < model->config.n_layers; i++)
        size = largest_of(size, model->layers[i].gate.weight.n_rows);
    return size;
}

/* Every expert's slots begin with a block of levels, so up to one less than a block is left free behind them. */
static uint64_t count_slots(const struct elutq_config *config, uint64_t n_rows) {
    const uint64_t n = n_rows * config->n_experts_used;
    return n + (ELUTQ_LEVELS_TOKENS - 1) * (n < config->n_experts ? n : config->n_experts);
}

static bool allocate_routing(struct elutq_engine *engine, const struct needs needs[ELUTQ_GROUP_SIZES]) {
    const struct elutq_config *config = &engine->model->config;
    struct elutq_routing *routing = &engine->routing;
    const uint64_t n_rows = engine->max_rows, n_slots = count_slots(config, n_rows);
    if (config->n_experts == 0)
        return true;
    routing->probabilities = allocate_floats(engine, n_rows * config->n_experts);
    routing->choices = allocate(engine, n_rows * config->n_experts_used, sizeof *routing->choices);
    routing->shared_weights = allocate_floats(engine, n_rows);
    routing->slots = allocate(engine, n_slots, sizeof *routing->slots);
    routing->batches = allocate(engine, config->n_experts, sizeof *routing->batches);
    routing->batch_of = allocate(engine, config->n_experts, sizeof *routing->batch_of);
    routing->gate = allocate_floats(engine, n_slots * config->expert_size);
    routing->up = allocate_floats(engine, n_slots * config->expert_size);
    routing->wide = allocate_floats(engine, n_slots * config->hidden_size);
    routing->shared = allocate_floats(engine, config->shared_expert_size > 0 ? n_rows * config->hidden_size : 1);
    for (uint32_t i = 0; i < ELUTQ_GROUP_SIZES; i++)
        if (needs[i].tables &&
            (routing->gathered[i] = allocate(engine, n_slots, sizeof *routing->gathered[i])) == NULL)
            return false;
    return routing->probabilities != NULL && routing->choices != NULL && routing->shared_weights != NULL &&
           routing->slots != NULL && routing->batches != NULL && routing->batch_of != NULL && routing->gate != NULL &&
           routing->up != NULL && routing->wide != NULL && routing->shared != NULL &&
           allocate_input(engine, needs, config->expert_size, largest_of(config->hidden_size, config->expert_size),
                          (uint32_t)n_slots, &routing->input);
}

static bool allocate_inputs(struct elutq_engine *engine) {
    const struct elutq_config *config = &engine->model->config;
    struct needs all[ELUTQ_GROUP_SIZES] = {{false, false}}, of_experts[ELUTQ_GROUP_SIZES] = {{false, false}};
    const uint32_t n_columns =
        largest_of(largest_of(config->hidden_size, mlp_size(engine->model)), config->n_heads * config->head_dim);
    find_needs(engine, all, of_experts);
    engine->input.x = allocate_floats(engine, (uint64_t)engine->max_rows * n_columns);
    return engine->input.x != NULL && allocate_input(engine, all, n_columns, n_columns, engine->max_rows, &engine->input) &&
           allocate_routing(engine, of_experts);
}

static bool allocate_rows(struct elutq_engine *engine) {
    const uint64_t n = engine->max_rows;
    engine->pieces = allocate(engine, n, sizeof *engine->pieces);
    engine->rows = allocate(engine, n, sizeof *engine->rows);
    engine->logit_rows = allocate(engine, n, sizeof *engine->logit_rows);
    engine->logits = allocate(engine, n, sizeof *engine->logits);
    return engine->pieces != NULL && engine->rows != NULL && engine->logit_rows != NULL && engine->logits != NULL;
}

bool elutq_allocate_scratch(struct elutq_engine *engine, unsigned n_threads) {
    const struct elutq_config *config = &engine->model->config;
    const uint64_t n = engine->max_rows, head_dim = config->head_dim;
    const uint64_t q_size = config->n_heads * head_dim, kv_size = config->n_kv_heads * head_dim;
    const uint64_t mlp = mlp_size(engine->model);
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
        {&engine->gate, n * mlp},
        {&engine->up, n * mlp},
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
    return engine->weighings != NULL && allocate_rows(engine) && allocate_inputs(engine);
}
