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

/*
 * Sums the entries that one plane picks, as 16-bit integers: rows 0 to 31 in order. Pairs of bytes are summed as in gemv_avx2.h
 * (same bounds); the four 128-bit lanes, one a cell, are then added crosswise.
 */
INLINE __m512i sum_plane(const uint8_t *plane, const int8_t *entries, uint32_t n_cells, bool by_line) {
    const __m512i nibble = _mm512_set1_epi8(15);
    __m512i pairs_0 = _mm512_setzero_si512(), highs_0 = pairs_0, pairs_16 = pairs_0, highs_16 = pairs_0;
#pragma GCC unroll 2
    for (uint32_t i = 0; i < n_cells / 4; i++) {
        if (by_line)
            ask_by_line(plane + 64 * i, 64);
        __m512i cells = _mm512_load_si512(plane + 64 * i), table = _mm512_load_si512(entries + 64 * i);
        __m512i rows_0 = _mm512_shuffle_epi8(table, _mm512_and_si512(cells, nibble));
        __m512i rows_16 = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(cells, 4), nibble));
        pairs_0 = add_words(pairs_0, rows_0);
        highs_0 = add_words(highs_0, _mm512_srli_epi16(rows_0, 8));
        pairs_16 = add_words(pairs_16, rows_16);
        highs_16 = add_words(highs_16, _mm512_srli_epi16(rows_16, 8));
    }
    pairs_0 = _mm512_sub_epi16(pairs_0, _mm512_slli_epi16(highs_0, 8));
    pairs_16 = _mm512_sub_epi16(pairs_16, _mm512_slli_epi16(highs_16, 8));
#define ADD_CROSSWISE(a, b, low, high) _mm512_add_epi16(_mm512_shuffle_i64x2(a, b, low), _mm512_shuffle_i64x2(a, b, high))
    __m512i first = ADD_CROSSWISE(pairs_0, highs_0, 0x44, 0xEE), second = ADD_CROSSWISE(pairs_16, highs_16, 0x44, 0xEE);
    __m512i rows = ADD_CROSSWISE(first, second, 0x88, 0xDD);
#undef ADD_CROSSWISE
    return _mm512_sub_epi16(rows, _mm512_set1_epi16((short)(128 * n_cells)));
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
