/*
 * Prefill for AVX-VNNI: the planes of one tile and group become 8-bit levels once, in L1, and are then multiplied with the
 * activations of all tokens. Its definition is gemm_levels in kernels_scalar.c.
 */
#ifndef ELUTQ_LEVELS_AVXVNNI_H
#define ELUTQ_LEVELS_AVXVNNI_H

#include <math.h>

/* A tile as strips of eight rows, one register each. */
#define STRIPS 4

/*
 * Rows multiplied with tokens at a time: 2 strips by 4 tokens are 8 registers of sums, 2 of levels and one of activations.
 */
#define PAIR_STRIPS 2
#define HALF_TOKENS (ELUTQ_LEVELS_TOKENS / 2)

struct tile_levels {
    __m256 step[STRIPS], middle[STRIPS]; /* rows 8 strip .. 8 strip + 7 */
    uint8_t *levels;                     /* [cell][strip][8 rows][4 columns], 32-byte aligned */
};

INLINE __m256 round_lanes(__m256 x) {
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/*
 * The whole steps of a strip's rows, in all four bytes of a lane; sets their step and middle. scales: as unpack_scales
 * leaves them.
 */
INLINE void round_levels(const float *scales, uint32_t bits, uint32_t strip, __m256i *steps, struct tile_levels *out) {
    const __m256 zero = _mm256_setzero_ps();
    __m256 h[ELUTQ_HLQ_MAX_BITS], total = zero;
    __m256 best_hs = zero, best_ss = _mm256_set1_ps(1), best_scale = zero, sum = zero;
    __m256 sound = _mm256_cmp_ps(zero, zero, _CMP_EQ_OQ);
    for (uint32_t k = 0; k < bits; k++) {
        h[k] = _mm256_load_ps(scales + ELUTQ_TILE_ROWS * k + 8 * strip);
        sound = _mm256_and_ps(sound, _mm256_cmp_ps(h[k], zero, _CMP_GE_OQ));
        total = _mm256_add_ps(total, h[k]);
    }
    const __m256 inverse = _mm256_div_ps(_mm256_set1_ps(1), _mm256_max_ps(total, _mm256_set1_ps(SMALLEST_SCALED)));
    for (int trial = 0; trial < ELUTQ_LEVELS_TRIALS(bits); trial++) {
        const __m256 scale = _mm256_mul_ps(_mm256_set1_ps(ELUTQ_LEVELS_TOP(bits) - (float)trial), inverse);
        __m256 hs = zero, ss = zero;
        for (uint32_t k = 0; k < bits; k++) {
            const __m256 step = round_lanes(_mm256_mul_ps(h[k], scale));
            hs = _mm256_fmadd_ps(h[k], step, hs);
            ss = _mm256_fmadd_ps(step, step, ss);
        }
        const __m256 better = _mm256_cmp_ps(_mm256_mul_ps(_mm256_mul_ps(hs, hs), best_ss),
                                            _mm256_mul_ps(_mm256_mul_ps(best_hs, best_hs), ss), _CMP_GT_OQ);
        best_hs = _mm256_blendv_ps(best_hs, hs, better);
        best_ss = _mm256_blendv_ps(best_ss, ss, better);
        best_scale = _mm256_blendv_ps(best_scale, scale, better);
    }
    for (uint32_t k = 0; k < bits; k++) {
        const __m256 best = round_lanes(_mm256_mul_ps(h[k], best_scale));
        steps[k] = _mm256_mullo_epi32(_mm256_cvtps_epi32(best), _mm256_set1_epi32(0x01010101));
        sum = _mm256_add_ps(sum, best);
    }
    out->step[strip] = _mm256_mul_ps(_mm256_set1_ps(2), _mm256_div_ps(best_hs, best_ss));
    __m256 from_middle = _mm256_fmadd_ps(sum, _mm256_set1_ps(-0.5f), _mm256_set1_ps(128));
    sound = _mm256_and_ps(sound, _mm256_cmp_ps(total, _mm256_set1_ps(INFINITY), _CMP_LT_OQ));
    const __m256 center =
        _mm256_blendv_ps(_mm256_set1_ps(NAN), _mm256_load_ps(scales + ELUTQ_TILE_ROWS * bits + 8 * strip), sound);
    out->middle[strip] = _mm256_fmadd_ps(out->step[strip], from_middle, center);
}

/* The byte of a cell that holds each of eight rows, four times: even bytes hold rows 0 .. 7, odd ones rows 8 .. 15. */
static const uint8_t BYTES_OF_ROWS[2][32] = {
    {0, 0, 0, 0, 2, 2, 2, 2, 4, 4, 4, 4, 6, 6, 6, 6, 8, 8, 8, 8, 10, 10, 10, 10, 12, 12, 12, 12, 14, 14, 14, 14},
    {1, 1, 1, 1, 3, 3, 3, 3, 5, 5, 5, 5, 7, 7, 7, 7, 9, 9, 9, 9, 11, 11, 11, 11, 13, 13, 13, 13, 15, 15, 15, 15},
};

/*
 * Writes the levels of one block, 0 to 255, and their step and middle: w ~ middle + step * (level - 128). A cell's bytes are
 * spread so that each lane has its row's byte four times; a column's bit, compared with itself alone, gives the mask under
 * which the row's step is added.
 */
INLINE void expand_block(const struct elutq_block *block, uint32_t n_cells, struct tile_levels *out) {
    const uint32_t bits = block->bits;
    const uint8_t *planes = block->planes;
    _Alignas(32) float scales[(ELUTQ_HLQ_MAX_BITS + 1) * ELUTQ_TILE_ROWS];
    unpack_scales(block, scales);
    for (uint32_t strip = 0; strip < STRIPS; strip++) {
        const __m256i rows = _mm256_loadu_si256((const __m256i *)BYTES_OF_ROWS[strip & 1]);
        const __m256i column = _mm256_set1_epi32(strip < 2 ? 0x08040201 : (int)0x80402010); /* low or high nibble */
        __m256i steps[ELUTQ_HLQ_MAX_BITS];
        round_levels(scales, bits, strip, steps, out);
        for (uint32_t cell = 0; cell < n_cells; cell++) {
            __m256i level = _mm256_setzero_si256();
            for (uint32_t k = 0; k < bits; k++) {
                const uint8_t *bytes = planes + ((size_t)k * n_cells + cell) * ELUTQ_CELL_BYTES;
                __m256i both = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *)bytes));
                __m256i bit = _mm256_and_si256(_mm256_shuffle_epi8(both, rows), column);
                level = _mm256_add_epi8(level, _mm256_and_si256(_mm256_cmpeq_epi8(bit, column), steps[k]));
            }
            _mm256_store_si256((__m256i *)(out->levels + 32 * (STRIPS * cell + strip)), level);
        }
    }
}

