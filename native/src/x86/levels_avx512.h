/*
 * Prefill for AVX-512 VNNI: the planes of one tile and group become 8-bit levels once, in L1, and are then multiplied with
 * the activations of all tokens. As fast for 4 bits as for 2. Its definition is gemm_levels in kernels_scalar.c.
 */
#ifndef ELUTQ_LEVELS_AVX512_H
#define ELUTQ_LEVELS_AVX512_H

#include "scales_avx512.h"

/*
 * acc + the dot products of four unsigned with four signed bytes in each 32-bit lane. As assembly, because compilers
 * otherwise move the accumulators of long chains around.
 */
INLINE __m512i dot_bytes(__m512i acc, __m512i unsigned_bytes, __m512i signed_bytes) {
    ELUTQ_ADD_DOT_BYTES(acc, unsigned_bytes, signed_bytes);
    return acc;
}

/*
 * A cell's two 64-bit words, used as masks over bytes, put rows in this order (word q, byte j, nibble h is lane 2j + h):
 * ROW_OF[q][lane] is the tile's row; LANE_OF[h][row mod 16] is the lane, 16 q + lane, of row 16 h + row.
 */
static const int32_t ROW_OF[2][16] = {
    {0, 16, 8, 24, 1, 17, 9, 25, 2, 18, 10, 26, 3, 19, 11, 27},
    {4, 20, 12, 28, 5, 21, 13, 29, 6, 22, 14, 30, 7, 23, 15, 31},
};
static const int32_t LANE_OF[2][16] = {
    {0, 4, 8, 12, 16, 20, 24, 28, 2, 6, 10, 14, 18, 22, 26, 30},
    {1, 5, 9, 13, 17, 21, 25, 29, 3, 7, 11, 15, 19, 23, 27, 31},
};

struct tile_levels {
    __m512 step[2], middle[2];                     /* per word q, in lane order */
    uint8_t *levels;                               /* [cell][q][16 lanes][4 columns] */
};

/* Of 32 rows' numbers the sixteen of word q. */
INLINE __m512 in_lane_order(const float *rows, uint32_t q) {
    return _mm512_permutex2var_ps(_mm512_load_ps(rows), _mm512_loadu_si512(ROW_OF[q]), _mm512_load_ps(rows + 16));
}

/*
 * The whole steps of sixteen rows, in all four bytes of a lane; sets their step and middle. scales: as unpack_scales leaves
 * them.
 */
INLINE void round_levels(const float *scales, uint32_t bits, uint32_t q, __m512i *steps, struct tile_levels *out) {
    const __m512 zero = _mm512_setzero_ps();
    __m512 h[ELUTQ_HLQ_MAX_BITS], total = zero;
    __m512 best_hs = zero, best_hs_squared = zero, best_ss = _mm512_set1_ps(1), best_scale = zero, sum = zero;
    __mmask16 sound = 0xFFFF;
    for (uint32_t k = 0; k < bits; k++) {
        h[k] = in_lane_order(scales + ELUTQ_TILE_ROWS * k, q);
        sound = _mm512_mask_cmp_ps_mask(sound, h[k], zero, _CMP_GE_OQ);
        total = _mm512_add_ps(total, h[k]);
    }
    const __m512 inverse = _mm512_div_ps(_mm512_set1_ps(1), _mm512_max_ps(total, _mm512_set1_ps(SMALLEST_SCALED)));
    for (int trial = 0; trial < ELUTQ_LEVELS_TRIALS(bits); trial++) {
        const __m512 scale = _mm512_mul_ps(_mm512_set1_ps(ELUTQ_LEVELS_TOP(bits) - (float)trial), inverse);
        __m512 hs = zero, ss = zero;
        for (uint32_t k = 0; k < bits; k++) {
            const __m512 step = v16_round(_mm512_mul_ps(h[k], scale));
            hs = _mm512_fmadd_ps(h[k], step, hs);
            ss = _mm512_fmadd_ps(step, step, ss);
        }
        const __m512 hs_squared = _mm512_mul_ps(hs, hs);
        const __mmask16 better =
            _mm512_cmp_ps_mask(_mm512_mul_ps(hs_squared, best_ss), _mm512_mul_ps(best_hs_squared, ss), _CMP_GT_OQ);
        best_hs = _mm512_mask_mov_ps(best_hs, better, hs);
        best_hs_squared = _mm512_mask_mov_ps(best_hs_squared, better, hs_squared);
        best_ss = _mm512_mask_mov_ps(best_ss, better, ss);
        best_scale = _mm512_mask_mov_ps(best_scale, better, scale);
    }
    const __m512i low_bytes = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12));
    for (uint32_t k = 0; k < bits; k++) {
        const __m512 best = v16_round(_mm512_mul_ps(h[k], best_scale));
        steps[k] = _mm512_shuffle_epi8(_mm512_cvtps_epi32(best), low_bytes);
        sum = _mm512_add_ps(sum, best);
    }
    out->step[q] = _mm512_mul_ps(_mm512_set1_ps(2), _mm512_div_ps(best_hs, best_ss));
    __m512 from_middle = _mm512_fmadd_ps(sum, _mm512_set1_ps(-0.5f), _mm512_set1_ps(128));
    sound = _mm512_mask_cmp_ps_mask(sound, total, _mm512_set1_ps(INFINITY), _CMP_LT_OQ);
    const __m512 center = _mm512_mask_mov_ps(_mm512_set1_ps(NAN), sound, in_lane_order(scales + ELUTQ_TILE_ROWS * bits, q));
    out->middle[q] = _mm512_fmadd_ps(out->step[q], from_middle, center);
}

