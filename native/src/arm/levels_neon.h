/*
 * Prefill with products of bytes: the planes of one tile and group become signed 8-bit levels once, in L1, and are then
 * multiplied with the activations of all tokens. Its definition is gemm_levels in kernels_scalar.c. The instructions
 * take two signed operands, so levels are stored as u - 128 and the biases of struct elutq_levels are not needed.
 *
 * A file that includes this defines ELUTQ_SMMLA: whether SMMLA multiplies, or SDOT.
 */
#ifndef ELUTQ_LEVELS_NEON_H
#define ELUTQ_LEVELS_NEON_H

#define QUAD_ROWS 4
#define TILE_QUADS (ELUTQ_TILE_ROWS / QUAD_ROWS)
#define MAX_CELLS (ELUTQ_HLQ_MAX_GROUP_SIZE / ELUTQ_CELL_COLUMNS)

struct tile_levels {
    float32x4_t step[TILE_QUADS], middle[TILE_QUADS];
    int8_t levels[ELUTQ_TILE_ROWS * MAX_CELLS * ELUTQ_CELL_COLUMNS]; /* as the strips want them */
};

/* f[4 rows] += what a group adds for one token. */
INLINE void add_quad(const struct tile_levels *tile, uint32_t quad, int32x4_t products, float scale, float sum, float *f) {
    const float32x4_t rows = vfmaq_n_f32(vld1q_f32(f), tile->middle[quad], sum);
    vst1q_f32(f, vfmaq_n_f32(rows, vmulq_f32(vcvtq_f32_s32(products), tile->step[quad]), scale));
}

#if ELUTQ_SMMLA
#include "strip_smmla.h"
#else
#include "strip_sdot.h"
#endif

/* The whole steps of four rows, in all four bytes of a lane, and the step and middle of their levels. */
INLINE void round_levels(const struct elutq_block *block, uint32_t bits, uint32_t quad, int8x16_t *steps,
                         struct tile_levels *out) {
    const float32x4_t zero = vdupq_n_f32(0);
    float32x4_t h[ELUTQ_HLQ_MAX_BITS], total = zero;
    float32x4_t best_hs = zero, best_ss = vdupq_n_f32(1), best_scale = zero, sum = zero;
    uint32x4_t sound = vdupq_n_u32(UINT32_MAX);
    for (uint32_t k = 0; k < bits; k++) {
        h[k] = four_half_scales(block, k, QUAD_ROWS * quad);
        sound = vandq_u32(sound, vcgezq_f32(h[k]));
        total = vaddq_f32(total, h[k]);
    }
    const float32x4_t inverse = vdivq_f32(vdupq_n_f32(1), larger(total, vdupq_n_f32(SMALLEST_SCALED)));
    for (int trial = 0; trial < ELUTQ_LEVELS_TRIALS(bits); trial++) {
        const float32x4_t scale = vmulq_n_f32(inverse, ELUTQ_LEVELS_TOP(bits) - (float)trial);
        float32x4_t hs = zero, ss = zero;
        for (uint32_t k = 0; k < bits; k++) {
            const float32x4_t step = vrndnq_f32(vmulq_f32(h[k], scale));
            hs = vfmaq_f32(hs, h[k], step);
            ss = vfmaq_f32(ss, step, step);
        }
        const uint32x4_t better =
            vcgtq_f32(vmulq_f32(vmulq_f32(hs, hs), best_ss), vmulq_f32(vmulq_f32(best_hs, best_hs), ss));
        best_hs = vbslq_f32(better, hs, best_hs);
        best_ss = vbslq_f32(better, ss, best_ss);
        best_scale = vbslq_f32(better, scale, best_scale);
    }
    for (uint32_t k = 0; k < bits; k++) {
        const float32x4_t best = vrndnq_f32(vmulq_f32(h[k], best_scale));
        steps[k] = vreinterpretq_s8_s32(vmulq_n_s32(vcvtnq_s32_f32(best), 0x01010101));
        sum = vaddq_f32(sum, best);
    }
    out->step[quad] = vmulq_n_f32(vdivq_f32(best_hs, best_ss), 2);
    float32x4_t from_middle = vfmaq_n_f32(vdupq_n_f32(128), sum, -0.5f);
    sound = vandq_u32(sound, vcltq_f32(total, vdupq_n_f32(INFINITY)));
    const float32x4_t center = vbslq_f32(sound, four_centers(block, QUAD_ROWS * quad), vdupq_n_f32(NAN));
    out->middle[quad] = vfmaq_f32(center, out->step[quad], from_middle);
}

