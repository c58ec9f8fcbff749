/*
 * Levels of a group by alternating optimisation; elutq_cli/pipeline/fit.py is the twin that explains and defines it.
 *
 * A group's weights are sorted once. Any assignment of nearest levels is then a list of bounds in the sorted weights, and
 * with running sums of importance and importance * weight one round costs a few binary searches and a small solve,
 * whatever the group's size.
 */
#include "elutq_quantize.h"

#include <math.h>
#include <stdbool.h>

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
    uint16_t *half_scales, *centers;
    uint8_t *codes;
};

_Static_assert((ELUTQ_MAX_GROUP_SIZE & (ELUTQ_MAX_GROUP_SIZE - 1)) == 0, "keys are padded to a power of two");

struct sorted_group {
    unsigned size;
    double values[ELUTQ_MAX_GROUP_SIZE];     /* weights less the middle, ascending */
    double mass[ELUTQ_MAX_GROUP_SIZE + 1];   /* running sum of importance */
    double moment[ELUTQ_MAX_GROUP_SIZE + 1]; /* running sum of importance * value */
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
    uint64_t buffers[2][ELUTQ_MAX_GROUP_SIZE];
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

/* Number of values that are not above `limit`. */
static unsigned count_up_to(const struct sorted_group *group, double limit) {
    unsigned first = 0;
    for (unsigned n = group->size; n > 1;) {
        unsigned half = n / 2;
        first += group->values[first + half - 1] <= limit ? half : 0;
        n -= half;
    }
    return first + (group->values[first] <= limit);
}

/* Levels in ascending order: ranked[rank] is the value of code order[rank]; of equal levels the lower code comes first. */
static void rank_levels(const double *theta, unsigned bits, double *ranked, uint8_t *order) {
    for (unsigned code = 0; code < 1u << bits; code++) {
        double level = theta[bits];
        for (unsigned plane = 0; plane < bits; plane++)
            level += code >> plane & 1 ? theta[plane] : -theta[plane];
        unsigned rank = code;
        for (; rank > 0 && ranked[rank - 1] > level; rank--) {
            ranked[rank] = ranked[rank - 1];
            order[rank] = order[rank - 1];
        }
        ranked[rank] = level;
        order[rank] = (uint8_t)code;
    }
}

/* Least squares for the change of theta with the assignment held; residual[rank] = sum of importance * (w - level). */
static void least_squares_step(const uint8_t *order, const double *mass, const double *residual, unsigned bits,
                               double proximity, double *step) {
    double matrix[MAX_UNKNOWNS][MAX_UNKNOWNS] = {{0}};
    unsigned size = bits + 1;
    for (unsigned i = 0; i < size; i++)
        step[i] = 0.0;
    for (unsigned rank = 0; rank < 1u << bits; rank++) {
        double feature[MAX_UNKNOWNS];
        for (unsigned plane = 0; plane < bits; plane++)
            feature[plane] = order[rank] >> plane & 1 ? 1.0 : -1.0;
        feature[bits] = 1.0;
        for (unsigned i = 0; i < size; i++) {
            step[i] += feature[i] * residual[rank];
            for (unsigned j = 0; j <= i; j++)
                matrix[i][j] += feature[i] * feature[j] * mass[rank];
        }
    }
    double pull = proximity * matrix[bits][bits];
    for (unsigned i = 0; i < size; i++)
        matrix[i][i] += pull;
    solve(matrix, step, size);
}

/* Alternates from theta until the assignment stays; best holds the least error seen so far, over all starts. */
static void descend(const struct sorted_group *group, double *theta, const struct fit_task *task, struct solution *best) {
    unsigned bits = task->bits, n_levels = 1u << bits;
    uint8_t order[MAX_LEVELS] = {0}, previous_order[MAX_LEVELS] = {0};
    unsigned bounds[MAX_LEVELS + 1] = {0}, previous_bounds[MAX_LEVELS + 1] = {0};
    for (unsigned iteration = 0; iteration <= task->n_iterations; iteration++) {
        double ranked[MAX_LEVELS], mass[MAX_LEVELS], residual[MAX_LEVELS], error = group->energy;
        rank_levels(theta, bits, ranked, order);
        for (unsigned rank = 1; rank < n_levels; rank++)
            bounds[rank] = count_up_to(group, (ranked[rank - 1] + ranked[rank]) * 0.5);
        bounds[n_levels] = group->size;
        for (unsigned rank = 0; rank < n_levels; rank++) {
            double moment = group->moment[bounds[rank + 1]] - group->moment[bounds[rank]];
            mass[rank] = group->mass[bounds[rank + 1]] - group->mass[bounds[rank]];
            error += ranked[rank] * (ranked[rank] * mass[rank] - 2.0 * moment);
            residual[rank] = moment - mass[rank] * ranked[rank];
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
        least_squares_step(order, mass, residual, bits, task->proximity, step);
        for (unsigned i = 0; i <= bits; i++)
            theta[i] += step[i];
        for (unsigned plane = 0; plane < bits; plane++)
            theta[plane] = fabs(theta[plane]); /* the same levels, under other codes */
    }
}

static uint16_t to_half(double value) {
    return elutq_float_to_half((float)fmin(fmax(value, -LARGEST_HALF), LARGEST_HALF));
}

WIDE static void fit_group(const struct fit_task *task, const float *weights, const float *importance, uint16_t *half_scales,
                      uint16_t *center, uint8_t *codes) {
    struct sorted_group group;
    struct solution best = {.error = INFINITY};
    unsigned bits = task->bits;
    sort_group(weights, importance, task->group_size, &group);
    for (unsigned start = 0; start < task->n_starts; start++) {
        double theta[MAX_UNKNOWNS], reach = group.values[group.size - 1];
        for (unsigned i = 0; i <= bits; i++)
            theta[i] = task->starts[start * (bits + 1) + i] * reach;
        descend(&group, theta, task, &best);
    }
    for (unsigned plane = 0; plane < bits; plane++)
        half_scales[plane] = to_half(best.theta[plane]);
    *center = to_half(best.theta[bits] + group.middle);

    float levels[MAX_LEVELS], distance[ELUTQ_MAX_GROUP_SIZE];
    uint32_t nearest[ELUTQ_MAX_GROUP_SIZE];
    expand_levels(half_scales, *center, bits, levels);
    for (unsigned i = 0; i < group.size; i++) {
        distance[i] = fabsf(weights[i] - levels[0]);
        nearest[i] = 0;
    }
    for (unsigned code = 1; code < 1u << bits; code++) {
        for (unsigned i = 0; i < group.size; i++) {
            float other = fabsf(weights[i] - levels[code]);
            nearest[i] = other < distance[i] ? code : nearest[i];
            distance[i] = other < distance[i] ? other : distance[i];
        }
    }
    for (unsigned i = 0; i < group.size; i++)
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
              double proximity, uint16_t *half_scales, uint16_t *centers, uint8_t *codes) {
    if (bits < ELUTQ_HLQ_MIN_BITS || bits > ELUTQ_HLQ_MAX_BITS || group_size == 0 || group_size > ELUTQ_MAX_GROUP_SIZE ||
        n_columns % group_size != 0 || row_stride < n_columns || n_starts == 0 || !(proximity > 0.0) ||
        n_rows > UINT32_MAX)
        return ELUTQ_ERROR_ARGUMENT;
    struct fit_task task = {pool,       weights,  n_rows,       n_columns, row_stride,  bits,    group_size, importance,
                            starts,     n_starts, n_iterations, proximity, half_scales, centers, codes};
    elutq_pool_run(pool, fit_rows, &task);
    return ELUTQ_OK;
}