/* Writes the levels of one block, 0 to 255, and their step and middle: w ~ middle + step * (level - 128). */
INLINE void expand_block(const struct elutq_block *block, uint32_t n_cells, struct tile_levels *out) {
    const uint32_t bits = block->bits;
    const uint64_t *planes = (const uint64_t *)block->planes;
    _Alignas(64) float scales[(ELUTQ_HLQ_MAX_BITS + 1) * ELUTQ_TILE_ROWS];
    __m512i steps[2][ELUTQ_HLQ_MAX_BITS];
    unpack_scales(block, scales);
    for (uint32_t q = 0; q < 2; q++)
        round_levels(scales, bits, q, steps[q], out);
    for (uint32_t cell = 0; cell < n_cells; cell++, planes += 2)
        for (uint32_t q = 0; q < 2; q++) {
            __m512i level = _mm512_maskz_mov_epi8(planes[q], steps[q][0]);
            for (uint32_t k = 1; k < bits; k++)
                level = _mm512_mask_add_epi8(level, planes[2 * (size_t)k * n_cells + q], level, steps[q][k]);
            _mm512_store_si512(out->levels + 128 * cell + 64 * q, level);
        }
}

/* Adds one cell's levels times bytes[cell][token][4 columns]. */
INLINE void multiply_cell(const struct tile_levels *tile, uint32_t cell, const int8_t *bytes,
                          __m512i products[2][ELUTQ_LEVELS_TOKENS]) {
    const __m512i levels_0 = _mm512_load_si512(tile->levels + 128 * cell);
    const __m512i levels_1 = _mm512_load_si512(tile->levels + 128 * cell + 64);
    ELUTQ_UNROLL(8)
    for (uint32_t t = 0; t < ELUTQ_LEVELS_TOKENS; t++) {
        int32_t four;
        memcpy(&four, bytes + ELUTQ_CELL_COLUMNS * (ELUTQ_LEVELS_TOKENS * cell + t), sizeof four);
        const __m512i x = _mm512_set1_epi32(four);
        products[0][t] = dot_bytes(products[0][t], levels_0, x);
        products[1][t] = dot_bytes(products[1][t], levels_1, x);
    }
}

/*
 * One expanded block times ELUTQ_LEVELS_TOKENS tokens: y[token][2][16 lanes] += ... The high parts of few cells first, times
 * 256. The integer sums are at most 128 * 10838 in magnitude.
 */
INLINE void multiply_levels(const struct tile_levels *tile, uint32_t n_cells, const int8_t *values, const int8_t *high,
                            uint64_t high_cells, const float *scales, const float *sums, const int32_t *biases,
                            uint32_t n_tokens, float *y) {
    __m512i products[2][ELUTQ_LEVELS_TOKENS];
    ELUTQ_UNROLL(8)
    for (uint32_t t = 0; t < ELUTQ_LEVELS_TOKENS; t++)
        products[0][t] = products[1][t] = _mm512_setzero_si512();
    if (high_cells != 0) {
        for (; high_cells != 0; high_cells &= high_cells - 1)
            multiply_cell(tile, ELUTQ_LOWEST_BIT(high_cells), high, products);
        ELUTQ_UNROLL(8)
        for (uint32_t t = 0; t < ELUTQ_LEVELS_TOKENS; t++)
            for (uint32_t q = 0; q < 2; q++)
                products[q][t] = _mm512_slli_epi32(products[q][t], 8);
    }
    ELUTQ_UNROLL(8)
    for (uint32_t t = 0; t < ELUTQ_LEVELS_TOKENS; t++)
        for (uint32_t q = 0; q < 2; q++)
            products[q][t] = _mm512_add_epi32(products[q][t], _mm512_set1_epi32(biases[t]));
    for (uint32_t cell = 0; cell < n_cells; cell++)
        multiply_cell(tile, cell, values, products);
    ELUTQ_UNROLL(8)
    for (uint32_t t = 0; t < ELUTQ_LEVELS_TOKENS; t++) {
        if (t >= n_tokens)
            break;
        const __m512 sum = _mm512_set1_ps(sums[t]), scale = _mm512_set1_ps(scales[t]);
        for (uint32_t q = 0; q < 2; q++) {
            float *f = y + (size_t)t * ELUTQ_CHUNK_STRIDE + 16 * q;
            __m512 fq = _mm512_fmadd_ps(tile->middle[q], sum, _mm512_loadu_ps(f));
            __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(products[q][t]), tile->step[q]);
            _mm512_storeu_ps(f, _mm512_fmadd_ps(scaled, scale, fq));
        }
    }
}

