/*
 * Levels of a group by alternating optimisation; elutq_cli/pipeline/compute/loops/fit_groups.py is the twin that
 * explains and defines it.
 *
 * A group's weights are sorted once. Any assignment of nearest levels is then a list of bounds in the sorted weights, and
 * with running sums of importance and importance * weight one round costs a few binary searches and a small solve,
 * whatever the group's size.
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

#define ROWS_PER_ITEM 8

struct fit_task {
    elutq_pool *pool;
    const float *weights;
    size_t n_rows, n_columns, row_stride;
    unsigned bits, group_size;
    const float *importance;
    const double *starts;
    unsigned n_starts, n_iterations;
    double proximity;
    struct grid grid;
    uint16_t *half_scales;
    float *centers;
    uint8_t *codes;
};

_Static_assert((ELUTQ_HLQ_MAX_GROUP_SIZE & (ELUTQ_HLQ_MAX_GROUP_SIZE - 1)) == 0, "keys are padded to a power of two");

struct sorted_group {
    unsigned size;
    double values[ELUTQ_HLQ_MAX_GROUP_SIZE];     /* weights less the middle, ascending */
    double mass[ELUTQ_HLQ_MAX_GROUP_SIZE + 1];   /* running sum of importance */
    double moment[ELUTQ_HLQ_MAX_GROUP_SIZE + 1]; /* running sum of importance * value */
    double energy;                           /* sum of importance * value^2 */
    double middle;                           /* half-way between the smallest and the largest weight */
};

/* Levels of a group relative to its middle: h_1 .. h_bits, c. */
struct solution {
    double theta[MAX_UNKNOWNS];
    double error;
};

/* Orders like the float, then like the column, so that the sort is stable whatever its algorithm. */
static uint64_t sort_key(float weight, unsigned column) {
    uint32_t word;
    weight += 0.0f; /* -0 sorts as 0 */
    memcpy(&word, &weight, sizeof word);
    word ^= word >> 31 ? 0xffffffffu : 0x80000000u;
    return (uint64_t)word << 32 | column;
}

/*
 * Merges two ascending runs of `length` keys, src[0 .. length) and src[length .. 2 * length), from both ends at once: each
 * end is done after `length` steps without looking whether a run is used up, and no branch depends on the keys.
 */
static void merge_runs(const uint64_t *src, unsigned length, uint64_t *out) {
    unsigned left = 0, right = length, left_end = length - 1, right_end = 2 * length - 1;
    for (unsigned i = 0; i < length; i++) {
        unsigned take_right = src[right] < src[left], take_left = src[left_end] > src[right_end];
        out[i] = src[take_right ? right : left];
        right += take_right;
        left += !take_right;
        out[2 * length - 1 - i] = src[take_left ? left_end : right_end];
        left_end -= take_left;
        right_end -= !take_left;
    }
}

/* Sorts n keys, n a power of two; returns which of the two buffers holds the result. */
static uint64_t *sort_keys(uint64_t *keys, uint64_t *scratch, unsigned n) {
    for (unsigned length = 1; length < n; length *= 2) {
        for (unsigned first = 0; first < n; first += 2 * length)
            merge_runs(keys + first, length, scratch + first);
        uint64_t *sorted = scratch;
        scratch = keys;
        keys = sorted;
    }
    return keys;
}

static void sort_group(const float *weights, const float *importance, unsigned size, struct sorted_group *group) {
    uint64_t buffers[2][ELUTQ_HLQ_MAX_GROUP_SIZE];
    unsigned n_keys = 1;
    while (n_keys < size)
        n_keys *= 2;
    for (unsigned i = 0; i < n_keys; i++)
        buffers[0][i] = i < size ? sort_key(weights[i], i) : UINT64_MAX;
    const uint64_t *keys = sort_keys(buffers[0], buffers[1], n_keys);
    group->size = size;
    group->middle = ((double)weights[(uint32_t)keys[0]] + (double)weights[(uint32_t)keys[size - 1]]) * 0.5;
    group->mass[0] = group->moment[0] = group->energy = 0.0;
    for (unsigned i = 0; i < size; i++) {
        uint32_t column = (uint32_t)keys[i];
        double value = (double)weights[column] - group->middle;
        double mass = importance ? (double)importance[column] : 1.0;
        double moment = mass * value;
        group->values[i] = value;
        group->mass[i + 1] = group->mass[i] + mass;
        group->moment[i + 1] = group->moment[i] + moment;
        group->energy += moment * value;
    }
}

/* counts[i] = how many values are not above limits[i]: the searches go side by side, and none of them branches. */
WITHIN void count_up_to(const struct sorted_group *group, const double *limits, unsigned n_limits, unsigned *counts) {
    memset(counts, 0, n_limits * sizeof *counts);
    for (unsigned left = group->size, half = left / 2; left > 1; left -= half, half = left / 2)
        for (unsigned i = 0; i < n_limits; i++)
            counts[i] += half & -(unsigned)(group->values[counts[i] + half - 1] <= limits[i]);
    for (unsigned i = 0; i < n_limits; i++)
        counts[i] += group->values[counts[i]] <= limits[i];
}

