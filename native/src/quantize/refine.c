/*
 * One group's step of the refine stage: levels solved for with the codes held, then descent on the codes;
 * elutq_cli/pipeline/compute/loops/refine_group.py is the twin that explains and defines it.
 *
 * A tile of rows is transposed so that its rows lie side by side: every operation is then the same on all lanes, and
 * compilers turn each loop over lanes into a few vector instructions.
 */
#include "elutq_quantize.h"

#include <math.h>
#include <stdbool.h>

#include "even.h"
#include "grid.h"
#include "levels.h"
#include "solve.h"
#include "threads.h"
#include "wide.h"

#define LANES 32 /* GCC unrolls loops of up to 16 rounds away before it would make vectors of them */
#define MAX_BITS ELUTQ_HLQ_MAX_BITS
#define SIZE ELUTQ_HLQ_MAX_GROUP_SIZE

struct refine_task {
    elutq_pool *pool;
    const float *hessian;
    float column_sums[SIZE]; /* of the Hessian */
    double total;            /* of those */
    const float *residual;
    size_t n_rows, row_stride;
    unsigned bits, group_size, n_sweeps;
    double proximity;
    struct grid grid;
    uint16_t *half_scales;
    float *centers;
    uint8_t *codes;
    float *grown;
};

/* A tile of rows; [..][LANES] throughout. Lanes past the last row repeat the first. */
struct tile {
    size_t rows[LANES];
    uint32_t codes[SIZE][LANES];
    float residual[SIZE][LANES]; /* with the levels and codes of the moment */
    float values[SIZE][LANES];   /* dequantized weights of the moment */
    float features[MAX_BITS][SIZE][LANES]; /* what weights have of each unknown but the center */
    float spread[MAX_BITS][SIZE][LANES];   /* the same times the Hessian */
    float levels[MAX_LEVELS][LANES];
    uint16_t half_scales[MAX_BITS][LANES];
    float centers[LANES];
};

_Static_assert(2 * (sizeof(struct tile) + 2 * sizeof(((struct tile *)0)->values)) < ELUTQ_STACK_BYTES,
               "refine_tile's locals are what most of a thread's stack is for");

/* values[i] = the level of codes[i], in each lane. */
WITHIN void look_up(const float levels[][LANES], unsigned n_levels, const uint32_t codes[][LANES], unsigned size,
                    float values[][LANES]) {
    for (unsigned i = 0; i < size; i++) {
        for (unsigned lane = 0; lane < LANES; lane++)
            values[i][lane] = levels[0][lane];
        for (unsigned code = 1; code < n_levels; code++)
            for (unsigned lane = 0; lane < LANES; lane++)
                values[i][lane] = codes[i][lane] == code ? levels[code][lane] : values[i][lane];
    }
}

WITHIN void expand_tile_levels(struct tile *tile, unsigned bits) {
    for (unsigned lane = 0; lane < LANES; lane++) {
        uint16_t half_scales[MAX_BITS];
        float levels[MAX_LEVELS];
        for (unsigned plane = 0; plane < bits; plane++)
            half_scales[plane] = tile->half_scales[plane][lane];
        expand_levels(half_scales, tile->centers[lane], bits, levels);
        for (unsigned code = 0; code < 1u << bits; code++)
            tile->levels[code][lane] = levels[code];
    }
}

WITHIN void load_tile(const struct refine_task *task, size_t first_row, struct tile *tile) {
    const unsigned size = task->group_size, bits = task->bits;
    const size_t left = task->n_rows - first_row;
    for (unsigned lane = 0; lane < LANES; lane++) {
        const size_t row = first_row + (lane < left ? lane : 0);
        tile->rows[lane] = row;
        tile->centers[lane] = task->centers[row];
        for (unsigned plane = 0; plane < bits; plane++)
            tile->half_scales[plane][lane] = task->half_scales[row * bits + plane];
        for (unsigned i = 0; i < size; i++) {
            tile->codes[i][lane] = task->codes[row * size + i];
            tile->residual[i][lane] = task->residual[row * task->row_stride + i];
        }
    }
    if (is_even(task->grid)) {
        const float last = (float)((1u << bits) - 1);
        for (unsigned i = 0; i < size; i++)
            for (unsigned lane = 0; lane < LANES; lane++)
                tile->features[0][i][lane] = 2.0f * (float)tile->codes[i][lane] - last;
    } else {
        for (unsigned plane = 0; plane < bits; plane++)
            for (unsigned i = 0; i < size; i++)
                for (unsigned lane = 0; lane < LANES; lane++)
                    tile->features[plane][i][lane] = tile->codes[i][lane] >> plane & 1 ? 1.0f : -1.0f;
    }
    expand_tile_levels(tile, bits);
}