/* Adds one cell's levels, of two strips, times bytes[cell][token][4 columns]. */
INLINE void multiply_cell(const uint8_t *strips, uint32_t cell, const int8_t *bytes,
                          __m256i products[PAIR_STRIPS][HALF_TOKENS]) {
    const uint8_t *levels = strips + 32 * STRIPS * cell;
    const __m256i levels_0 = _mm256_load_si256((const __m256i *)levels);
    const __m256i levels_1 = _mm256_load_si256((const __m256i *)(levels + 32));
    ELUTQ_UNROLL(4)
    for (uint32_t t = 0; t < HALF_TOKENS; t++) {
        int32_t four;
        memcpy(&four, bytes + ELUTQ_CELL_COLUMNS * (ELUTQ_LEVELS_TOKENS * cell + t), sizeof four);
        const __m256i x = _mm256_set1_epi32(four);
        products[0][t] = _mm256_dpbusd_avx_epi32(products[0][t], levels_0, x);
        products[1][t] = _mm256_dpbusd_avx_epi32(products[1][t], levels_1, x);
    }
}

/*
 * Two strips of an expanded block times four tokens: y[token][16 rows] += ... The high parts of few cells first, times 256.
 * Integer sums as in levels_avx512.h.
 */
INLINE void multiply_levels(const struct tile_levels *tile, uint32_t first_strip, uint32_t n_cells, const int8_t *values,
                            const int8_t *high, uint64_t high_cells, const float *scales, const float *sums,
                            const int32_t *biases, uint32_t n_tokens, float *y) {
    const uint8_t *strips = tile->levels + 32 * first_strip;
    __m256i products[PAIR_STRIPS][HALF_TOKENS];
    ELUTQ_UNROLL(4)
    for (uint32_t t = 0; t < HALF_TOKENS; t++)
        products[0][t] = products[1][t] = _mm256_setzero_si256();
    if (high_cells != 0) {
        for (; high_cells != 0; high_cells &= high_cells - 1)
            multiply_cell(strips, ELUTQ_LOWEST_BIT(high_cells), high, products);
        ELUTQ_UNROLL(4)
        for (uint32_t t = 0; t < HALF_TOKENS; t++)
            for (uint32_t s = 0; s < PAIR_STRIPS; s++)
                products[s][t] = _mm256_slli_epi32(products[s][t], 8);
    }
    ELUTQ_UNROLL(4)
    for (uint32_t t = 0; t < HALF_TOKENS; t++)
        for (uint32_t s = 0; s < PAIR_STRIPS; s++)
            products[s][t] = _mm256_add_epi32(products[s][t], _mm256_set1_epi32(biases[t]));
    for (uint32_t cell = 0; cell < n_cells; cell++)
        multiply_cell(strips, cell, values, products);
    ELUTQ_UNROLL(4)
    for (uint32_t t = 0; t < HALF_TOKENS; t++) {
        if (t >= n_tokens)
            break;
        for (uint32_t s = 0; s < PAIR_STRIPS; s++) {
            float *f = y + (size_t)t * ELUTQ_CHUNK_STRIDE + 8 * s;
            __m256 fs = _mm256_fmadd_ps(tile->middle[first_strip + s], _mm256_set1_ps(sums[t]), _mm256_loadu_ps(f));
            __m256 scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(products[s][t]), tile->step[first_strip + s]);
            _mm256_storeu_ps(f, _mm256_fmadd_ps(scaled, _mm256_set1_ps(scales[t]), fs));
        }
    }
}

