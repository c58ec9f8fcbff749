/* Decode for AVX-512 without VBMI: table look-ups with vpshufb, four cells an instruction. */
#ifndef ELUTQ_GEMV_AVX512BW_H
#define ELUTQ_GEMV_AVX512BW_H

#include "hlq_block.h"
#include "scales_avx512.h"
#include "stream.h"

/* sum + words, in this order: GCC otherwise regroups the additions into trees whose parts it keeps on the stack. */
INLINE __m512i add_words(__m512i sum, __m512i words) {
    sum = _mm512_add_epi16(sum, words);
    ELUTQ_SETTLE(sum);
    return sum;
}

/* The multipliers of eight cells in the order of add_eight: in quarter i those of cells i and 4 + i. */
INLINE __m512i eight_multipliers(const uint8_t *multipliers) {
    const __m512i order = _mm512_set_epi32(0x07030703, 0x07030703, 0x07030703, 0x07030703, 0x06020602, 0x06020602, 0x06020602,
                                           0x06020602, 0x05010501, 0x05010501, 0x05010501, 0x05010501, 0x04000400, 0x04000400,
                                           0x04000400, 0x04000400);
    int64_t eight;
    memcpy(&eight, multipliers, sizeof eight);
    return _mm512_shuffle_epi8(_mm512_set1_epi64(eight), order);
}

/* The multipliers of a group's cells, each eight as add_eight takes them: all tiles of the group use them. */
#define ELUTQ_SPREADS_MULTIPLIERS
#define ELUTQ_SPREAD_BYTES (ELUTQ_HLQ_MAX_GROUP_SIZE / ELUTQ_CELL_COLUMNS / 8 * 64)
INLINE const uint8_t *spread_multipliers(const uint8_t *multipliers, uint32_t n_cells, uint8_t *room) {
    for (uint32_t i = 0; i < n_cells / 8; i++)
        _mm512_store_si512(room + 64 * i, eight_multipliers(multipliers + 8 * i));
    return room;
}

/* Sums of multiplied entries as 16-bit lanes, two cells side by side in each quarter, as in gemv_avx2.h (same bounds). */
struct word_sums {
    __m512i low_0, high_0, low_16, high_16;
};

/* Adds the entries that eight cells pick, `first` those of cells 0 .. 3, `second` of 4 .. 7, each times its multiplier. */
INLINE void add_eight(__m512i *low, __m512i *high, __m512i of_cells, __m512i first, __m512i second) {
    *low = add_words(*low, _mm512_maddubs_epi16(of_cells, _mm512_unpacklo_epi8(first, second)));
    *high = add_words(*high, _mm512_maddubs_epi16(of_cells, _mm512_unpackhi_epi8(first, second)));
}

/* Where row r's sum lies once the quarters are added: even bytes of a cell hold rows 0 .. 7, odd ones rows 8 .. 15. */
static const uint16_t WORD_OF_ROW[32] = {0,  2,  4,  6,  8,  10, 12, 14, 1,  3,  5,  7,  9,  11, 13, 15,
                                         16, 18, 20, 22, 24, 26, 28, 30, 17, 19, 21, 23, 25, 27, 29, 31};

/* Rows 0 to 31 in order, as 16-bit integers: the four 128-bit lanes are added crosswise. */
INLINE __m512i sums_by_row(const struct word_sums *sums) {
#define ADD_CROSSWISE(a, b, low, high) _mm512_add_epi16(_mm512_shuffle_i64x2(a, b, low), _mm512_shuffle_i64x2(a, b, high))
    const __m512i first = ADD_CROSSWISE(sums->low_0, sums->high_0, 0x44, 0xEE);
    const __m512i second = ADD_CROSSWISE(sums->low_16, sums->high_16, 0x44, 0xEE);
    const __m512i words = ADD_CROSSWISE(first, second, 0x88, 0xDD);
#undef ADD_CROSSWISE
    return _mm512_permutexvar_epi16(_mm512_loadu_si512(WORD_OF_ROW), words);
}

/* Sums the entries that one plane picks, each times its cell's multiplier. */
INLINE __m512i sum_plane(const uint8_t *plane, const int8_t *entries, const uint8_t *multipliers, uint32_t n_cells,
                         struct elutq_asking asking) {
    const __m512i nibble = _mm512_set1_epi8(15), zero = _mm512_setzero_si512();
    struct word_sums sums = {zero, zero, zero, zero};
    ELUTQ_UNROLL(2)
    for (uint32_t i = 0; i < n_cells / 8; i++) {
        const __m512i of_cells = _mm512_load_si512(multipliers + 64 * i);
        __m512i rows_0[2], rows_16[2];
        ELUTQ_UNROLL(2)
        for (uint32_t j = 0; j < 2; j++) {
            ask_for(asking, plane + 128 * i + 64 * j, 64);
            const __m512i cells = _mm512_loadu_si512(plane + 128 * i + 64 * j);
            const __m512i table = _mm512_load_si512(entries + 128 * i + 64 * j);
            rows_0[j] = _mm512_shuffle_epi8(table, _mm512_and_si512(cells, nibble));
            rows_16[j] = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(cells, 4), nibble));
        }
        add_eight(&sums.low_0, &sums.high_0, of_cells, rows_0[0], rows_0[1]);
        add_eight(&sums.low_16, &sums.high_16, of_cells, rows_16[0], rows_16[1]);
    }
    return sums_by_row(&sums);
}

INLINE __m512 half_to_floats(__m512i words, uint32_t half) {
    const __m256i chosen = half ? _mm512_extracti64x4_epi64(words, 1) : _mm512_castsi512_si256(words);
    return _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(chosen));
}

INLINE void add_block(const struct elutq_block *block, uint32_t n_cells, const int8_t *entries, const uint8_t *multipliers,
                      float scale, float sum, struct elutq_asking asking, float *f) {
    __m512i picked[ELUTQ_HLQ_MAX_BITS];
    ask_for(asking, block->scales, elutq_scales_bytes(block->kind, block->bits));
    for (uint32_t k = 0; k < block->bits; k++)
        picked[k] = sum_plane(block->planes + (size_t)k * n_cells * ELUTQ_CELL_BYTES, entries, multipliers, n_cells, asking);
    for (uint32_t half = 0; half < 2; half++) {
        __m512 u = _mm512_mul_ps(load_half_scales(block, 0, half), half_to_floats(picked[0], half));
        for (uint32_t k = 1; k < block->bits; k++)
            u = _mm512_fmadd_ps(load_half_scales(block, k, half), half_to_floats(picked[k], half), u);
        __m512 fi = _mm512_fmadd_ps(load_centers(block, half), _mm512_set1_ps(sum), _mm512_loadu_ps(f + 16 * half));
        _mm512_storeu_ps(f + 16 * half, _mm512_fmadd_ps(u, _mm512_set1_ps(scale), fi));
    }
}

#include "hlq_gemv.h"

#endif
