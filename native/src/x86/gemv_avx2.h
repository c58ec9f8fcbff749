/* Decode for AVX2: table look-ups with vpshufb, two cells an instruction. Tables hold unsigned bytes, 128 too high. */
#ifndef ELUTQ_GEMV_AVX2_H
#define ELUTQ_GEMV_AVX2_H

#include "hlq_block.h"
#include "stream.h"

/*
 * Sums of bytes, two cells side by side, as 16-bit lanes: `pairs` collects low + 256 * high modulo 2^16, `highs` the high
 * bytes alone, so low = pairs - 256 * highs. Both stay below 2^16: at most 32 cells times 255.
 */
struct byte_sums {
    __m256i pairs_0, highs_0, pairs_16, highs_16; /* of rows 0 .. 15 and 16 .. 31 */
};

INLINE void add_bytes(struct byte_sums *sums, __m256i rows_0, __m256i rows_16) {
    sums->pairs_0 = _mm256_add_epi16(sums->pairs_0, rows_0);
    sums->highs_0 = _mm256_add_epi16(sums->highs_0, _mm256_srli_epi16(rows_0, 8));
    sums->pairs_16 = _mm256_add_epi16(sums->pairs_16, rows_16);
    sums->highs_16 = _mm256_add_epi16(sums->highs_16, _mm256_srli_epi16(rows_16, 8));
}

/* picked[i] gets rows 8i .. 8i+7; the unsigned bias of 128 a cell comes off. */
INLINE void byte_sums_by_row(const struct byte_sums *sums, uint32_t n_cells, __m128i picked[4]) {
    const __m128i bias = _mm_set1_epi16((short)(128 * n_cells));
#define ADD_HALVES(v) _mm_add_epi16(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1))
    __m128i p0 = ADD_HALVES(sums->pairs_0), h0 = ADD_HALVES(sums->highs_0);
    __m128i p16 = ADD_HALVES(sums->pairs_16), h16 = ADD_HALVES(sums->highs_16);
#undef ADD_HALVES
    picked[0] = _mm_sub_epi16(_mm_sub_epi16(p0, _mm_slli_epi16(h0, 8)), bias);
    picked[1] = _mm_sub_epi16(h0, bias);
    picked[2] = _mm_sub_epi16(_mm_sub_epi16(p16, _mm_slli_epi16(h16, 8)), bias);
    picked[3] = _mm_sub_epi16(h16, bias);
}

/*
 * Sums the entries that one plane picks. Unrolled four times, not more: GCC turns longer chains of additions into trees
 * whose parts it keeps on the stack, and takes half as long again.
 */
INLINE void sum_plane(const uint8_t *plane, const int8_t *entries, uint32_t n_cells, bool by_line,
                      __m128i picked[4]) {
    const __m256i nibble = _mm256_set1_epi8(15), zero = _mm256_setzero_si256();
    struct byte_sums sums = {zero, zero, zero, zero};
#pragma GCC unroll 4
    for (uint32_t i = 0; i < n_cells / 2; i++) {
        if (by_line && i % 2 == 0)
            ask_by_line(plane + 32 * i, 64);
        __m256i cells = _mm256_load_si256((const __m256i *)(plane + 32 * i));
        __m256i table = _mm256_load_si256((const __m256i *)(entries + 32 * i));
        add_bytes(&sums, _mm256_shuffle_epi8(table, _mm256_and_si256(cells, nibble)),
                  _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(cells, 4), nibble)));
    }
    byte_sums_by_row(&sums, n_cells, picked);
}

INLINE __m256 load_scales(const uint8_t *block, uint32_t plane, uint32_t eight_rows) {
    return _mm256_cvtph_ps(_mm_load_si128((const __m128i *)(block + 64 * plane + 16 * eight_rows)));
}

INLINE void add_block(const uint8_t *block, uint32_t bits, uint32_t n_cells, const int8_t *entries, float scale, float sum,
                      bool by_line, float *f) {
    __m128i picked[ELUTQ_HLQ_MAX_BITS][4];
    if (by_line)
        ask_by_line(block, elutq_scales_bytes(bits));
    for (uint32_t k = 0; k < bits; k++)
        sum_plane(block + 64 * (bits + 1) + (size_t)k * n_cells * ELUTQ_CELL_BYTES, entries, n_cells, by_line, picked[k]);
    for (uint32_t i = 0; i < 4; i++) {
        __m256 u = _mm256_mul_ps(load_scales(block, 0, i), _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(picked[0][i])));
        for (uint32_t k = 1; k < bits; k++)
            u = _mm256_fmadd_ps(load_scales(block, k, i), _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(picked[k][i])), u);
        __m256 fi = _mm256_fmadd_ps(load_scales(block, bits, i), _mm256_set1_ps(sum), _mm256_loadu_ps(f + 8 * i));
        _mm256_storeu_ps(f + 8 * i, _mm256_fmadd_ps(u, _mm256_set1_ps(scale), fi));
    }
}

#include "hlq_gemv.h"
#include "tables_avx2.h"

#endif
