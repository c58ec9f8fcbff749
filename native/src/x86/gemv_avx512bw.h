/*
 * Decode for AVX-512 without VBMI: table look-ups with vpshufb, four cells an instruction. Tables hold unsigned bytes, 128 too
 * high.
 */
#ifndef ELUTQ_GEMV_AVX512BW_H
#define ELUTQ_GEMV_AVX512BW_H

#include "hlq_block.h"
#include "scales_avx512.h"
#include "stream.h"

/* sum + words, in this order: GCC otherwise regroups the additions into trees whose parts it keeps on the stack. */
INLINE __m512i add_words(__m512i sum, __m512i words) {
    sum = _mm512_add_epi16(sum, words);
    __asm__("" : "+v"(sum));
    return sum;
}

/* Sums of bytes, four cells side by side, in pairs as in gemv_avx2.h (same bounds). */
struct byte_sums {
    __m512i pairs_0, highs_0, pairs_16, highs_16; /* of rows 0 .. 15 and 16 .. 31 */
};

INLINE void add_bytes(struct byte_sums *sums, __m512i rows_0, __m512i rows_16) {
    sums->pairs_0 = add_words(sums->pairs_0, rows_0);
    sums->highs_0 = add_words(sums->highs_0, _mm512_srli_epi16(rows_0, 8));
    sums->pairs_16 = add_words(sums->pairs_16, rows_16);
    sums->highs_16 = add_words(sums->highs_16, _mm512_srli_epi16(rows_16, 8));
}

/* Rows 0 to 31 in order, as 16-bit integers: the four 128-bit lanes, one a cell, are added crosswise. */
INLINE __m512i byte_sums_by_row(const struct byte_sums *sums, uint32_t n_cells) {
    const __m512i pairs_0 = _mm512_sub_epi16(sums->pairs_0, _mm512_slli_epi16(sums->highs_0, 8));
    const __m512i pairs_16 = _mm512_sub_epi16(sums->pairs_16, _mm512_slli_epi16(sums->highs_16, 8));
#define ADD_CROSSWISE(a, b, low, high) _mm512_add_epi16(_mm512_shuffle_i64x2(a, b, low), _mm512_shuffle_i64x2(a, b, high))
    const __m512i first = ADD_CROSSWISE(pairs_0, sums->highs_0, 0x44, 0xEE);
    const __m512i second = ADD_CROSSWISE(pairs_16, sums->highs_16, 0x44, 0xEE);
    const __m512i rows = ADD_CROSSWISE(first, second, 0x88, 0xDD);
#undef ADD_CROSSWISE
    return _mm512_sub_epi16(rows, _mm512_set1_epi16((short)(128 * n_cells)));
}

/* Sums the entries that one plane picks. */
INLINE __m512i sum_plane(const uint8_t *plane, const int8_t *entries, uint32_t n_cells, bool by_line) {
    const __m512i nibble = _mm512_set1_epi8(15), zero = _mm512_setzero_si512();
    struct byte_sums sums = {zero, zero, zero, zero};
#pragma GCC unroll 2
    for (uint32_t i = 0; i < n_cells / 4; i++) {
        if (by_line)
            ask_by_line(plane + 64 * i, 64);
        const __m512i cells = _mm512_load_si512(plane + 64 * i), table = _mm512_load_si512(entries + 64 * i);
        add_bytes(&sums, _mm512_shuffle_epi8(table, _mm512_and_si512(cells, nibble)),
                  _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(cells, 4), nibble)));
    }
    return byte_sums_by_row(&sums, n_cells);
}

INLINE __m512 half_to_floats(__m512i words, uint32_t half) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(half ? _mm512_extracti64x4_epi64(words, 1) : _mm512_castsi512_si256(words)));
}

INLINE void add_block(const uint8_t *block, uint32_t bits, uint32_t n_cells, const int8_t *entries, float scale, float sum,
                      bool by_line, float *f) {
    __m512i picked[ELUTQ_HLQ_MAX_BITS];
    if (by_line)
        ask_by_line(block, elutq_scales_bytes(bits));
    for (uint32_t k = 0; k < bits; k++)
        picked[k] = sum_plane(block + 64 * (bits + 1) + (size_t)k * n_cells * ELUTQ_CELL_BYTES, entries, n_cells, by_line);
    for (uint32_t half = 0; half < 2; half++) {
        __m512 u = _mm512_mul_ps(load_scales(block, 0, half), half_to_floats(picked[0], half));
        for (uint32_t k = 1; k < bits; k++)
            u = _mm512_fmadd_ps(load_scales(block, k, half), half_to_floats(picked[k], half), u);
        __m512 fi = _mm512_fmadd_ps(load_scales(block, bits, half), _mm512_set1_ps(sum), _mm512_loadu_ps(f + 16 * half));
        _mm512_storeu_ps(f + 16 * half, _mm512_fmadd_ps(u, _mm512_set1_ps(scale), fi));
    }
}

#include "hlq_gemv.h"

#endif
