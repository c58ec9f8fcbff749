/*
 * Strips of rows times tokens with SMMLA: two rows by two tokens, eight columns at once. Part of levels_neon.h, which
 * includes it.
 */
#ifndef ELUTQ_STRIP_SMMLA_H
#define ELUTQ_STRIP_SMMLA_H

#define STRIP_QUADS 4
#define STRIP_ROWS (STRIP_QUADS * QUAD_ROWS)
#define STRIP_TOKENS 4

/* Levels lie as [strip][two cells][8 pairs of rows][2 rows][8 columns]. */
INLINE uint32_t at_cells(uint32_t strip, uint32_t cell) {
    return (strip * MAX_CELLS + cell) * STRIP_ROWS * ELUTQ_CELL_COLUMNS;
}

/* Numbers of two cells side by side: of elements 0 and 1 (a row's, a token's four bytes), or of 2 and 3. */
INLINE int8x16_t side_by_side_0(int8x16_t a, int8x16_t b) {
    return vreinterpretq_s8_s32(vzip1q_s32(vreinterpretq_s32_s8(a), vreinterpretq_s32_s8(b)));
}
INLINE int8x16_t side_by_side_2(int8x16_t a, int8x16_t b) {
    return vreinterpretq_s8_s32(vzip2q_s32(vreinterpretq_s32_s8(a), vreinterpretq_s32_s8(b)));
}

/* Stores the levels of four rows in the cells `cell` and `cell` + 1, [4 rows][4 columns] each. */
INLINE void store_cells(struct tile_levels *tile, uint32_t quad, uint32_t cell, const int8x16_t cells[2]) {
    int8_t *pairs = tile->levels + at_cells(quad / STRIP_QUADS, cell) + 32 * (quad % STRIP_QUADS);
    vst1q_s8(pairs, side_by_side_0(cells[0], cells[1]));
    vst1q_s8(pairs + 16, side_by_side_2(cells[0], cells[1]));
}

/* Adds the levels of two cells, the first of them even, times bytes[cell][token][4 columns]. */
INLINE void multiply_cells(const struct tile_levels *tile, uint32_t strip, uint32_t cell, const int8_t *bytes,
                           int32x4_t products[STRIP_ROWS / 2][2]) {
    const int8_t *levels = tile->levels + at_cells(strip, cell);
    const int8x16_t a = vld1q_s8(bytes + 32 * cell), b = vld1q_s8(bytes + 32 * cell + 32);
    const int8x16_t x_0 = side_by_side_0(a, b), x_2 = side_by_side_2(a, b);
    ELUTQ_UNROLL(8)
    for (uint32_t i = 0; i < STRIP_ROWS / 2; i++) {
        const int8x16_t rows = vld1q_s8(levels + 16 * i);
        products[i][0] = vmmlaq_s32(products[i][0], rows, x_0);
        products[i][1] = vmmlaq_s32(products[i][1], rows, x_2);
    }
}

/*
 * One strip of an expanded block times STRIP_TOKENS tokens: y[token][16 rows] += ... The high parts of few cells first,
 * times 256. Sixteen registers of sums, ten loads and two ZIPs for sixteen SMMLA, which do the work of 32 SDOT: by llvm-mca
 * 19 in 9.1 cycles on neoverse-n2, 4.6 on neoverse-v2 and 21 on cortex-a510, where the loop of strip_sdot.h takes 16, 8.1
 * and 33. The integer sums are at most 128 * 10838 in magnitude.
 */
INLINE void multiply_strip(const struct tile_levels *tile, uint32_t strip, uint32_t n_cells, const int8_t *values,
                           const int8_t *high, uint64_t high_cells, const float *scales, const float *sums,
                           uint32_t n_tokens, float *y) {
    int32x4_t products[STRIP_ROWS / 2][2]; /* [two rows][two tokens]: row 0 by both, row 1 by both */
    for (uint32_t i = 0; i < STRIP_ROWS / 2; i++)
        products[i][0] = products[i][1] = vdupq_n_s32(0);
    if (high_cells != 0) {
        for (uint64_t pairs = (high_cells | high_cells >> 1) & 0x5555555555555555; pairs != 0; pairs &= pairs - 1)
            multiply_cells(tile, strip, ELUTQ_LOWEST_BIT(pairs), high, products);
        ELUTQ_UNROLL(8)
        for (uint32_t i = 0; i < STRIP_ROWS / 2; i++)
            for (uint32_t t = 0; t < 2; t++)
                products[i][t] = vshlq_n_s32(products[i][t], 8);
    }
    for (uint32_t cell = 0; cell < n_cells; cell += 2)
        multiply_cells(tile, strip, cell, values, products);
    ELUTQ_UNROLL(4)
    for (uint32_t t = 0; t < STRIP_TOKENS; t++) {
        if (t >= n_tokens)
            break;
        ELUTQ_UNROLL(4)
        for (uint32_t i = 0; i < STRIP_QUADS; i++) {
            const int32x4_t two = products[2 * i][t / 2], next = products[2 * i + 1][t / 2];
            const int32x4_t four = t % 2 == 0 ? vuzp1q_s32(two, next) : vuzp2q_s32(two, next);
            add_quad(tile, STRIP_QUADS * strip + i, four, scales[t], sums[t],
                     y + (size_t)t * ELUTQ_CHUNK_STRIDE + QUAD_ROWS * i);
        }
    }
}

#endif