INLINE void rows_to_natural_order(float *y, uint32_t n_tokens) {
    for (uint32_t t = 0; t < n_tokens; t++, y += ELUTQ_CHUNK_STRIDE) {
        __m512 a = _mm512_loadu_ps(y), b = _mm512_loadu_ps(y + 16);
        _mm512_storeu_ps(y, _mm512_permutex2var_ps(a, _mm512_loadu_si512(LANE_OF[0]), b));
        _mm512_storeu_ps(y + 16, _mm512_permutex2var_ps(a, _mm512_loadu_si512(LANE_OF[1]), b));
    }
}

/* Tiles that take up the activations of a group one after the other, while these are in L1. */
#define TILES_AT_ONCE 2

INLINE void gemm_levels_bits(const struct elutq_matrix *matrix, const struct elutq_levels *levels, uint32_t n_tokens,
                              struct elutq_part part, float *y, uint32_t bits) {
    const uint32_t group_size = matrix->group_size, n_cells = group_size / ELUTQ_CELL_COLUMNS;
    const uint32_t n_groups = elutq_matrix_groups(matrix);
    const uint32_t n_tiles = part.n_tiles;
    const uint32_t n_slots = (n_tokens + ELUTQ_LEVELS_TOKENS - 1) / ELUTQ_LEVELS_TOKENS;
    const size_t block_bytes = elutq_matrix_block_bytes(matrix);
    const size_t group_bytes = elutq_group_stride(matrix, part);
    const uint8_t *blocks = elutq_part_data(matrix, part); /* [group][tile], groups group_bytes apart */
    _Alignas(64) uint8_t scratch[TILES_AT_ONCE][ELUTQ_HLQ_MAX_GROUP_SIZE / ELUTQ_CELL_COLUMNS * 128];
    struct tile_levels expanded[TILES_AT_ONCE] = {{.levels = scratch[0]}, {.levels = scratch[1]}};
    for (uint32_t tile = 0; tile < n_tiles; tile += TILES_AT_ONCE) {
        const uint32_t n = n_tiles - tile < TILES_AT_ONCE ? n_tiles - tile : TILES_AT_ONCE;
        const size_t n_lines = (n * block_bytes + 63) / 64, lines_a_slot = (n_lines + n_slots - 1) / n_slots;
        float *results = y + tile * ELUTQ_TILE_ROWS;
        for (uint32_t t = 0; t < n_tokens; t++)
            memset(results + (size_t)t * ELUTQ_CHUNK_STRIDE, 0, n * ELUTQ_TILE_ROWS * sizeof *results);
        for (uint32_t group = 0; group < n_groups; group++) {
            const uint8_t *data = blocks + group * group_bytes + tile * block_bytes;
            for (uint32_t i = 0; i < n; i++) {
                const struct elutq_block block = elutq_block_of(matrix, matrix->kind, bits, data + i * block_bytes);
                expand_block(&block, n_cells, &expanded[i]);
            }
            /*
             * The next blocks lie a stride away that no hardware prefetcher follows. They are asked for a few lines after
             * each slot of tokens: a burst of requests would hold up the loads behind it.
             */
            const uint8_t *next = group + 1 < n_groups ? data + group_bytes : blocks + (tile + n) * block_bytes;
            size_t asked = 0;
            for (uint32_t slot = 0; slot < n_slots; slot++) {
                const uint32_t t = slot * ELUTQ_LEVELS_TOKENS;
                const size_t at = ((size_t)slot * n_groups + group) * ELUTQ_LEVELS_TOKENS;
                const size_t first = ((size_t)slot * matrix->n_columns + (size_t)group * group_size) * ELUTQ_LEVELS_TOKENS;
                const uint64_t high_cells = high_cells_of(levels->high_cells + at, ELUTQ_LEVELS_TOKENS);
                ELUTQ_UNROLL(1)
                for (uint32_t i = 0; i < n; i++)
                    multiply_levels(&expanded[i], n_cells, levels->values + first, levels->high + first, high_cells,
                                    levels->scales + at, levels->sums + at, levels->biases + at, n_tokens - t,
                                    results + (size_t)t * ELUTQ_CHUNK_STRIDE + i * ELUTQ_TILE_ROWS);
                for (size_t end = asked + lines_a_slot; asked < end && asked < n_lines; asked++)
                    ELUTQ_PREFETCH(next + 64 * asked, 2);
            }
        }
        for (uint32_t i = 0; i < n; i++)
            rows_to_natural_order(results + i * ELUTQ_TILE_ROWS, n_tokens);
    }
}

KERNEL void gemm_levels(const struct elutq_matrix *matrix, const struct elutq_levels *levels, uint32_t n_tokens,
                        struct elutq_part part, float *y) {
    ELUTQ_FOR_BITS(matrix, gemm_levels_bits, matrix, levels, n_tokens, part, y);
}

#endif
