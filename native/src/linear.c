/* Linear layers: their inputs and their products, over rows that may be anybody's. */
#include <string.h>

#include "hlq_block.h"
#include "pass.h"

static void read_source(const struct elutq_engine *engine, const struct elutq_source *source, uint32_t n_columns, uint32_t i,
                        uint32_t first, uint32_t end, float *x) {
    const struct elutq_config *config = &engine->model->config;
    const struct elutq_kernels *kernels = engine->model->kernels;
    const size_t row = source->rows != NULL ? source->rows[i] : i;
    if (source->kind == ELUTQ_FROM_NORM) {
        const float *hidden = engine->hidden + row * config->hidden_size;
        if (source->norm == NULL) {
            memcpy(x + first, hidden + first, (end - first) * sizeof *x);
            return;
        }
        float scale = kernels->rms_scale(hidden, config->hidden_size, config->rms_norm_eps);
        kernels->scale_by(hidden + first, scale, source->norm + first, end - first, x + first);
    } else if (source->kind == ELUTQ_FROM_ATTENTION) {
        memcpy(x + first, engine->attended + row * n_columns + first, (end - first) * sizeof *x);
    } else {
        size_t start = row * n_columns + first;
        (config->gelu ? kernels->geglu : kernels->swiglu)(engine->gate + start, engine->up + start, end - first, x + first);
    }
}

void elutq_find_forms(const struct elutq_batch *batch, const struct elutq_product *products, unsigned n_products,
                      struct elutq_forms forms[ELUTQ_GROUP_SIZES]) {
    for (uint32_t i = 0; i < ELUTQ_GROUP_SIZES; i++)
        forms[i] = (struct elutq_forms){0, batch->n_rows};
    for (unsigned i = 0; i < n_products; i++) {
        const struct elutq_matrix *weight = &products[i].linear->weight;
        if (weight->bits == 16)
            continue;
        struct elutq_forms *of_size = &forms[elutq_group_index(weight->group_size)];
        const uint32_t n_levels = batch->n_levels[weight->bits];
        of_size->levels = n_levels > of_size->levels ? n_levels : of_size->levels;
        of_size->tables = n_levels < of_size->tables ? n_levels : of_size->tables;
    }
}

void elutq_round_row(const struct elutq_kernels *kernels, const struct elutq_forms forms[ELUTQ_GROUP_SIZES],
                     struct elutq_input *input, const float *x, uint32_t n_columns, uint32_t row, uint32_t first,
                     uint32_t end) {
    for (uint32_t i = 0; i < ELUTQ_GROUP_SIZES; i++) {
        const uint32_t group_size = 32u << i;
        if (row < forms[i].levels)
            kernels->build_levels(x, n_columns, group_size, row, first / group_size, end / group_size, &input->levels[i]);
        if (row >= forms[i].tables)
            kernels->build_tables(x, group_size, first / group_size, end / group_size, &input->tables[i][row]);
    }
}

uint64_t elutq_part_start(uint64_t n_columns, uint32_t line_columns, unsigned n_parts, unsigned part) {
    const uint64_t n_lines = (n_columns + line_columns - 1) / line_columns, start = n_lines * part / n_parts * line_columns;
    return start < n_columns ? start : n_columns;
}

/* Reads a source's columns first .. end - 1 of a row and rounds them. */
static void prepare_columns(struct elutq_engine *engine, const struct elutq_source *source,
                            const struct elutq_forms forms[ELUTQ_GROUP_SIZES], uint32_t n_columns, uint32_t row, uint32_t first,
                            uint32_t end) {
    float *x = engine->input.x + (size_t)row * n_columns;
    read_source(engine, source, n_columns, row, first, end, x);
    elutq_round_row(engine->model->kernels, forms, &engine->input, x, n_columns, row, first, end);
}

