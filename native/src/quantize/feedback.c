/*
 * The inner loop of error feedback; elutq_cli/pipeline/compute/loops/feedback_columns.py is the twin that explains
 * and defines it.
 *
 * A tile of rows is transposed so that its rows lie side by side: every operation is then the same on all lanes, and
 * compilers turn each loop over lanes into a few vector instructions.
 */
#include "elutq_quantize.h"

#include <math.h>

#include "levels.h"
#include "threads.h"
#include "wide.h"

#define LANES 32 /* GCC unrolls loops of up to 16 rounds away before it would make vectors of them */

struct feedback_task {
    elutq_pool *pool;
    const float *weights;
    size_t n_rows, row_stride;
    unsigned bits, group_size;
    const float *factor;
    size_t factor_stride;
    const uint16_t *half_scales;
    const float *centers;
    uint8_t *codes;
    float *errors;
};

/* Rounds each lane's weight to the nearest of its levels [n_levels][LANES]; of equally near ones, to the lowest code. */
WITHIN void round_lanes(const float *weight, float levels[][LANES], unsigned n_levels, float *rounded,
                               uint32_t *code) {
    float distance[LANES];
    for (unsigned lane = 0; lane < LANES; lane++) {
        distance[lane] = fabsf(weight[lane] - levels[0][lane]);
        rounded[lane] = levels[0][lane];
        code[lane] = 0;
    }
    for (unsigned candidate = 1; candidate < n_levels; candidate++) {
        for (unsigned lane = 0; lane < LANES; lane++) {
            float level = levels[candidate][lane], other = fabsf(weight[lane] - level);
            code[lane] = other < distance[lane] ? candidate : code[lane];
            rounded[lane] = other < distance[lane] ? level : rounded[lane];
            distance[lane] = other < distance[lane] ? other : distance[lane];
        }
    }
}

WIDE static void feedback_tile(const struct feedback_task *task, size_t first_row) {
    float weights[ELUTQ_HLQ_MAX_GROUP_SIZE][LANES], levels[MAX_LEVELS][LANES];
    size_t rows_left = task->n_rows - first_row, n_rows = rows_left < LANES ? rows_left : LANES;
    unsigned size = task->group_size, bits = task->bits;
    for (unsigned lane = 0; lane < LANES; lane++) {
        size_t row = first_row + (lane < n_rows ? lane : 0); /* spare lanes repeat the first row */
        float row_levels[MAX_LEVELS];
        expand_levels(task->half_scales + row * bits, task->centers[row], bits, row_levels);
        for (unsigned code = 0; code < 1u << bits; code++)
            levels[code][lane] = row_levels[code];
        for (unsigned column = 0; column < size; column++)
            weights[column][lane] = task->weights[row * task->row_stride + column];
    }
    for (unsigned column = 0; column < size; column++) {
        const float *factor = task->factor + column * task->factor_stride;
        float rounded[LANES], error[LANES];
        uint32_t code[LANES];
        round_lanes(weights[column], levels, 1u << bits, rounded, code);
        for (unsigned lane = 0; lane < LANES; lane++)
            error[lane] = (weights[column][lane] - rounded[lane]) / factor[column];
        for (unsigned right = column + 1; right < size; right++) {
            float share = factor[right];
            for (unsigned lane = 0; lane < LANES; lane++)
                weights[right][lane] -= error[lane] * share;
        }
        for (size_t lane = 0; lane < n_rows; lane++) {
            task->codes[(first_row + lane) * size + column] = (uint8_t)code[lane];
            task->errors[(first_row + lane) * size + column] = error[lane];
        }
    }
}

static void feedback_rows(void *context, unsigned thread, unsigned n_threads) {
    const struct feedback_task *task = context;
    unsigned n_items = (unsigned)((task->n_rows + LANES - 1) / LANES), item;
    (void)n_threads;
    while (elutq_pool_take(task->pool, thread, n_items, &item))
        feedback_tile(task, (size_t)item * LANES);
}

int elutq_feedback(elutq_pool *pool, const float *weights, size_t n_rows, size_t row_stride, unsigned bits,
                   unsigned group_size, const float *factor, size_t factor_stride, const uint16_t *half_scales,
                   const float *centers, uint8_t *codes, float *errors) {
    if (bits < ELUTQ_HLQ_MIN_BITS || bits > ELUTQ_HLQ_MAX_BITS || group_size == 0 || group_size > ELUTQ_HLQ_MAX_GROUP_SIZE ||
        row_stride < group_size || factor_stride < group_size || n_rows > UINT32_MAX)
        return ELUTQ_ERROR_ARGUMENT;
    struct feedback_task task = {pool,   weights,       n_rows,      row_stride, bits,  group_size,
                                 factor, factor_stride, half_scales, centers,    codes, errors};
    return elutq_pool_run(pool, feedback_rows, &task);
}
