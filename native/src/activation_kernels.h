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
 * Each entry is rounded once, from the float sum: its error is at most scale / 2, where scale = (largest sum of four
 * magnitudes in the group) / 127. A row's result is therefore off by at most
 * sum over groups of scale_g * (group_size / 8) * sum_k |h_k| from rounding the tables.
 */
KERNEL void build_tables(const float *x, uint32_t group_size, uint32_t first_group, uint32_t end_group,
                         struct elutq_tables *tables) {
    const uint32_t n_cells = group_size / ELUTQ_CELL_COLUMNS;
    const v16 s0 = v16_load(TABLE_SIGNS[0]), s1 = v16_load(TABLE_SIGNS[1]);
    const v16 s2 = v16_load(TABLE_SIGNS[2]), s3 = v16_load(TABLE_SIGNS[3]);
    for (uint32_t group = first_group; group < end_group; group++) {
        const float *xg = x + (size_t)group * group_size;
        float sums[128 / ELUTQ_CELL_COLUMNS][16];
        v16 largest = v16_set1(0), total = v16_set1(0);
        for (uint32_t i = 0; i < group_size; i += 16)
            total = v16_add(total, v16_load(xg + i));
        for (uint32_t cell = 0; cell < n_cells; cell++) {
            const float *xc = xg + ELUTQ_CELL_COLUMNS * cell;
            v16 first = v16_fma(s1, v16_set1(xc[1]), v16_mul(s0, v16_set1(xc[0])));
            v16 second = v16_fma(s3, v16_set1(xc[3]), v16_mul(s2, v16_set1(xc[2])));
            v16 sum = v16_add(first, second);
            largest = v16_max(sum, largest);
            v16_store(sums[cell], sum);
        }
        float magnitude = v16_largest(largest);
        int scaled = magnitude > SMALLEST_SCALED;
        v16 inverse = v16_set1(scaled ? 127.0f / magnitude : 0.0f);
        int8_t *entries = tables->entries + (size_t)group * n_cells * 16;
        for (uint32_t cell = 0; cell < n_cells; cell++)
            v16_store_i8(entries + 16 * cell, v16_mul(v16_load(sums[cell]), inverse));
        if (ELUTQ_TABLE_BIAS)
            for (uint32_t i = 0; i < 16 * n_cells; i++)
                entries[i] = (int8_t)(entries[i] ^ ELUTQ_TABLE_BIAS);
        tables->scales[group] = scaled ? magnitude / 127.0f : 0.0f;
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