/*
 * Levels in ascending order: ranked[rank] is the value of code order[rank]; of equal levels the lower code comes first.
 * order is a permutation before, too: with that of a little earlier there is hardly anything to do.
 */
WITHIN void rank_levels(const double *theta, unsigned bits, double *ranked, uint8_t *order) {
    double levels[MAX_LEVELS] = {theta[bits]};
    for (unsigned plane = 0; plane < bits; plane++)
        for (unsigned code = 0; code < 1u << plane; code++) {
            levels[code | 1u << plane] = levels[code] + theta[plane];
            levels[code] -= theta[plane];
        }
    for (unsigned i = 0; i < 1u << bits; i++) {
        uint8_t code = order[i];
        double level = levels[code];
        unsigned rank = i;
        for (; rank > 0 && (ranked[rank - 1] > level || (ranked[rank - 1] == level && order[rank - 1] > code)); rank--) {
            ranked[rank] = ranked[rank - 1];
            order[rank] = order[rank - 1];
        }
        ranked[rank] = level;
        order[rank] = code;
    }
}

/*
 * sums[code] becomes the sum over all codes of the value there times the signs of the planes that `code` has set: a
 * Walsh-Hadamard transform, with bits that are set counting as +1.
 */
WITHIN void sum_by_signs(double *sums, unsigned bits) {
    for (unsigned plane = 0; plane < bits; plane++)
        for (unsigned code = 0; code < 1u << bits; code++)
            if (!(code >> plane & 1)) {
                double low = sums[code], high = sums[code | 1u << plane];
                sums[code] = high + low;
                sums[code | 1u << plane] = high - low;
            }
}

/*
 * Least squares for the change of theta with the assignment held: mass[code] is the importance of the weights that have a
 * code, residual[code] their sum of importance * (w - level). Both are destroyed.
 */
WITHIN void least_squares_step(double *mass, double *residual, unsigned bits, double proximity, double *step) {
    double matrix[MAX_UNKNOWNS][MAX_UNKNOWNS];
    sum_by_signs(mass, bits);
    sum_by_signs(residual, bits);
    for (unsigned i = 0; i <= bits; i++) {
        unsigned plane = i < bits ? 1u << i : 0; /* the center's feature is 1 everywhere */
        step[i] = residual[plane];
        for (unsigned j = 0; j < i; j++)
            matrix[i][j] = mass[plane | 1u << j];
        matrix[i][i] = mass[0] + proximity * mass[0];
    }
    solve(matrix, step, bits + 1);
}

/* Alternates from theta until the assignment stays; best holds the least error seen so far, over all starts. */
WITHIN void descend(const struct sorted_group *group, double *theta, unsigned bits, const struct fit_task *task,
                    struct solution *best) {
    const unsigned n_levels = 1u << bits;
    uint8_t order[MAX_LEVELS] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, previous_order[MAX_LEVELS];
    unsigned bounds[MAX_LEVELS + 1] = {0}, previous_bounds[MAX_LEVELS + 1];
    for (unsigned iteration = 0; iteration <= task->n_iterations; iteration++) {
        double ranked[MAX_LEVELS], limits[MAX_LEVELS], masses[MAX_LEVELS], residuals[MAX_LEVELS], error = group->energy;
        rank_levels(theta, bits, ranked, order);
        for (unsigned rank = 1; rank < n_levels; rank++)
            limits[rank - 1] = (ranked[rank - 1] + ranked[rank]) * 0.5;
        count_up_to(group, limits, n_levels - 1, bounds + 1);
        bounds[n_levels] = group->size;
        for (unsigned rank = 0; rank < n_levels; rank++) {
            double moment = group->moment[bounds[rank + 1]] - group->moment[bounds[rank]];
            double mass = group->mass[bounds[rank + 1]] - group->mass[bounds[rank]];
            error += ranked[rank] * (ranked[rank] * mass - 2.0 * moment);
            masses[order[rank]] = mass;
            residuals[order[rank]] = moment - mass * ranked[rank];
        }
        if (error < best->error) {
            best->error = error;
            memcpy(best->theta, theta, (bits + 1) * sizeof *theta);
        }
        if (iteration > 0 && !memcmp(bounds, previous_bounds, sizeof bounds) && !memcmp(order, previous_order, sizeof order))
            return;
        memcpy(previous_bounds, bounds, sizeof bounds);
        memcpy(previous_order, order, sizeof order);
        double step[MAX_UNKNOWNS];
        least_squares_step(masses, residuals, bits, task->proximity, step);
        for (unsigned i = 0; i <= bits; i++)
            theta[i] += step[i];
        for (unsigned plane = 0; plane < bits; plane++)
            theta[plane] = fabs(theta[plane]); /* the same levels, under other codes */
    }
}

