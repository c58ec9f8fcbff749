/*
 * Rounding activations for products with HLQ matrices: to lookup tables (decode) or to int8 values (prefill). Part of
 * float_kernels.h, which includes it.
 */
#ifndef ELUTQ_ACTIVATION_KERNELS_H
#define ELUTQ_ACTIVATION_KERNELS_H

/* Signs of the four activations of a cell in table entries 0 .. 15: bit i of the entry's index is the sign of column i. */
static const float TABLE_SIGNS[4][16] = {
    {-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1},
    {-1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1},
    {-1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1},
    {-1, -1, -1, -1, -1, -1, -1, -1, 1, 1, 1, 1, 1, 1, 1, 1},
};

/* Groups whose largest value is below this are taken for zero, so that 127 / largest stays finite. */
#define SMALLEST_SCALED 1e-30f

/*
 * Multipliers of a group's cells, from the largest sum of each: that over 127 times the group's scale, rounded up. The scale
 * is such that they add up to at most ELUTQ_MULTIPLIERS, and none is above 127. A cell with large activations thus costs
 * the others of its group little: its steps are coarse, theirs are not. Returns the scale.
 */
INLINE float choose_multipliers(const float *xg, uint32_t n_cells, uint8_t *multipliers) {
    float sums[128 / ELUTQ_CELL_COLUMNS], total = 0, largest = 0;
    for (uint32_t cell = 0; cell < n_cells; cell++) {
        const float *xc = xg + ELUTQ_CELL_COLUMNS * cell;
        sums[cell] = (fabsf(xc[0]) + fabsf(xc[1])) + (fabsf(xc[2]) + fabsf(xc[3]));
        total += sums[cell];
        largest = sums[cell] > largest ? sums[cell] : largest;
    }
    const int scaled = largest > SMALLEST_SCALED;
    const float even = total / (float)(127 * (ELUTQ_MULTIPLIERS - n_cells)), least = largest / (127.0f * 127.0f);
    const float scale = even > least ? even : least, inverse = scaled ? 1.0f / (127.0f * scale) : 0.0f;
    for (uint32_t cell = 0; cell < n_cells; cell++) {
        const float wanted = ceilf(sums[cell] * inverse);
        multipliers[cell] = (uint8_t)(wanted < 127 ? wanted > 1 ? wanted : 1 : 127);
    }
    return scaled ? scale : 0.0f;
}

/*
 * Each entry is rounded once, from the float sum: its error is at most half its multiplier times the group's scale. A row's
 * result is therefore off by at most sum over groups of ELUTQ_MULTIPLIERS / 2 * scale_g * sum_k |h_k| from rounding the
 * tables, where scale_g is the larger of (sum of the group's magnitudes) / (127 * (ELUTQ_MULTIPLIERS - cells)) and
 * (largest sum of a cell's magnitudes) / 127^2.
 */
KERNEL void build_tables(const float *x, uint32_t group_size, uint32_t first_group, uint32_t end_group,
                         struct elutq_tables *tables) {
    const uint32_t n_cells = group_size / ELUTQ_CELL_COLUMNS;
    const v16 s0 = v16_load(TABLE_SIGNS[0]), s1 = v16_load(TABLE_SIGNS[1]);
    const v16 s2 = v16_load(TABLE_SIGNS[2]), s3 = v16_load(TABLE_SIGNS[3]);
    for (uint32_t group = first_group; group < end_group; group++) {
        const float *xg = x + (size_t)group * group_size;
        int8_t *entries = tables->entries + (size_t)group * n_cells * 16;
        uint8_t *multipliers = tables->multipliers + (size_t)group * n_cells;
        const float scale = choose_multipliers(xg, n_cells, multipliers), inverse = scale > 0 ? 1.0f / scale : 0.0f;
        v16 total = v16_set1(0);
        for (uint32_t i = 0; i < group_size; i += 16)
            total = v16_add(total, v16_load(xg + i));
        for (uint32_t cell = 0; cell < n_cells; cell++) {
            const float *xc = xg + ELUTQ_CELL_COLUMNS * cell;
            v16 first = v16_fma(s1, v16_set1(xc[1]), v16_mul(s0, v16_set1(xc[0])));
            v16 second = v16_fma(s3, v16_set1(xc[3]), v16_mul(s2, v16_set1(xc[2])));
            v16_store_i8(entries + 16 * cell,
                         v16_mul(v16_add(first, second), v16_set1(inverse / (float)multipliers[cell])));
        }
        tables->scales[group] = scale;
        tables->sums[group] = v16_sum(total);
    }
}

/*
 * How gemm_levels rounds half scales to whole steps (kernels_scalar.c): scales tried, and the largest, which leaves room
 * for every step to round up.
 */
#define ELUTQ_LEVELS_TRIALS 4
#define ELUTQ_LEVELS_TOP(bits) (255.0f - 0.5f * (float)(bits))

/* int8 values with one scale a group: each is off by at most scale / 2, scale = largest magnitude / 127. */
KERNEL __attribute__((unused)) void build_levels(const float *x, uint32_t n_columns, uint32_t group_size, uint32_t token,
                                                 struct elutq_levels *levels) {
    const uint32_t n_groups = n_columns / group_size, lane = token % ELUTQ_LEVELS_TOKENS;
    const size_t block = token / ELUTQ_LEVELS_TOKENS;
    int8_t *values = levels->values + block * n_columns * ELUTQ_LEVELS_TOKENS + (size_t)lane * ELUTQ_CELL_COLUMNS;
    for (uint32_t group = 0; group < n_groups; group++) {
        const float *xg = x + (size_t)group * group_size;
        v16 largest = v16_set1(0), total = v16_set1(0);
        for (uint32_t i = 0; i < group_size; i += 16) {
            v16 xi = v16_load(xg + i);
            total = v16_add(total, xi);
            largest = v16_max(v16_abs(xi), largest);
        }
        float magnitude = v16_largest(largest);
        int scaled = magnitude > SMALLEST_SCALED;
        v16 inverse = v16_set1(scaled ? 127.0f / magnitude : 0.0f);
        v16 value_sum = v16_set1(0); /* of whole numbers below 2^24: exact */
        for (uint32_t i = 0; i < group_size; i += 16) {
            v16 rounded = v16_round(v16_mul(v16_load(xg + i), inverse));
            int8_t bytes[16];
            value_sum = v16_add(value_sum, rounded);
            v16_store_i8(bytes, rounded);
            for (uint32_t j = 0; j < 16; j += ELUTQ_CELL_COLUMNS)
                memcpy(values + ((size_t)group * group_size + i + j) * ELUTQ_LEVELS_TOKENS, bytes + j, ELUTQ_CELL_COLUMNS);
        }
        size_t at = (block * n_groups + group) * ELUTQ_LEVELS_TOKENS + lane;
        levels->scales[at] = scaled ? magnitude / 127.0f : 0.0f;
        levels->sums[at] = v16_sum(total);
        const float whole = v16_sum(value_sum); /* NaN where an activation is; its sum then makes the result NaN */
        levels->biases[at] = whole == whole ? -128 * (int32_t)whole : 0;
    }
}

#endif