/* The same of the first n_rows rows, block by block: columns of all blocks, one behind the other. */
static void prepare_blocks(struct elutq_engine *engine, const struct elutq_source *source,
                           const struct elutq_forms forms[ELUTQ_GROUP_SIZES], uint32_t n_columns, uint32_t n_rows,
                           uint64_t first, uint64_t end) {
    while (first < end) {
        const uint32_t first_row = (uint32_t)(first / n_columns) * ELUTQ_LEVELS_TOKENS, column = (uint32_t)(first % n_columns);
        const uint32_t n = end - first < n_columns - column ? (uint32_t)(end - first) : n_columns - column;
        for (uint32_t row = first_row; row < first_row + ELUTQ_LEVELS_TOKENS && row < n_rows; row++)
            prepare_columns(engine, source, forms, n_columns, row, column, column + n);
        first += n;
    }
}

/* The largest groups of those rows that some matrix takes as levels, and how many rows these are. */
static uint32_t largest_group(const struct elutq_forms forms[ELUTQ_GROUP_SIZES], uint32_t *n_level_rows) {
    uint32_t largest = 32;
    *n_level_rows = 0;
    for (uint32_t i = 0; i < ELUTQ_GROUP_SIZES; i++)
        *n_level_rows = forms[i].levels > *n_level_rows ? forms[i].levels : *n_level_rows;
    for (uint32_t i = 0; i < ELUTQ_GROUP_SIZES; i++)
        if (forms[i].levels > 0 || forms[i].tables < *n_level_rows)
            largest = 32u << i;
    return largest;
}

/* Items: of levels, blocks or parts of their columns; then other rows, many of them whole, few by columns. */
void elutq_prepare_input(const struct elutq_pass *pass, unsigned thread, const struct elutq_source *source,
                         const struct elutq_batch *batch, uint32_t n_columns, const struct elutq_product *products,
                         unsigned n_products) {
    struct elutq_engine *engine = pass->engine;
    struct elutq_forms forms[ELUTQ_GROUP_SIZES];
    elutq_find_forms(batch, products, n_products, forms);
    uint32_t n_level_rows;
    const uint32_t line = ELUTQ_LEVELS_LINE_GROUPS * largest_group(forms, &n_level_rows), n_threads = pass->n_threads;
    const uint32_t n_blocks = (n_level_rows + ELUTQ_LEVELS_TOKENS - 1) / ELUTQ_LEVELS_TOKENS;
    const uint32_t n_block_items = n_blocks == 0 || n_blocks >= n_threads ? n_blocks : n_threads;
    const uint32_t n_parts = batch->n_rows >= n_threads ? 1 : (n_threads + batch->n_rows - 1) / batch->n_rows;
    const uint64_t all_columns = (uint64_t)n_blocks * n_columns;
    unsigned item;
    if (thread == 0)
        engine->input.n_columns = n_columns;
    while (elutq_take(pass, thread, n_block_items + (batch->n_rows - n_level_rows) * n_parts, &item)) {
        if (item < n_block_items) {
            prepare_blocks(engine, source, forms, n_columns, n_level_rows,
                           elutq_part_start(all_columns, line, n_block_items, item),
                           elutq_part_start(all_columns, line, n_block_items, item + 1));
            continue;
        }
        const uint32_t row = n_level_rows + (item - n_block_items) / n_parts, part = (item - n_block_items) % n_parts;
        const uint32_t first = (uint32_t)elutq_part_start(n_columns, ELUTQ_TABLES_LINE_COLUMNS, n_parts, part);
        const uint32_t end = (uint32_t)elutq_part_start(n_columns, ELUTQ_TABLES_LINE_COLUMNS, n_parts, part + 1);
        if (first < end)
            prepare_columns(engine, source, forms, n_columns, row, first, end);
    }
    elutq_pool_barrier(engine->pool, thread);
}

static void multiply_part(const struct elutq_kernels *kernels, const struct elutq_input *input,
                          const struct elutq_matrix *weight, const struct elutq_batch *batch, struct elutq_part part,
                          float *y) {
    if (weight->bits == 16) {
        kernels->gemm_f16(weight, input->x, input->n_columns, batch->n_rows, part, y);
        return;
    }
    const uint32_t index = elutq_group_index(weight->group_size);
    const uint32_t n_levels = batch->n_levels[weight->bits], n_tables = batch->n_rows - n_levels;
    float *after = y + (size_t)n_levels * ELUTQ_CHUNK_STRIDE;
    if (n_levels > 0)
        kernels->gemm_levels(weight, &input->levels[index], n_levels, part, y);
    if (n_tables == 1)
        kernels->gemv(weight, input->tables[index] + n_levels, part, after);
    else if (n_tables > 1)
        kernels->gemm_tables(weight, input->tables[index] + n_levels, n_tables, part, after);
}