/* Free levels, rounded to what the matrix can hold. */
WITHIN void fit_free(const struct fit_task *task, const float *weights, const float *importance, uint16_t *half_scales,
                     float *center) {
    struct sorted_group group;
    struct solution best = {.error = INFINITY};
    unsigned bits = task->bits;
    sort_group(weights, importance, task->group_size, &group);
    for (unsigned start = 0; start < task->n_starts; start++) {
        double theta[MAX_UNKNOWNS], reach = group.values[group.size - 1];
        for (unsigned i = 0; i <= bits; i++)
            theta[i] = task->starts[start * (bits + 1) + i] * reach;
        switch (bits) { /* compiled for each, so that short loops are unrolled */
        case 1:
            descend(&group, theta, 1, task, &best);
            break;
        case 2:
            descend(&group, theta, 2, task, &best);
            break;
        case 3:
            descend(&group, theta, 3, task, &best);
            break;
        default:
            descend(&group, theta, ELUTQ_HLQ_MAX_BITS, task, &best);
        }
    }
    for (unsigned plane = 0; plane < bits; plane++)
        half_scales[plane] = round_half_scale(best.theta[plane], task->grid);
    *center = round_center(best.theta[bits] + group.middle, task->grid);
}

WIDE static void fit_group(const struct fit_task *task, const float *weights, const float *importance, uint16_t *half_scales,
                           float *center, uint8_t *codes) {
    const unsigned bits = task->bits, size = task->group_size;
    if (is_even(task->grid)) {
        const struct even_levels found = fit_even(weights, importance, size, bits, task->grid);
        spread_even(found.first, bits, half_scales);
        *center = found.center;
    } else {
        fit_free(task, weights, importance, half_scales, center);
    }

    float levels[MAX_LEVELS], distance[ELUTQ_HLQ_MAX_GROUP_SIZE];
    uint32_t nearest[ELUTQ_HLQ_MAX_GROUP_SIZE];
    expand_levels(half_scales, *center, bits, levels);
    for (unsigned i = 0; i < size; i++) {
        distance[i] = fabsf(weights[i] - levels[0]);
        nearest[i] = 0;
    }
    for (unsigned code = 1; code < 1u << bits; code++) {
        for (unsigned i = 0; i < size; i++) {
            float other = fabsf(weights[i] - levels[code]);
            nearest[i] = other < distance[i] ? code : nearest[i];
            distance[i] = other < distance[i] ? other : distance[i];
        }
    }
    for (unsigned i = 0; i < size; i++)
        codes[i] = (uint8_t)nearest[i];
}

static void fit_rows(void *context, unsigned thread, unsigned n_threads) {
    const struct fit_task *task = context;
    size_t n_groups = task->n_columns / task->group_size;
    unsigned n_items = (unsigned)((task->n_rows + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM), item;
    (void)n_threads;
    while (elutq_pool_take(task->pool, thread, n_items, &item)) {
        size_t first = (size_t)item * ROWS_PER_ITEM;
        size_t last = first + ROWS_PER_ITEM < task->n_rows ? first + ROWS_PER_ITEM : task->n_rows;
        for (size_t row = first; row < last; row++) {
            for (size_t group = 0; group < n_groups; group++) {
                size_t column = group * task->group_size, place = row * n_groups + group;
                fit_group(task, task->weights + row * task->row_stride + column,
                          task->importance ? task->importance + column : NULL, task->half_scales + place * task->bits,
                          task->centers + place, task->codes + row * task->n_columns + column);
            }
        }
    }
}

int elutq_fit(elutq_pool *pool, const float *weights, size_t n_rows, size_t n_columns, size_t row_stride, unsigned bits,
              unsigned group_size, const float *importance, const double *starts, unsigned n_starts, unsigned n_iterations,
              double proximity, unsigned kind, unsigned exponent, uint16_t *half_scales, float *centers,
              uint8_t *codes) {
    if (bits < ELUTQ_HLQ_MIN_BITS || bits > ELUTQ_HLQ_MAX_BITS || group_size == 0 || group_size > ELUTQ_HLQ_MAX_GROUP_SIZE ||
        n_columns % group_size != 0 || row_stride < n_columns || n_starts == 0 || !(proximity > 0.0) ||
        n_rows > UINT32_MAX || !is_grid((struct grid){kind, exponent}, bits))
        return ELUTQ_ERROR_ARGUMENT;
    struct fit_task task = {pool,   weights,  n_rows,       n_columns, row_stride,       bits,        group_size, importance,
                            starts, n_starts, n_iterations, proximity, {kind, exponent}, half_scales, centers,    codes};
    return elutq_pool_run(pool, fit_rows, &task);
}
