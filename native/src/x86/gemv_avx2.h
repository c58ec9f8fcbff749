/* Decode for AVX2: table look-ups with vpshufb, two cells an instruction. */
#ifndef ELUTQ_GEMV_AVX2_H
#define ELUTQ_GEMV_AVX2_H

#include "hlq_block.h"
#include "scales_avx2.h"
#include "stream.h"

/* The multipliers of four cells in the order of add_four: those of cells 0 and 2 in the lower half, of 1 and 3 above. */
INLINE __m256i four_multipliers(const uint8_t *multipliers) {
    const __m256i order = _mm256_setr_epi8(0, 2, 0, 2, 0, 2, 0, 2, 0, 2, 0, 2, 0, 2, 0, 2,
                                           1, 3, 1, 3, 1, 3, 1, 3, 1, 3, 1, 3, 1, 3, 1, 3);
    int32_t four;
    memcpy(&four, multipliers, sizeof four);
    return _mm256_shuffle_epi8(_mm256_set1_epi32(four), order);
}

/*
 * Sums of multiplied entries as 16-bit lanes, two cells side by side in each half: of bytes 0 .. 7 and of bytes 8 .. 15 of a
 * cell, for its low nibbles (rows 0 .. 15) and its high ones. At most ELUTQ_MULTIPLIERS * 127 in magnitude.
 */
struct word_sums {
    __m256i low_0, high_0, low_16, high_16;
};

/* Adds the entries that four cells pick, `first` those of cells 0 and 1, `second` of 2 and 3, each times its multiplier. */
INLINE void add_four(__m256i *low, __m256i *high, __m256i of_cells, __m256i first, __m256i second) {
    *low = _mm256_add_epi16(*low, _mm256_maddubs_epi16(of_cells, _mm256_unpacklo_epi8(first, second)));
    *high = _mm256_add_epi16(*high, _mm256_maddubs_epi16(of_cells, _mm256_unpackhi_epi8(first, second)));
}

/* rows[0] gets rows 0 .. 7, rows[1] rows 8 .. 15: even bytes of a cell hold the former, odd ones the latter. */
INLINE void words_by_row(__m256i low, __m256i high, __m128i rows[2]) {
    const __m128i even_first = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
#define ADD_HALVES(v) _mm_add_epi16(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1))
    const __m128i a = _mm_shuffle_epi8(ADD_HALVES(low), even_first), b = _mm_shuffle_epi8(ADD_HALVES(high), even_first);
#undef ADD_HALVES
    rows[0] = _mm_unpacklo_epi64(a, b);
    rows[1] = _mm_unpackhi_epi64(a, b);
}

/* picked[i] gets rows 8i .. 8i+7. */
INLINE void sums_by_row(const struct word_sums *sums, __m128i picked[4]) {
    words_by_row(sums->low_0, sums->high_0, picked);
    words_by_row(sums->low_16, sums->high_16, picked + 2);
}

/* Sums the entries that one plane picks, each times its cell's multiplier. */
INLINE void sum_plane(const uint8_t *plane, const int8_t *entries, const uint8_t *multipliers, uint32_t n_cells, size_t ahead,
                      __m128i picked[4]) {
    const __m256i nibble = _mm256_set1_epi8(15), zero = _mm256_setzero_si256();
    struct word_sums sums = {zero, zero, zero, zero};
    ELUTQ_UNROLL(2)
    for (uint32_t i = 0; i < n_cells / 4; i++) {
        if (ahead > 0)
            ask_by_line(plane + 64 * i, 64, ahead);
        const __m256i of_cells = four_multipliers(multipliers + 4 * i);
        __m256i rows_0[2], rows_16[2];
        ELUTQ_UNROLL(2)
        for (uint32_t j = 0; j < 2; j++) {
            const __m256i cells = _mm256_load_si256((const __m256i *)(plane + 64 * i + 32 * j));
            const __m256i table = _mm256_load_si256((const __m256i *)(entries + 64 * i + 32 * j));
            rows_0[j] = _mm256_shuffle_epi8(table, _mm256_and_si256(cells, nibble));
            rows_16[j] = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(cells, 4), nibble));
        }
        add_four(&sums.low_0, &sums.high_0, of_cells, rows_0[0], rows_0[1]);
        add_four(&sums.low_16, &sums.high_16, of_cells, rows_16[0], rows_16[1]);
    }
    sums_by_row(&sums, picked);
}

INLINE void add_block(const struct elutq_block *block, uint32_t n_cells, const int8_t *entries, const uint8_t *multipliers,
                      float scale, float sum, size_t ahead, float *f) {
    __m128i picked[ELUTQ_HLQ_MAX_BITS][4];
    if (ahead > 0)
        ask_by_line(block->scales, elutq_scales_bytes(block->kind, block->bits), ahead);
    for (uint32_t k = 0; k < block->bits; k++)
        sum_plane(block->planes + (size_t)k * n_cells * ELUTQ_CELL_BYTES, entries, multipliers, n_cells, ahead, picked[k]);
    for (uint32_t i = 0; i < 4; i++) {
        __m256 u = _mm256_mul_ps(load_half_scales(block, 0, i), _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(picked[0][i])));
        for (uint32_t k = 1; k < block->bits; k++)
            u = _mm256_fmadd_ps(load_half_scales(block, k, i), _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(picked[k][i])), u);
        __m256 fi = _mm256_fmadd_ps(load_centers(block, i), _mm256_set1_ps(sum), _mm256_loadu_ps(f + 8 * i));
        _mm256_storeu_ps(f + 8 * i, _mm256_fmadd_ps(u, _mm256_set1_ps(scale), fi));
    }
}

#include "hlq_gemv.h"
#include "tables_avx2.h"

#endif