/* The bytes of a cell that hold rows r .. r+3 and r+16 .. r+19, each four times, for r = 0, 4, 8, 12. */
static const uint8_t BYTES_OF_ROWS[4][16] = {
    {0, 0, 0, 0, 2, 2, 2, 2, 4, 4, 4, 4, 6, 6, 6, 6},
    {8, 8, 8, 8, 10, 10, 10, 10, 12, 12, 12, 12, 14, 14, 14, 14},
    {1, 1, 1, 1, 3, 3, 3, 3, 5, 5, 5, 5, 7, 7, 7, 7},
    {9, 9, 9, 9, 11, 11, 11, 11, 13, 13, 13, 13, 15, 15, 15, 15},
};

/* Writes the levels of one block, -128 to 127, and their step and middle: w ~ middle + step * level. */
INLINE void expand_block(const struct elutq_block *block, uint32_t n_cells, struct tile_levels *out) {
    const uint32_t bits = block->bits;
    const uint8x16_t columns_low = vreinterpretq_u8_u32(vdupq_n_u32(0x08040201)), columns_high = vshlq_n_u8(columns_low, 4);
    const uint8_t *planes = block->planes;
    for (uint32_t quad = 0; quad < TILE_QUADS / 2; quad++) {
        const uint8x16_t bytes = vld1q_u8(BYTES_OF_ROWS[quad]);
        int8x16_t steps_low[ELUTQ_HLQ_MAX_BITS], steps_high[ELUTQ_HLQ_MAX_BITS];
        round_levels(block, bits, quad, steps_low, out);
        round_levels(block, bits, quad + TILE_QUADS / 2, steps_high, out);
        for (uint32_t cell = 0; cell < n_cells; cell += 2) {
            int8x16_t low[2], high[2];
            ELUTQ_UNROLL(2)
            for (uint32_t i = 0; i < 2; i++) {
                low[i] = high[i] = vdupq_n_s8(-128);
                for (uint32_t k = 0; k < bits; k++) {
                    uint8x16_t rows = vqtbl1q_u8(vld1q_u8(planes + 16 * ((size_t)k * n_cells + cell + i)), bytes);
                    low[i] = vaddq_s8(low[i], vandq_s8(vreinterpretq_s8_u8(vtstq_u8(rows, columns_low)), steps_low[k]));
                    high[i] = vaddq_s8(high[i], vandq_s8(vreinterpretq_s8_u8(vtstq_u8(rows, columns_high)), steps_high[k]));
                }
            }
            store_cells(out, quad, cell, low);
            store_cells(out, quad + TILE_QUADS / 2, cell, high);
        }
    }
}

INLINE void gemm_levels_bits(const struct elutq_matrix *matrix, const struct elutq_levels *levels, uint32_t n_tokens,
                              struct elutq_part part, float *y, uint32_t bits) {
    const uint32_t group_size = matrix->group_size, n_cells = group_size / ELUTQ_CELL_COLUMNS;
    const uint32_t n_groups = elutq_matrix_groups(matrix);
    const uint32_t n_tiles = part.n_tiles;
    const size_t block_bytes = elutq_matrix_block_bytes(matrix), group_bytes = elutq_group_stride(matrix, part);
    struct tile_levels expanded;
    for (uint32_t tile = 0; tile < n_tiles; tile++, y += ELUTQ_TILE_ROWS) {
        const uint8_t *data = elutq_part_data(matrix, part) + tile * block_bytes;
        for (uint32_t t = 0; t < n_tokens; t++)
            memset(y + (size_t)t * ELUTQ_CHUNK_STRIDE, 0, ELUTQ_TILE_ROWS * sizeof *y);
        for (uint32_t group = 0; group < n_groups; group++, data += group_bytes) {
            const struct elutq_block block = elutq_block_of(matrix, matrix->kind, bits, data);
            expand_block(&block, n_cells, &expanded);
            for (uint32_t t = 0; t < n_tokens; t += STRIP_TOKENS) {
                const size_t slot = t / ELUTQ_LEVELS_TOKENS, lane = t % ELUTQ_LEVELS_TOKENS;
                const size_t at = (slot * n_groups + group) * ELUTQ_LEVELS_TOKENS + lane;
                const size_t first = (slot * matrix->n_columns + (size_t)group * group_size) * ELUTQ_LEVELS_TOKENS +
                                     lane * ELUTQ_CELL_COLUMNS;
                const uint64_t high_cells = high_cells_of(levels->high_cells + at, STRIP_TOKENS);
                for (uint32_t strip = 0; strip < ELUTQ_TILE_ROWS / STRIP_ROWS; strip++)
                    multiply_strip(&expanded, strip, n_cells, levels->values + first, levels->high + first, high_cells,
                                   levels->scales + at, levels->sums + at, n_tokens - t,
                                   y + (size_t)t * ELUTQ_CHUNK_STRIDE + STRIP_ROWS * strip);
            }
        }
    }
}

KERNEL void gemm_levels(const struct elutq_matrix *matrix, const struct elutq_levels *levels, uint32_t n_tokens,
                        struct elutq_part part, float *y) {
    ELUTQ_FOR_BITS(matrix, gemm_levels_bits, matrix, levels, n_tokens, part, y);
}

#endif