INLINE void multiply_tile(const struct tile_levels *tile, const struct elutq_matrix *matrix, const struct elutq_levels *levels,
                          uint32_t group, uint32_t n_tokens, float *y, uint32_t group_size) {
    const uint32_t n_cells = group_size / ELUTQ_CELL_COLUMNS, n_groups = matrix->n_columns / group_size;
    for (uint32_t t = 0; t < n_tokens; t += HALF_TOKENS) {
        const size_t slot = t / ELUTQ_LEVELS_TOKENS, lane = t % ELUTQ_LEVELS_TOKENS;
        const size_t at = (slot * n_groups + group) * ELUTQ_LEVELS_TOKENS + lane;
        const size_t first = (slot * matrix->n_columns + (size_t)group * group_size) * ELUTQ_LEVELS_TOKENS +
                             lane * ELUTQ_CELL_COLUMNS;
        const uint64_t high_cells = high_cells_of(levels->high_cells + at, HALF_TOKENS);
        for (uint32_t strip = 0; strip < STRIPS; strip += PAIR_STRIPS)
            multiply_levels(tile, strip, n_cells, levels->values + first, levels->high + first, high_cells,
                            levels->scales + at, levels->sums + at, levels->biases + at, n_tokens - t,
                            y + (size_t)t * ELUTQ_CHUNK_STRIDE + 8 * strip);
    }
}

INLINE void gemm_levels_bits(const struct elutq_matrix *matrix, const struct elutq_levels *levels, uint32_t n_tokens,
                              struct elutq_part part, float *y, uint32_t bits) {
    const uint32_t group_size = matrix->group_size, n_cells = group_size / ELUTQ_CELL_COLUMNS;
    const uint32_t n_groups = elutq_matrix_groups(matrix);
    const uint32_t n_tiles = part.n_tiles;
    const size_t block_bytes = elutq_matrix_block_bytes(matrix), group_bytes = elutq_group_stride(matrix, part);
    _Alignas(32) uint8_t scratch[ELUTQ_HLQ_MAX_GROUP_SIZE / ELUTQ_CELL_COLUMNS * STRIPS * 32];
    struct tile_levels expanded = {.levels = scratch};
    for (uint32_t tile = 0; tile < n_tiles; tile++, y += ELUTQ_TILE_ROWS) {
        const uint8_t *data = elutq_part_data(matrix, part) + tile * block_bytes;
        for (uint32_t t = 0; t < n_tokens; t++)
            memset(y + (size_t)t * ELUTQ_CHUNK_STRIDE, 0, ELUTQ_TILE_ROWS * sizeof *y);
        for (uint32_t group = 0; group < n_groups; group++, data += group_bytes) {
            const struct elutq_block block = elutq_block_of(matrix, matrix->kind, bits, data);
            /* The tile's next group lies a stride away that no hardware prefetcher follows. */
            for (size_t i = 0; i < block_bytes; i += 64)
                ELUTQ_PREFETCH(data + group_bytes + i, 3);
            expand_block(&block, n_cells, &expanded);
            multiply_tile(&expanded, matrix, levels, group, n_tokens, y, group_size);
        }
    }
}

KERNEL void gemm_levels(const struct elutq_matrix *matrix, const struct elutq_levels *levels, uint32_t n_tokens,
                        struct elutq_part part, float *y) {
    ELUTQ_FOR_BITS(matrix, gemm_levels_bits, matrix, levels, n_tokens, part, y);
}

#endif
