/*
 * Mixtures of experts. A row's experts, and all that they give it, follow from the row alone: its form from its piece's size,
 * the order of the sum from its own choices. What depends on its company is which slot it has, and that changes no bit.
 */
#include <math.h>
#include <string.h>

#include "hlq_block.h"
#include "pass.h"

/* Experts whose logits a thread computes at a time, of all rows. */
#define ROUTED_TOGETHER 8

/* ---- routing ---- */

/* Logits of all rows. Items: a few experts. */
static void score_experts(const struct elutq_pass *pass, unsigned thread, const struct elutq_layer *layer) {
    const struct elutq_engine *engine = pass->engine;
    const struct elutq_config *config = &engine->model->config;
    const uint32_t hidden_size = config->hidden_size, n_experts = config->n_experts;
    unsigned item;
    while (elutq_take(pass, thread, (n_experts + ROUTED_TOGETHER - 1) / ROUTED_TOGETHER, &item)) {
        const uint32_t first = item * ROUTED_TOGETHER, left = n_experts - first;
        for (uint32_t row = 0; row < engine->all.n_rows; row++)
            engine->model->kernels->multiply_floats(
                layer->router + (size_t)first * hidden_size, engine->input.x + (size_t)row * hidden_size,
                left < ROUTED_TOGETHER ? left : ROUTED_TOGETHER, hidden_size,
                engine->routing.probabilities + (size_t)row * n_experts + first);
    }
    elutq_pool_barrier(engine->pool, thread);
}

static void softmax(float *x, uint32_t n) {
    float largest = x[0], sum = 0;
    for (uint32_t i = 1; i < n; i++)
        largest = x[i] > largest ? x[i] : largest;
    for (uint32_t i = 0; i < n; i++)
        sum += x[i] = expf(x[i] - largest);
    for (uint32_t i = 0; i < n; i++)
        x[i] /= sum;
}

/* The likeliest experts, of equals the first. Takes what it chooses out; of numbers that are none it chooses what is left. */
static void choose(float *probabilities, uint32_t n, struct elutq_choice *choices, uint32_t n_choices) {
    for (uint32_t i = 0; i < n_choices; i++) {
        uint32_t best = n;
        for (uint32_t j = 0; j < n; j++)
            if (!(probabilities[j] < 0) && (best == n || probabilities[j] > probabilities[best]))
                best = j;
        choices[i] = (struct elutq_choice){.expert = best, .weight = probabilities[best]};
        probabilities[best] = -1;
    }
}

static void normalize(struct elutq_choice *choices, uint32_t n) {
    float sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += choices[i].weight;
    for (uint32_t i = 0; i < n; i++)
        choices[i].weight /= sum;
}

static void route_row(const struct elutq_engine *engine, const struct elutq_layer *layer, uint32_t row) {
    const struct elutq_config *config = &engine->model->config;
    const struct elutq_routing *routing = &engine->routing;
    float *probabilities = routing->probabilities + (size_t)row * config->n_experts;
    struct elutq_choice *choices = routing->choices + (size_t)row * config->n_experts_used;
    softmax(probabilities, config->n_experts);
    choose(probabilities, config->n_experts, choices, config->n_experts_used);
    if (config->normalize_expert_weights)
        normalize(choices, config->n_experts_used);
    if (layer->shared_gate != NULL) {
        float logit;
        engine->model->kernels->multiply_floats(layer->shared_gate, engine->input.x + (size_t)row * config->hidden_size, 1,
                                                config->hidden_size, &logit);
        routing->shared_weights[row] = 1 / (1 + expf(-logit));
    }
}

/* ---- slots ---- */

/* Counts the rows of each expert, and gives those that have some a batch, and slots as many. */
static void lay_out_batches(struct elutq_routing *routing, const struct elutq_config *config) {
    memset(routing->batch_of, 0, config->n_experts * sizeof *routing->batch_of);
    for (size_t i = 0; i < (size_t)routing->all.n_rows * config->n_experts_used; i++)
        routing->batch_of[routing->choices[i].expert]++;
    routing->n_batches = routing->n_slots = 0;
    for (uint32_t expert = 0; expert < config->n_experts; expert++) {
        const uint32_t n_rows = routing->batch_of[expert];
        if (n_rows == 0)
            continue;
        routing->batch_of[expert] = routing->n_batches;
        routing->batches[routing->n_batches++] =
            (struct elutq_expert_batch){.expert = expert, .first_slot = routing->n_slots};
        routing->n_slots += (n_rows + ELUTQ_LEVELS_TOKENS - 1) / ELUTQ_LEVELS_TOKENS * ELUTQ_LEVELS_TOKENS;
    }
}

