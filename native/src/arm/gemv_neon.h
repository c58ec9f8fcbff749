/* The table look-ups of a decode step with TBL: one block of an HLQ matrix times one token. */
#ifndef ELUTQ_GEMV_NEON_H
#define ELUTQ_GEMV_NEON_H

struct row_sums {
    int16x8_t eight[4]; /* rows 8i .. 8i+7 */
};

/*
 * Sums the entries that one plane picks. A cell's low nibbles are rows 0, 8, 1, 9, ..., 7, 15, its high nibbles the same
 * plus 16. |sum| <= 32 * 127, so 16 bits hold it. Two cells are added before they reach the sums, which halves the chain
 * of additions that each sum waits for.
 *
 * Bytes of planes per cycle by llvm-mca 16, for the loops that were considered, all with the same sums:
 *
 *                                                    cortex-a76  apple-m1  exynos-m5
 *     this one: AND, USHR, 2 TBL, SADDL(2) + ADD        2.66       5.99      7.96
 *     AND, USHR, 2 TBL, 4 SADDW a cell                  2.66       5.99      3.99
 *     the same with ADD and USRA #8, as avx2.c          2.66       5.99      3.99
 *     pairs of cells with ZIP, TBL of 2, SADALP         1.68       5.32      7.08
 *     four cells transposed, TBL of 4, SDOT with ones   1.07       4.56      4.56
 *
 * llvm-mca has the Cortex-A57's costs for the cortex-a76, TBL at 1.5 cycles. By Arm's optimisation guide the A76 starts
 * two of any of these instructions a cycle (USHR one): 16 for 64 bytes, 4.0 bytes a cycle. SDOT loses because it adds
 * bytes of one row, which the layout keeps 16 bytes apart.
 */
INLINE struct row_sums sum_plane(const uint8_t *plane, const int8_t *entries, uint32_t n_cells) {
    const uint8x16_t nibble = vdupq_n_u8(15);
    int16x8_t even_0 = vdupq_n_s16(0), odd_0 = even_0, even_16 = even_0, odd_16 = even_0;
#pragma GCC unroll 8
    for (uint32_t i = 0; i < n_cells; i += 2) {
        uint8x16_t a = vld1q_u8(plane + 16 * i), b = vld1q_u8(plane + 16 * i + 16);
        int8x16_t table_a = vld1q_s8(entries + 16 * i), table_b = vld1q_s8(entries + 16 * i + 16);
        int8x16_t a_0 = vqtbl1q_s8(table_a, vandq_u8(a, nibble)), a_16 = vqtbl1q_s8(table_a, vshrq_n_u8(a, 4));
        int8x16_t b_0 = vqtbl1q_s8(table_b, vandq_u8(b, nibble)), b_16 = vqtbl1q_s8(table_b, vshrq_n_u8(b, 4));
        even_0 = vaddq_s16(even_0, vaddl_s8(vget_low_s8(a_0), vget_low_s8(b_0)));
        odd_0 = vaddq_s16(odd_0, vaddl_high_s8(a_0, b_0));
        even_16 = vaddq_s16(even_16, vaddl_s8(vget_low_s8(a_16), vget_low_s8(b_16)));
        odd_16 = vaddq_s16(odd_16, vaddl_high_s8(a_16, b_16));
    }
    return (struct row_sums){{vuzp1q_s16(even_0, odd_0), vuzp2q_s16(even_0, odd_0), vuzp1q_s16(even_16, odd_16),
                              vuzp2q_s16(even_16, odd_16)}};
}

INLINE float32x4_t four_scales(const uint8_t *block, uint32_t plane, uint32_t row) {
    return four_halves(vld1_u16((const uint16_t *)block + plane * ELUTQ_TILE_ROWS + row));
}

INLINE float32x4_t four_sums(const struct row_sums *picked, uint32_t row) {
    int16x8_t eight = picked->eight[row / 8];
    return vcvtq_f32_s32(vmovl_s16(row % 8 == 0 ? vget_low_s16(eight) : vget_high_s16(eight)));
}

INLINE void add_block(const uint8_t *block, uint32_t bits, uint32_t n_cells, const int8_t *entries, float scale, float sum,
                      bool by_line, float *f) {
    (void)by_line;
    struct row_sums picked[ELUTQ_HLQ_MAX_BITS];
    for (uint32_t k = 0; k < bits; k++)
        picked[k] = sum_plane(block + elutq_scales_bytes(bits) + (size_t)k * n_cells * ELUTQ_CELL_BYTES, entries, n_cells);
#pragma GCC unroll 8
    for (uint32_t row = 0; row < ELUTQ_TILE_ROWS; row += 4) {
        float32x4_t u = vmulq_f32(four_scales(block, 0, row), four_sums(&picked[0], row));
        for (uint32_t k = 1; k < bits; k++)
            u = vfmaq_f32(u, four_scales(block, k, row), four_sums(&picked[k], row));
        float32x4_t rows = vfmaq_n_f32(vld1q_f32(f + row), four_scales(block, bits, row), sum);
        vst1q_f32(f + row, vfmaq_n_f32(rows, u, scale));
    }
}

#include "hlq_gemv.h"

#endif