/* Unknowns of a group's levels beside the center: all half scales, or of an even kind the first. */
WITHIN unsigned count_scales(const struct refine_task *task) {
    return is_even(task->grid) ? 1 : task->bits;
}

/* spread[j] = sum over i of feature[i] * hessian[i][j], in the order of i. */
WITHIN void spread_feature(const float feature[][LANES], const float *hessian, unsigned size, float spread[][LANES]) {
    for (unsigned j = 0; j < size; j += 4) {
        float sums[4][LANES] = {{0}};
        for (unsigned i = 0; i < size; i++)
            for (unsigned part = 0; part < 4; part++)
                for (unsigned lane = 0; lane < LANES; lane++)
                    sums[part][lane] += hessian[(size_t)i * size + j + part] * feature[i][lane];
        memcpy(spread[j], sums, sizeof sums);
    }
}

/* total += sum over i of a[i] * b[i], or of a[i] where b is NULL, in the order of i. */
WITHIN void add_products(const float a[][LANES], const float b[][LANES], unsigned size, double *total) {
    for (unsigned lane = 0; lane < LANES; lane++)
        total[lane] = 0.0;
    for (unsigned i = 0; i < size; i++)
        for (unsigned lane = 0; lane < LANES; lane++)
            total[lane] += (double)(b == NULL ? a[i][lane] : a[i][lane] * b[i][lane]);
}

/*
 * Each lane's least squares change of half scales and center, added to them: theta[scales + 1]. matrix: the lower triangle of
 * the normal equations.
 */
WITHIN void solve_levels(const struct refine_task *task, struct tile *tile, double matrix[][MAX_UNKNOWNS][LANES],
                         double theta[][LANES]) {
    const unsigned n_scales = count_scales(task), size = task->group_size;
    for (unsigned i = 0; i < n_scales; i++) {
        spread_feature(tile->features[i], task->hessian, size, tile->spread[i]);
        for (unsigned j = 0; j <= i; j++)
            add_products(tile->spread[i], tile->features[j], size, matrix[i][j]);
        add_products(tile->spread[i], NULL, size, matrix[n_scales][i]);
        add_products(tile->features[i], tile->residual, size, theta[i]);
    }
    add_products(tile->residual, NULL, size, theta[n_scales]);
    for (unsigned lane = 0; lane < LANES; lane++) {
        double own[MAX_UNKNOWNS][MAX_UNKNOWNS], step[MAX_UNKNOWNS];
        matrix[n_scales][n_scales][lane] = task->total;
        for (unsigned i = 0; i <= n_scales; i++) {
            step[i] = theta[i][lane];
            for (unsigned j = 0; j <= i; j++)
                own[i][j] = matrix[i][j][lane];
            own[i][i] *= 1.0 + task->proximity;
        }
        solve(own, step, n_scales + 1);
        for (unsigned i = 0; i < n_scales; i++)
            theta[i][lane] = step[i] + (double)elutq_half_to_float(tile->half_scales[i][lane]);
        theta[n_scales][lane] = step[n_scales] + (double)tile->centers[lane];
    }
}

/*
 * Rounds a lane's solution to what can be stored. moved[scales + 1]: by how much half scales and center grew; where one would
 * be negative the levels are the same under codes with planes flipped, which are returned.
 */