/* Gives every choice its slot: an expert's rows in their order, so that those of large pieces come first here too. */
static void lay_out_slots(struct elutq_routing *routing, const struct elutq_config *config, const struct elutq_input *input) {
    lay_out_batches(routing, config);
    for (uint32_t slot = 0; slot < routing->n_slots; slot++)
        routing->slots[slot] = (struct elutq_slot){0, ELUTQ_NO_BATCH};
    for (uint32_t row = 0; row < routing->all.n_rows; row++)
        for (uint32_t i = 0; i < config->n_experts_used; i++) {
            struct elutq_choice *choice = &routing->choices[(size_t)row * config->n_experts_used + i];
            const uint32_t number = routing->batch_of[choice->expert];
            struct elutq_expert_batch *batch = &routing->batches[number];
            choice->slot = batch->first_slot + batch->rows.n_rows++;
            routing->slots[choice->slot] = (struct elutq_slot){row, number};
            for (uint32_t bits = 1; bits <= 4; bits++)
                batch->rows.n_levels[bits] += row < routing->all.n_levels[bits];
            for (uint32_t size = 0; size < ELUTQ_GROUP_SIZES; size++)
                if (routing->gathered[size] != NULL)
                    routing->gathered[size][choice->slot] = input->tables[size][row];
        }
}

/* Items: row. */
static void route(const struct elutq_pass *pass, unsigned thread, const struct elutq_layer *layer) {
    struct elutq_engine *engine = pass->engine;
    struct elutq_routing *routing = &engine->routing;
    unsigned row;
    while (elutq_take(pass, thread, engine->all.n_rows, &row)) {
        route_row(engine, layer, row);
        if (atomic_fetch_add_explicit(&routing->n_routed, 1, memory_order_acq_rel) + 1 == engine->all.n_rows) {
            atomic_store_explicit(&routing->n_routed, 0, memory_order_relaxed);
            lay_out_slots(routing, &engine->model->config, &engine->input);
        }
    }
    elutq_pool_barrier(engine->pool, thread);
}

/* ---- products ---- */

static struct elutq_levels levels_from(const struct elutq_levels *levels, uint32_t token, uint32_t n_columns,
                                       uint32_t group_size) {
    if (levels->values == NULL)
        return *levels;
    const size_t cells = (size_t)token * n_columns, groups = (size_t)token * (n_columns / group_size);
    return (struct elutq_levels){levels->values + cells, levels->high + cells,  levels->high_cells + groups,
                                 levels->scales + groups, levels->sums + groups, levels->biases + groups};
}

/* The input of one batch. */
static struct elutq_input input_of(const struct elutq_routing *routing, const struct elutq_expert_batch *batch,
                                   struct elutq_tables *const tables[ELUTQ_GROUP_SIZES], float *x, uint32_t n_columns) {
    struct elutq_input input = {.n_columns = n_columns, .x = x + (size_t)batch->first_slot * n_columns};
    for (uint32_t i = 0; i < ELUTQ_GROUP_SIZES; i++) {
        input.tables[i] = tables[i] == NULL ? NULL : tables[i] + batch->first_slot;
        input.levels[i] = levels_from(&routing->input.levels[i], batch->first_slot, n_columns, 32u << i);
    }
    return input;
}

