/* The table look-ups of a decode step with TBL: one block of an HLQ matrix times one token. */
#ifndef ELUTQ_GEMV_NEON_H
#define ELUTQ_GEMV_NEON_H

#include "scales_neon.h"
#include "stream.h"

struct row_sums {
    int16x8_t eight[4]; /* rows 8i .. 8i+7 */
};

/*
 * Sums the entries that one plane picks, each times its cell's multiplier. A cell's low nibbles are rows 0, 8, 1, 9, ..., 7,
 * 15, its high nibbles the same plus 16. |sum| <= ELUTQ_MULTIPLIERS * 127, so 16 bits hold it. TBL four cells transposed and
 * SDOT with the multipliers would lose: it adds bytes of one row, which the layout keeps 16 bytes apart (by llvm-mca 16 it
 * reads 1.07 bytes of planes a cycle on a cortex-a76, two cells with SADDL and ADD, without multipliers, 2.66).
 */
INLINE struct row_sums sum_plane(const uint8_t *plane, const int8_t *entries, const uint8_t *multipliers, uint32_t n_cells) {
    const uint8x16_t nibble = vdupq_n_u8(15);
    int16x8_t low_0 = vdupq_n_s16(0), high_0 = low_0, low_16 = low_0, high_16 = low_0;
    ELUTQ_UNROLL(8)
    for (uint32_t i = 0; i < n_cells; i++) {
        const uint8x16_t cell = vld1q_u8(plane + 16 * i);
        const int8x16_t table = vld1q_s8(entries + 16 * i), multiplier = vld1q_dup_s8((const int8_t *)multipliers + i);
        const int8x16_t rows_0 = vqtbl1q_s8(table, vandq_u8(cell, nibble)), rows_16 = vqtbl1q_s8(table, vshrq_n_u8(cell, 4));
        low_0 = vmlal_s8(low_0, vget_low_s8(rows_0), vget_low_s8(multiplier));
        high_0 = vmlal_high_s8(high_0, rows_0, multiplier);
        low_16 = vmlal_s8(low_16, vget_low_s8(rows_16), vget_low_s8(multiplier));
        high_16 = vmlal_high_s8(high_16, rows_16, multiplier);
    }
    return (struct row_sums){{vuzp1q_s16(low_0, high_0), vuzp2q_s16(low_0, high_0), vuzp1q_s16(low_16, high_16),
                              vuzp2q_s16(low_16, high_16)}};
}

INLINE float32x4_t four_sums(const struct row_sums *picked, uint32_t row) {
    int16x8_t eight = picked->eight[row / 8];
    return vcvtq_f32_s32(vmovl_s16(row % 8 == 0 ? vget_low_s16(eight) : vget_high_s16(eight)));
}

INLINE void add_block(const struct elutq_block *block, uint32_t n_cells, const int8_t *entries, const uint8_t *multipliers,
                      float scale, float sum, struct elutq_asking asking, float *f) {
    (void)asking;
    struct row_sums picked[ELUTQ_HLQ_MAX_BITS];
    for (uint32_t k = 0; k < block->bits; k++)
        picked[k] = sum_plane(block->planes + (size_t)k * n_cells * ELUTQ_CELL_BYTES, entries, multipliers, n_cells);
    ELUTQ_UNROLL(8)
    for (uint32_t row = 0; row < ELUTQ_TILE_ROWS; row += 4) {
        float32x4_t u = vmulq_f32(four_half_scales(block, 0, row), four_sums(&picked[0], row));
        for (uint32_t k = 1; k < block->bits; k++)
            u = vfmaq_f32(u, four_half_scales(block, k, row), four_sums(&picked[k], row));
        float32x4_t rows = vfmaq_n_f32(vld1q_f32(f + row), four_centers(block, row), sum);
        vst1q_f32(f + row, vfmaq_n_f32(rows, u, scale));
    }
}

#include "hlq_gemv.h"

#endif
