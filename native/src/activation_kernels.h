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

/*
 * Groups whose largest value is below this are taken for zero, so that 127 / largest stays finite and a scale, which is at
 * least this over 127^2, a normal number when it is taken times 2^-19.
 */
#define SMALLEST_SCALED 1e-27f

/*
 * Multipliers of a group's cells, from the largest sum of each: that over 127 times the group's scale, rounded up. The scale
 * is such that they add up to at most ELUTQ_MULTIPLIERS, and none is above 127. A cell with large activations thus costs
 * the others of its group little: its steps are coarse, theirs are not. Returns the scale.
 */
INLINE float choose_multipliers(const float *xg, uint32_t n_cells, uint8_t *multipliers) {
    float sums[ELUTQ_HLQ_MAX_GROUP_SIZE / ELUTQ_CELL_COLUMNS], total = 0, largest = 0;
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
 * for every step to round up. At 1 and 2 bits few trials do: what those bits lose is hundreds of times as much.
 */
#define ELUTQ_LEVELS_TRIALS(bits) ((bits) <= 2 ? 4 : 16)
#define ELUTQ_LEVELS_TOP(bits) (255.0f - 0.5f * (float)(bits))

/*
 * A group whose largest magnitude is more than ELUTQ_LEVELS_PEAK times the mean one has outliers: those beyond
 * ELUTQ_LEVELS_OUTLIER times the mean. They do not raise their group's scale, but have high parts, which cost time. In a
 * group of 256 none is beyond 256 times the mean, so numbers stay below 127 * 256 / 3 = 10838, and so does their sum.
 */
#define ELUTQ_LEVELS_PEAK 5.0f
#define ELUTQ_LEVELS_OUTLIER 3.0f

/* The cells of a block's group, and of `n` of its tokens, that hold something high. */
INLINE uint64_t high_cells_of(const uint64_t *high_cells, uint32_t n) {
    uint64_t cells = 0;
    for (uint32_t t = 0; t < n; t++)
        cells |= high_cells[t];
    return cells;
}

/*
 * One group of a token: values and high parts at `stride` bytes a cell. Returns the sum of the whole numbers, NaN where an
 * activation is, and sets the cells that hold something high.
 */
INLINE float round_group(const float *xg, uint32_t group_size, float inverse, int8_t *values, int8_t *high, size_t stride,
                         uint64_t *high_cells) {
    v16 sum = v16_set1(0); /* of whole numbers, below 2^24: exact */
    *high_cells = 0;
    for (uint32_t i = 0; i < group_size; i += 16) {
        const v16 rounded = v16_round(v16_mul(v16_load(xg + i), v16_set1(inverse)));
        /* A quarter more, so that 128 becomes 256 - 128. */
        const v16 above = v16_round(v16_mul(v16_add(rounded, v16_set1(0.25f)), v16_set1(1.0f / 256)));
        int8_t low_bytes[16], high_bytes[16];
        sum = v16_add(sum, rounded);
        v16_store_i8(low_bytes, v16_fma(above, v16_set1(-256), rounded));
        v16_store_i8(high_bytes, above);
        for (uint32_t j = 0; j < 16; j += ELUTQ_CELL_COLUMNS) {
            const uint32_t cell = (i + j) / ELUTQ_CELL_COLUMNS;
            uint32_t four;
            memcpy(&four, high_bytes + j, sizeof four);
            memcpy(values + cell * stride, low_bytes + j, ELUTQ_CELL_COLUMNS);
            memcpy(high + cell * stride, high_bytes + j, ELUTQ_CELL_COLUMNS);
            *high_cells |= (uint64_t)(four != 0) << cell;
        }
    }
    return v16_sum(sum);
}

/*
 * Whole numbers with one scale a group: each is off by at most scale / 2, where scale is the group's largest magnitude, or
 * the outliers' bound, over 127.
 */
KERNEL ELUTQ_MAYBE_UNUSED void build_levels(const float *x, uint32_t n_columns, uint32_t group_size, uint32_t token,
                                            uint32_t first_group, uint32_t end_group, struct elutq_levels *levels) {
    const uint32_t n_groups = n_columns / group_size, lane = token % ELUTQ_LEVELS_TOKENS;
    const size_t block = token / ELUTQ_LEVELS_TOKENS, cell_stride = ELUTQ_LEVELS_TOKENS * ELUTQ_CELL_COLUMNS;
    const size_t first = block * n_columns * ELUTQ_LEVELS_TOKENS + (size_t)lane * ELUTQ_CELL_COLUMNS;
    for (uint32_t group = first_group; group < end_group; group++) {
        const float *xg = x + (size_t)group * group_size;
        v16 largest = v16_set1(0), total = largest, magnitudes = largest;
        for (uint32_t i = 0; i < group_size; i += 16) {
            v16 xi = v16_load(xg + i);
            total = v16_add(total, xi);
            magnitudes = v16_add(magnitudes, v16_abs(xi));
            largest = v16_max(v16_abs(xi), largest);
        }
        const float peak = v16_largest(largest), mean = v16_sum(magnitudes) / (float)group_size;
        const float magnitude = peak > ELUTQ_LEVELS_PEAK * mean ? ELUTQ_LEVELS_OUTLIER * mean : peak;
        const int scaled = peak > SMALLEST_SCALED;
        const size_t at = (block * n_groups + group) * ELUTQ_LEVELS_TOKENS + lane;
        const size_t cells = first + (size_t)group * group_size * ELUTQ_LEVELS_TOKENS;
        const float whole = round_group(xg, group_size, scaled ? 127.0f / magnitude : 0.0f, levels->values + cells,
                                        levels->high + cells, cell_stride, &levels->high_cells[at]);
        levels->scales[at] = scaled ? magnitude / 127.0f : 0.0f;
        levels->sums[at] = v16_sum(total);
        levels->biases[at] = whole == whole ? -128 * (int32_t)whole : 0; /* the result is NaN where the sum is */
    }
}

#endif