/* Copies a token's levels to another place. */
static void copy_levels(const struct elutq_levels *from, uint32_t token, uint32_t n_columns, uint32_t group_size,
                        struct elutq_levels *to, uint32_t to_token) {
    const size_t n_cells = n_columns / ELUTQ_CELL_COLUMNS, n_groups = n_columns / group_size;
    const size_t from_cell = token / ELUTQ_LEVELS_TOKENS * n_cells * ELUTQ_LEVELS_TOKENS + token % ELUTQ_LEVELS_TOKENS;
    const size_t to_cell = to_token / ELUTQ_LEVELS_TOKENS * n_cells * ELUTQ_LEVELS_TOKENS + to_token % ELUTQ_LEVELS_TOKENS;
    for (size_t i = 0; i < n_cells; i++) {
        const size_t at = ELUTQ_CELL_COLUMNS * (from_cell + i * ELUTQ_LEVELS_TOKENS);
        const size_t to_at = ELUTQ_CELL_COLUMNS * (to_cell + i * ELUTQ_LEVELS_TOKENS);
        memcpy(to->values + to_at, from->values + at, ELUTQ_CELL_COLUMNS);
        memcpy(to->high + to_at, from->high + at, ELUTQ_CELL_COLUMNS);
    }
    const size_t first = token / ELUTQ_LEVELS_TOKENS * n_groups * ELUTQ_LEVELS_TOKENS + token % ELUTQ_LEVELS_TOKENS;
    const size_t to_first = to_token / ELUTQ_LEVELS_TOKENS * n_groups * ELUTQ_LEVELS_TOKENS + to_token % ELUTQ_LEVELS_TOKENS;
    for (size_t i = 0; i < n_groups * ELUTQ_LEVELS_TOKENS; i += ELUTQ_LEVELS_TOKENS) {
        to->high_cells[to_first + i] = from->high_cells[first + i];
        to->scales[to_first + i] = from->scales[first + i];
        to->sums[to_first + i] = from->sums[first + i];
        to->biases[to_first + i] = from->biases[first + i];
    }
}

/* Gives the experts' gate and up what they read and rows do not share: levels, and floats of fp16 matrices. Items: slot. */
static void gather(const struct elutq_pass *pass, unsigned thread, const struct elutq_product *products) {
    const struct elutq_engine *engine = pass->engine;
    const struct elutq_routing *routing = &engine->routing;
    const uint32_t hidden_size = engine->model->config.hidden_size;
    const bool floats = products[0].linear->weight.bits == 16 || products[1].linear->weight.bits == 16;
    struct elutq_forms forms[ELUTQ_GROUP_SIZES];
    elutq_find_forms(&routing->all, products, 2, forms);
    if (!floats && forms[0].levels + forms[1].levels + forms[2].levels + forms[3].levels == 0)
        return; /* every thread comes to the same */
    unsigned item;
    while (elutq_take(pass, thread, routing->n_slots, &item)) {
        const struct elutq_slot *slot = &routing->slots[item];
        if (slot->batch == ELUTQ_NO_BATCH)
            continue;
        const struct elutq_expert_batch *batch = &routing->batches[slot->batch];
        struct elutq_input input = input_of(routing, batch, routing->gathered, routing->wide, hidden_size);
        const uint32_t token = item - batch->first_slot;
        if (floats)
            memcpy(input.x + (size_t)token * hidden_size, engine->input.x + (size_t)slot->row * hidden_size,
                   hidden_size * sizeof *input.x);
        for (uint32_t i = 0; i < ELUTQ_GROUP_SIZES; i++)
            if (slot->row < forms[i].levels)
                copy_levels(&engine->input.levels[i], slot->row, hidden_size, 32u << i, &input.levels[i], token);
    }
    elutq_pool_barrier(engine->pool, thread);
}

/* What gates and ups gave, activated, in the forms that downs take. Items: slot. */
static void activate(const struct elutq_pass *pass, unsigned thread, const struct elutq_product *down) {
    const struct elutq_engine *engine = pass->engine;
    const struct elutq_routing *routing = &engine->routing;
    const struct elutq_kernels *kernels = engine->model->kernels;
    const uint32_t size = engine->model->config.expert_size;
    unsigned item;
    while (elutq_take(pass, thread, routing->n_slots, &item)) {
        if (routing->slots[item].batch == ELUTQ_NO_BATCH)
            continue;
        const struct elutq_expert_batch *batch = &routing->batches[routing->slots[item].batch];
        float *gate = routing->gate + (size_t)item * size, *up = routing->up + (size_t)item * size;
        (engine->model->config.gelu ? kernels->geglu : kernels->swiglu)(gate, up, size, gate);
        struct elutq_input input = input_of(routing, batch, routing->input.tables, routing->gate, size);
        struct elutq_forms forms[ELUTQ_GROUP_SIZES];
        elutq_find_forms(&batch->rows, down, 1, forms);
        elutq_round_row(kernels, forms, &input, gate, size, item - batch->first_slot, 0, size);
    }
    elutq_pool_barrier(engine->pool, thread);
}

/*
 * Multiplies the batches by their experts' matrices, of which `products`, alike in shape, have the first. Items: an expert, a
 * matrix and a part of its tiles, so that many small products are one stage.
 */
