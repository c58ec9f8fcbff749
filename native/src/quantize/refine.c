/*
 * Coordinate descent on the codes of a matrix; elutq_cli/pipeline/refine.py is the twin that explains and defines it.
 *
 * A tile of rows goes through the columns together, so that one row of the Hessian serves all of them while it is in L1.
 */
#include "elutq_quantize.h"

#include <stdbool.h>

#include "levels.h"
#include "threads.h"

#define TILE 16

struct descend_task {
    elutq_pool *pool;
    const float *hessian;
    size_t n_rows, n_columns;
    unsigned bits, group_size, n_sweeps;
    const uint16_t *half_scales, *centers;
    uint8_t *codes;
    float *residual;
};

/* Gives a weight the code that lowers the error most; returns by how much the weight grew, 0 when none lowers it. */
static inline float best_move(const float *levels, unsigned n_levels, float slope, float curvature, uint8_t *code) {
    float present = levels[*code], best_gain = 0.0f, best_step = 0.0f;
    for (unsigned candidate = 0; candidate < n_levels; candidate++) {
        float step = levels[candidate] - present, gain = step * (2.0f * slope - step * curvature);
        if (gain > best_gain) {
            best_gain = gain;
            best_step = step;
            *code = (uint8_t)candidate;
        }
    }
    return best_step;
}

static void subtract_scaled(float *restrict residual, const float *restrict row, float scale, size_t n) {
    for (size_t i = 0; i < n; i++)
        residual[i] -= scale * row[i];
}

/* One sweep over the columns of the rows listed; marks in `moved` those of which a code changed. */
static void sweep_rows(const struct descend_task *task, const size_t *rows, unsigned n_rows, bool *moved) {
    size_t n = task->n_columns, n_groups = n / task->group_size;
    unsigned bits = task->bits;
    for (size_t group = 0; group < n_groups; group++) {
        float levels[TILE][MAX_LEVELS];
        for (unsigned i = 0; i < n_rows; i++) {
            size_t place = rows[i] * n_groups + group;
            expand_levels(task->half_scales + place * bits, task->centers[place], bits, levels[i]);
        }
        for (size_t column = group * task->group_size; column < (group + 1) * task->group_size; column++) {
            const float *hessian_row = task->hessian + column * n;
            for (unsigned i = 0; i < n_rows; i++) {
                float *residual = task->residual + rows[i] * n;
                float step = best_move(levels[i], 1u << bits, residual[column], hessian_row[column],
                                       &task->codes[rows[i] * n + column]);
                if (step != 0.0f) {
                    subtract_scaled(residual, hessian_row, step, n);
                    moved[i] = true;
                }
            }
        }
    }
}

static void descend_tile(const struct descend_task *task, size_t first_row) {
    size_t rows[TILE], rows_left = task->n_rows - first_row;
    unsigned n_rows = rows_left < TILE ? (unsigned)rows_left : TILE;
    for (unsigned i = 0; i < n_rows; i++)
        rows[i] = first_row + i;
    for (unsigned sweep = 0; sweep < task->n_sweeps && n_rows > 0; sweep++) {
        bool moved[TILE] = {false};
        unsigned n_moved = 0;
        sweep_rows(task, rows, n_rows, moved);
        for (unsigned i = 0; i < n_rows; i++) { /* a row that did not move will not move again */
            if (moved[i])
                rows[n_moved++] = rows[i];
        }
        n_rows = n_moved;
    }
}

static void descend_rows(void *context, unsigned thread, unsigned n_threads) {
    const struct descend_task *task = context;
    unsigned n_items = (unsigned)((task->n_rows + TILE - 1) / TILE), item;
    (void)n_threads;
    while (elutq_pool_take(task->pool, thread, n_items, &item))
        descend_tile(task, (size_t)item * TILE);
}

int elutq_descend(elutq_pool *pool, const float *hessian, size_t n_rows, size_t n_columns, unsigned bits,
                  unsigned group_size, unsigned n_sweeps, const uint16_t *half_scales, const uint16_t *centers,
                  uint8_t *codes, float *residual) {
    if (bits < ELUTQ_HLQ_MIN_BITS || bits > ELUTQ_HLQ_MAX_BITS || group_size == 0 || group_size > ELUTQ_MAX_GROUP_SIZE ||
        n_columns % group_size != 0 || n_rows > UINT32_MAX)
        return ELUTQ_ERROR_ARGUMENT;
    for (size_t i = 0; i < n_rows * n_columns; i++) {
        if (codes[i] >> bits)
            return ELUTQ_ERROR_ARGUMENT;
    }
    struct descend_task task = {pool,     hessian,     n_rows,  n_columns, bits,    group_size,
                                n_sweeps, half_scales, centers, codes,     residual};
    elutq_pool_run(pool, descend_rows, &task);
    return ELUTQ_OK;
}