WITHIN uint32_t round_lane(const struct refine_task *task, struct tile *tile, double matrix[][MAX_UNKNOWNS][LANES],
                           double theta[][LANES], unsigned lane, float moved[][LANES]) {
    const unsigned bits = task->bits, n_scales = count_scales(task);
    const float old_center = tile->centers[lane];
    uint32_t flipped = 0;
    if (is_even(task->grid)) {
        const float old_scale = elutq_half_to_float(tile->half_scales[0][lane]);
        const struct even_levels found = round_even(theta[0][lane], theta[1][lane], matrix[0][0][lane], matrix[1][0][lane],
                                                    matrix[1][1][lane], task->grid);
        uint16_t half_scales[MAX_BITS];
        spread_even(fabsf(found.first), bits, half_scales);
        for (unsigned plane = 0; plane < bits; plane++)
            tile->half_scales[plane][lane] = half_scales[plane];
        tile->centers[lane] = found.center;
        moved[0][lane] = found.first - old_scale;
        flipped = theta[0][lane] < 0.0 ? (1u << bits) - 1 : 0;
    } else {
        tile->centers[lane] = round_center(theta[bits][lane], task->grid);
        for (unsigned plane = 0; plane < bits; plane++) {
            const bool negative = theta[plane][lane] < 0.0;
            const float old_scale = elutq_half_to_float(tile->half_scales[plane][lane]);
            tile->half_scales[plane][lane] = round_half_scale(fabs(theta[plane][lane]), task->grid);
            const float scale = elutq_half_to_float(tile->half_scales[plane][lane]);
            moved[plane][lane] = (negative ? -scale : scale) - old_scale;
            flipped |= (uint32_t)negative << plane;
        }
    }
    moved[n_scales][lane] = tile->centers[lane] - old_center;
    return flipped;
}

/* Solves for the levels, rounds them and takes what the weights grew by out of the residual. */
WITHIN void move_levels(const struct refine_task *task, struct tile *tile) {
    const unsigned n_scales = count_scales(task), size = task->group_size;
    double matrix[MAX_UNKNOWNS][MAX_UNKNOWNS][LANES], theta[MAX_UNKNOWNS][LANES];
    float moved[MAX_UNKNOWNS][LANES];
    uint32_t flipped[LANES];
    solve_levels(task, tile, matrix, theta);
    for (unsigned lane = 0; lane < LANES; lane++)
        flipped[lane] = round_lane(task, tile, matrix, theta, lane, moved);
    for (unsigned i = 0; i < size; i++) {
        for (unsigned lane = 0; lane < LANES; lane++) {
            tile->codes[i][lane] ^= flipped[lane];
            tile->residual[i][lane] -= moved[n_scales][lane] * task->column_sums[i];
        }
        for (unsigned scale = 0; scale < n_scales; scale++)
            for (unsigned lane = 0; lane < LANES; lane++)
                tile->residual[i][lane] -= moved[scale][lane] * tile->spread[scale][i][lane];
    }
    expand_tile_levels(tile, task->bits);
}

/* Gives each lane's weight of a column the code that lowers the error most; step: by how much it grew. False: none did. */
WITHIN bool choose_codes(struct tile *tile, unsigned column, unsigned n_levels, float curvature, float step[LANES]) {
    float gain[LANES];
    uint32_t any = 0;
    for (unsigned lane = 0; lane < LANES; lane++)
        gain[lane] = step[lane] = 0.0f;
    for (unsigned code = 0; code < n_levels; code++) {
        for (unsigned lane = 0; lane < LANES; lane++) {
            const float change = tile->levels[code][lane] - tile->values[column][lane];
            const float gained = change * (2.0f * tile->residual[column][lane] - change * curvature);
            tile->codes[column][lane] = gained > gain[lane] ? code : tile->codes[column][lane];
            step[lane] = gained > gain[lane] ? change : step[lane];
            gain[lane] = gained > gain[lane] ? gained : gain[lane];
        }
    }
    for (unsigned lane = 0; lane < LANES; lane++)
        any |= gain[lane] > 0.0f;
    return any;
}

