/* Strips of rows times tokens with SDOT: four products of four columns. Part of levels_neon.h, which includes it. */
#ifndef ELUTQ_STRIP_SDOT_H
#define ELUTQ_STRIP_SDOT_H

#define STRIP_ROWS (2 * QUAD_ROWS)
#define STRIP_TOKENS ELUTQ_LEVELS_TOKENS

/* Levels lie as [strip][cell][8 rows][4 columns]. */
INLINE uint32_t at_cell(uint32_t strip, uint32_t cell) {
    return (strip * MAX_CELLS + cell) * STRIP_ROWS * ELUTQ_CELL_COLUMNS;
}

/* Stores the levels of four rows in the cells `cell` and `cell` + 1, [4 rows][4 columns] each. */
INLINE void store_cells(struct tile_levels *tile, uint32_t quad, uint32_t cell, const int8x16_t cells[2]) {
    for (uint32_t i = 0; i < 2; i++)
        vst1q_s8(tile->levels + at_cell(quad / 2, cell + i) + 16 * (quad % 2), cells[i]);
}

/* Four tokens of a block: one register of activations holds a cell of each. */
#define FOUR_DOTS(products, levels, x)                                                                                         \
    do {                                                                                                                       \
        (products)[0] = vdotq_laneq_s32((products)[0], levels, x, 0);                                                          \
        (products)[1] = vdotq_laneq_s32((products)[1], levels, x, 1);                                                          \
        (products)[2] = vdotq_laneq_s32((products)[2], levels, x, 2);                                                          \
        (products)[3] = vdotq_laneq_s32((products)[3], levels, x, 3);                                                          \
    } while (0)

/* Adds one cell's levels, of rows 0 .. 3 and 4 .. 7, times bytes[cell][token][4 columns]. */
INLINE void multiply_cell(const struct tile_levels *tile, uint32_t strip, uint32_t cell, const int8_t *bytes,
                          int32x4_t *products_0, int32x4_t *products_4) {
    const int8_t *levels = tile->levels + at_cell(strip, cell);
    const int8x16_t levels_0 = vld1q_s8(levels), levels_4 = vld1q_s8(levels + 16);
    const int8x16_t first = vld1q_s8(bytes + 32 * cell), second = vld1q_s8(bytes + 32 * cell + 16);
    FOUR_DOTS(products_0, levels_0, first);
    FOUR_DOTS(products_4, levels_4, first);
    FOUR_DOTS(products_0 + 4, levels_0, second);
    FOUR_DOTS(products_4 + 4, levels_4, second);
}

/*
 * One strip of an expanded block times STRIP_TOKENS tokens: y[token][8 rows] += ... The high parts of few cells first, times
 * 256. Sixteen sums in registers, four loads for sixteen SDOT: by llvm-mca 16, 32 SDOT (two cells) in 17 cycles on
 * cortex-a76, which starts two a cycle, and in 10.7 on apple-m1, which llvm-mca lets start three. The integer sums are at
 * most 128 * 10838 in magnitude.
 */
INLINE void multiply_strip(const struct tile_levels *tile, uint32_t strip, uint32_t n_cells, const int8_t *values,
                           const int8_t *high, uint64_t high_cells, const float *scales, const float *sums,
                           uint32_t n_tokens, float *y) {
    int32x4_t products[2][STRIP_TOKENS];
    for (uint32_t t = 0; t < STRIP_TOKENS; t++)
        products[0][t] = products[1][t] = vdupq_n_s32(0);
    if (high_cells != 0) {
        for (; high_cells != 0; high_cells &= high_cells - 1)
            multiply_cell(tile, strip, ELUTQ_LOWEST_BIT(high_cells), high, products[0],
                          products[1]);
        ELUTQ_UNROLL(8)
        for (uint32_t t = 0; t < STRIP_TOKENS; t++)
            for (uint32_t i = 0; i < 2; i++)
                products[i][t] = vshlq_n_s32(products[i][t], 8);
    }
    ELUTQ_UNROLL(2)
    for (uint32_t cell = 0; cell < n_cells; cell++)
        multiply_cell(tile, strip, cell, values, products[0], products[1]);
    ELUTQ_UNROLL(8)
    for (uint32_t t = 0; t < STRIP_TOKENS; t++) {
        if (t >= n_tokens)
            break;
        for (uint32_t i = 0; i < 2; i++)
            add_quad(tile, 2 * strip + i, products[i][t], scales[t], sums[t],
                     y + (size_t)t * ELUTQ_CHUNK_STRIDE + QUAD_ROWS * i);
    }
}

#endif