/* Adds the bias to a part's results and puts them where they go. */
static void put_part(const struct elutq_kernels *kernels, const struct elutq_product *product, uint32_t n_batch,
                     uint32_t first, uint32_t n_rows, float *results) {
    for (uint32_t row = 0; row < n_batch; row++, results += ELUTQ_CHUNK_STRIDE) {
        float *y = (product->y != NULL ? product->y + row * product->y_stride : product->ys[row]) + first;
        if (product->linear->bias != NULL)
            kernels->add(product->linear->bias + first, n_rows, results);
        if (product->accumulate)
            kernels->add(results, n_rows, y);
        else
            memcpy(y, results, n_rows * sizeof *y);
    }
}

/*
 * Tiles of a part come from memory at two thirds of the speed of a whole superblock (Zen 5, one thread: 24 of 35 GB/s), which
 * matters to few threads; many share what the memory gives, and wait for the busiest.
 */
uint32_t elutq_tiles_per_item(uint32_t n_tiles, unsigned n_threads) {
    const uint32_t percent = n_threads <= 4 ? 150 : 115;
    uint32_t tiles = ELUTQ_SUPERBLOCK_TILES;
    for (; tiles > 1; tiles /= 2) {
        const uint32_t n_items = (n_tiles + tiles - 1) / tiles, most = (n_items + n_threads - 1) / n_threads;
        const uint64_t busiest = most * tiles < n_tiles ? most * tiles : n_tiles;
        if (busiest * n_threads * 100 <= (uint64_t)n_tiles * percent)
            break;
    }
    return tiles;
}

static uint32_t n_parts(const struct elutq_product *product, uint32_t tiles) {
    return (elutq_matrix_tiles(&product->linear->weight) + tiles - 1) / tiles;
}

void elutq_multiply_tiles(const struct elutq_engine *engine, unsigned thread, const struct elutq_input *input,
                          const struct elutq_batch *batch, const struct elutq_product *product, uint32_t tile,
                          uint32_t n_tiles) {
    const struct elutq_matrix *weight = &product->linear->weight;
    const uint32_t tiles_left = elutq_matrix_tiles(weight) - tile;
    const struct elutq_part part = {tile, tiles_left < n_tiles ? tiles_left : n_tiles};
    const uint32_t first = tile * ELUTQ_TILE_ROWS, left = weight->n_rows - first, rows = part.n_tiles * ELUTQ_TILE_ROWS;
    float *scratch = engine->chunks + (size_t)thread * engine->max_rows * ELUTQ_CHUNK_STRIDE;
    multiply_part(engine->model->kernels, input, weight, batch, part, scratch);
    put_part(engine->model->kernels, product, batch->n_rows, first, left < rows ? left : rows, scratch);
}

void elutq_multiply(const struct elutq_pass *pass, unsigned thread, const struct elutq_batch *batch,
                    const struct elutq_product *products, unsigned n_products) {
    struct elutq_engine *engine = pass->engine;
    uint32_t n_tiles = 0;
    for (unsigned i = 0; i < n_products; i++)
        n_tiles += elutq_matrix_tiles(&products[i].linear->weight);
    const uint32_t tiles = elutq_tiles_per_item(n_tiles, pass->n_threads);
    unsigned n_items = 0, item;
    for (unsigned i = 0; i < n_products; i++)
        n_items += n_parts(&products[i], tiles);
    while (elutq_take(pass, thread, n_items, &item)) {
        const struct elutq_product *product = products;
        while (item >= n_parts(product, tiles))
            item -= n_parts(product++, tiles);
        elutq_multiply_tiles(engine, thread, &engine->input, batch, product, item * tiles, tiles);
    }
    elutq_pool_barrier(engine->pool, thread);
}