static void multiply(const struct elutq_pass *pass, unsigned thread, const struct elutq_product *products,
                     unsigned n_products, struct elutq_tables *const tables[ELUTQ_GROUP_SIZES], float *x) {
    const struct elutq_engine *engine = pass->engine;
    const struct elutq_routing *routing = &engine->routing;
    const struct elutq_matrix *first = &products[0].linear->weight;
    const uint32_t n_tiles = elutq_matrix_tiles(first), n_matrices = routing->n_batches * n_products;
    const uint32_t tiles = elutq_tiles_per_item(n_tiles * n_matrices, pass->n_threads);
    const uint32_t n_parts = (n_tiles + tiles - 1) / tiles;
    unsigned item;
    while (elutq_take(pass, thread, n_matrices * n_parts, &item)) {
        const struct elutq_expert_batch *batch = &routing->batches[item / n_parts / n_products];
        const struct elutq_product *product = &products[item / n_parts % n_products];
        const struct elutq_linear linear = {elutq_matrix_behind(&product->linear->weight, batch->expert), NULL};
        const struct elutq_input input = input_of(routing, batch, tables, x, first->n_columns);
        float *y = product->y + batch->first_slot * product->y_stride;
        const struct elutq_product of_expert = {&linear, y, product->y_stride, false, NULL};
        elutq_multiply_tiles(engine, thread, &input, &batch->rows, &of_expert, item % n_parts * tiles, tiles);
    }
    elutq_pool_barrier(engine->pool, thread);
}

/* Adds up what a row's experts gave, the likeliest first. Items: row, or a part of its columns. */
static void join(const struct elutq_pass *pass, unsigned thread, const struct elutq_layer *layer) {
    const struct elutq_engine *engine = pass->engine;
    const struct elutq_routing *routing = &engine->routing;
    const struct elutq_config *config = &engine->model->config;
    const struct elutq_kernels *kernels = engine->model->kernels;
    const uint32_t n_rows = engine->all.n_rows;
    const uint32_t n_parts = n_rows >= pass->n_threads ? 1 : (pass->n_threads + n_rows - 1) / n_rows;
    const size_t hidden_size = config->hidden_size;
    unsigned item;
    while (elutq_take(pass, thread, n_rows * n_parts, &item)) {
        const size_t row = item / n_parts, part = item % n_parts;
        const size_t first = hidden_size * part / n_parts, n = hidden_size * (part + 1) / n_parts - first;
        const struct elutq_choice *choices = routing->choices + row * config->n_experts_used;
        float *sum = engine->written + row * hidden_size + first;
        memset(sum, 0, n * sizeof *sum);
        for (uint32_t i = 0; i < config->n_experts_used; i++)
            kernels->add_scaled(routing->wide + choices[i].slot * hidden_size + first, choices[i].weight, (uint32_t)n, sum);
        if (layer->shared_gate != NULL)
            kernels->add_scaled(routing->shared + row * hidden_size + first, routing->shared_weights[row], (uint32_t)n, sum);
        if (layer->ffn_post_norm == NULL)
            kernels->add(sum, (uint32_t)n, engine->hidden + row * hidden_size + first);
    }
    elutq_pool_barrier(engine->pool, thread);
}

void elutq_run_experts(struct elutq_pass *pass, unsigned thread, uint32_t i) {
    struct elutq_engine *engine = pass->engine;
    const struct elutq_config *config = &engine->model->config;
    struct elutq_routing *routing = &engine->routing;
    const struct elutq_layer *layer = &engine->model->layers[i];
    const struct elutq_product expand[] = {
        {&layer->expert_gate, routing->gate, config->expert_size, false, NULL},
        {&layer->expert_up, routing->up, config->expert_size, false, NULL},
    };
    const struct elutq_product contract = {&layer->expert_down, routing->wide, config->hidden_size, false, NULL};
    const struct elutq_source normed = {ELUTQ_FROM_NORM, layer->ffn_norm, NULL};
    elutq_prepare_input(pass, thread, &normed, &routing->all, config->hidden_size, expand, 2);
    elutq_mark(pass, thread, ELUTQ_PREPARE);
    score_experts(pass, thread, layer);
    route(pass, thread, layer);
    gather(pass, thread, expand);
    elutq_mark(pass, thread, ELUTQ_ROUTE);
    multiply(pass, thread, expand, 2, routing->gathered, routing->wide);
    elutq_mark(pass, thread, ELUTQ_GATE_UP);
    activate(pass, thread, &contract);
    elutq_mark(pass, thread, ELUTQ_PREPARE);
    multiply(pass, thread, &contract, 1, routing->input.tables, routing->gate);
    join(pass, thread, layer);
}