WITHIN void descend(const struct refine_task *task, struct tile *tile) {
    const unsigned size = task->group_size, n_levels = 1u << task->bits;
    bool moves = true;
    look_up(tile->levels, n_levels, tile->codes, size, tile->values);
    for (unsigned sweep = 0; sweep < task->n_sweeps && moves; sweep++) {
        moves = false;
        for (unsigned column = 0; column < size; column++) {
            const float *hessian_row = task->hessian + (size_t)column * size;
            float step[LANES];
            if (!choose_codes(tile, column, n_levels, hessian_row[column], step))
                continue;
            moves = true;
            for (unsigned i = 0; i < size; i++)
                for (unsigned lane = 0; lane < LANES; lane++)
                    tile->residual[i][lane] -= step[lane] * hessian_row[i];
            look_up(tile->levels, n_levels, &tile->codes[column], 1, &tile->values[column]);
        }
    }
}

WIDE static void refine_tile(const struct refine_task *task, size_t first_row) {
    const unsigned size = task->group_size, bits = task->bits;
    const size_t left = task->n_rows - first_row, n_rows = left < LANES ? left : LANES;
    struct tile tile;
    float values[SIZE][LANES], residual[SIZE][LANES]; /* as they were */
    double gains[LANES];
    load_tile(task, first_row, &tile);
    look_up(tile.levels, 1u << bits, tile.codes, size, values);
    memcpy(residual, tile.residual, size * sizeof residual[0]);
    move_levels(task, &tile);
    descend(task, &tile);
    for (unsigned lane = 0; lane < LANES; lane++)
        gains[lane] = 0.0;
    for (unsigned i = 0; i < size; i++) {
        for (unsigned lane = 0; lane < LANES; lane++) {
            const float step = tile.values[i][lane] - values[i][lane];
            gains[lane] += (double)step * (double)(residual[i][lane] + tile.residual[i][lane]);
        }
    }
    for (unsigned lane = 0; lane < n_rows; lane++) {
        const size_t row = tile.rows[lane];
        memset(task->grown + row * size, 0, size * sizeof *task->grown);
        if (!(gains[lane] > 0.0))
            continue;
        task->centers[row] = tile.centers[lane];
        for (unsigned plane = 0; plane < bits; plane++)
            task->half_scales[row * bits + plane] = tile.half_scales[plane][lane];
        for (unsigned i = 0; i < size; i++) {
            task->codes[row * size + i] = (uint8_t)tile.codes[i][lane];
            task->grown[row * size + i] = tile.values[i][lane] - values[i][lane];
        }
    }
}

static void refine_rows(void *context, unsigned thread, unsigned n_threads) {
    const struct refine_task *task = context;
    unsigned n_items = (unsigned)((task->n_rows + LANES - 1) / LANES), item;
    (void)n_threads;
    while (elutq_pool_take(task->pool, thread, n_items, &item))
        refine_tile(task, (size_t)item * LANES);
}

int elutq_refine(elutq_pool *pool, const float *hessian, const float *residual, size_t n_rows, size_t row_stride,
                 unsigned bits, unsigned group_size, unsigned n_sweeps, double proximity, unsigned kind,
                 unsigned exponent, uint16_t *half_scales, float *centers, uint8_t *codes, float *grown) {
    if (bits < ELUTQ_HLQ_MIN_BITS || bits > ELUTQ_HLQ_MAX_BITS || group_size == 0 || group_size > ELUTQ_HLQ_MAX_GROUP_SIZE ||
        group_size % 4 != 0 || row_stride < group_size || !(proximity > 0.0) || n_rows > UINT32_MAX ||
        !is_grid((struct grid){kind, exponent}, bits))
        return ELUTQ_ERROR_ARGUMENT;
    for (size_t i = 0; i < n_rows * group_size; i++) {
        if (codes[i] >> bits)
            return ELUTQ_ERROR_ARGUMENT;
    }
    struct refine_task task = {
        .pool = pool, .hessian = hessian, .residual = residual, .n_rows = n_rows, .row_stride = row_stride, .bits = bits,
        .group_size = group_size, .n_sweeps = n_sweeps, .proximity = proximity, .grid = {kind, exponent},
        .half_scales = half_scales, .centers = centers, .codes = codes, .grown = grown,
    };
    for (unsigned i = 0; i < group_size; i++)
        for (unsigned j = 0; j < group_size; j++)
            task.column_sums[j] += hessian[(size_t)i * group_size + j];
    for (unsigned j = 0; j < group_size; j++)
        task.total += (double)task.column_sums[j];
    return elutq_pool_run(pool, refine_rows, &task);
}
