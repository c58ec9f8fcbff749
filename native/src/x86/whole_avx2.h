/*
 * Half scales and centers of one byte as whole numbers for AVX2: no conversion of halves, which is the dearest instruction
 * of a block, and the products of two planes in one.
 *
 * Rows have an order of their own, that in which sums of table entries fall out: sixteen words are rows 0, 8, 1, 9, 2, 10, 3,
 * 11 and 16 more, or 4, 12, 5, 13, 6, 14, 7, 15 and 16 more; as floats eight, 0, 8, 1, 9 and 16 more, then 2, 10 and so on.
 */
#ifndef ELUTQ_WHOLE_AVX2_H
#define ELUTQ_WHOLE_AVX2_H

#include "hlq_block.h"

/* Numbers of a byte are these times 2^-19 and 2^-18: multiples of the least fp16 number, shifted as the byte is. */
#define WHOLE_HALF_SCALE 0x1p-19f
#define WHOLE_CENTER 0x1p-18f

/* y[32] back in the order of its rows. */
INLINE void finish_tile(float *y) {
    const __m256 rows_0 = _mm256_loadu_ps(y), rows_2 = _mm256_loadu_ps(y + 8);
    const __m256 rows_4 = _mm256_loadu_ps(y + 16), rows_6 = _mm256_loadu_ps(y + 24);
    const __m256 a = _mm256_permute2f128_ps(rows_0, rows_4, 0x20), b = _mm256_permute2f128_ps(rows_2, rows_6, 0x20);
    const __m256 c = _mm256_permute2f128_ps(rows_0, rows_4, 0x31), d = _mm256_permute2f128_ps(rows_2, rows_6, 0x31);
    _mm256_storeu_ps(y, _mm256_shuffle_ps(a, b, 0x88));
    _mm256_storeu_ps(y + 8, _mm256_shuffle_ps(a, b, 0xDD));
    _mm256_storeu_ps(y + 16, _mm256_shuffle_ps(c, d, 0x88));
    _mm256_storeu_ps(y + 24, _mm256_shuffle_ps(c, d, 0xDD));
}

/* Words of a and b side by side, those of eight rows, i being 0 to 3. */
INLINE __m256i pair_words(const __m256i a[2], const __m256i b[2], uint32_t i) {
    return i % 2 == 0 ? _mm256_unpacklo_epi16(a[i / 2], b[i / 2]) : _mm256_unpackhi_epi16(a[i / 2], b[i / 2]);
}

/* The bytes of 32 rows, so that even ones are the rows of words[0] and odd ones those of words[1]. */
INLINE __m256i ordered_bytes(const uint8_t *bytes) {
    const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm256_shuffle_epi8(_mm256_load_si256((const __m256i *)bytes), _mm256_broadcastsi128_si256(order));
}

/* 2 to the power of exponents less one, which are 0 to 7; of 0, as of 1, that is 1. */
INLINE __m256i powers_of(__m256i exponents) {
    const __m128i powers = _mm_setr_epi8(1, 1, 2, 4, 8, 16, 32, 64, 0, 0, 0, 0, 0, 0, 0, 0);
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(powers), exponents);
}

/* Mantissas, which have their first bit, times signed powers. */
INLINE void words_of(__m256i mantissas, __m256i powers, __m256i words[2]) {
    const __m256i even = _mm256_set1_epi16(0x00FF);
    words[0] = _mm256_maddubs_epi16(_mm256_and_si256(mantissas, even), powers);
    words[1] = _mm256_maddubs_epi16(_mm256_andnot_si256(even, mantissas), powers);
}

/* 0 to 63 * 64. */
INLINE void whole_half_scales(const uint8_t *bytes, __m256i words[2]) {
    const __m256i both = ordered_bytes(bytes), exponents = _mm256_and_si256(both, _mm256_set1_epi8((char)0xE0));
    /* The byte without its exponent but for 1, where that is 1 or more. */
    const __m256i mantissas = _mm256_sub_epi8(both, _mm256_subs_epu8(exponents, _mm256_set1_epi8(0x20)));
    words_of(mantissas, powers_of(_mm256_srli_epi16(exponents, 5)), words);
}

/* -31 * 64 to 31 * 64. */
INLINE void whole_centers(const uint8_t *bytes, __m256i words[2]) {
    const __m256i all = ordered_bytes(bytes), both = _mm256_and_si256(all, _mm256_set1_epi8(0x7F));
    const __m256i exponents = _mm256_and_si256(all, _mm256_set1_epi8(0x70));
    const __m256i mantissas = _mm256_sub_epi8(both, _mm256_subs_epu8(exponents, _mm256_set1_epi8(0x10)));
    words_of(mantissas, _mm256_sign_epi8(powers_of(_mm256_srli_epi16(exponents, 4)), all), words);
}

/* Whole centers as floats, without a conversion: 2^15 more, they are the lower half of a float from 32 to 33. */
INLINE void centers_of(const __m256i words[2], __m256 centers[4]) {
    const __m256i more = _mm256_set1_epi16(INT16_MIN), upper = _mm256_set1_epi16(0x4200);
    const __m256i lower[2] = {_mm256_xor_si256(words[0], more), _mm256_xor_si256(words[1], more)};
    const __m256i uppers[2] = {upper, upper};
    ELUTQ_UNROLL(4)
    for (uint32_t i = 0; i < 4; i++)
        centers[i] = _mm256_sub_ps(_mm256_castsi256_ps(pair_words(lower, uppers, i)),
                                   _mm256_set1_ps(32 + 32768 * WHOLE_CENTER));
}

/*
 * sum_k h_k * words[k] of eight rows, in units of WHOLE_HALF_SCALE. Each product is exact as a float, and so is the sum of
 * two as a 32-bit integer: rounded once, it is what a fused multiply-add gives.
 */
INLINE __m256 scaled_sums(const __m256i words[ELUTQ_HLQ_MAX_BITS][2], const __m256i h[ELUTQ_HLQ_MAX_BITS][2], uint32_t bits,
                          uint32_t i) {
    const __m256i zeros[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    const __m256i first = pair_words(words[0], bits > 1 ? words[1] : zeros, i);
    __m256 u = _mm256_cvtepi32_ps(_mm256_madd_epi16(first, pair_words(h[0], bits > 1 ? h[1] : zeros, i)));
    if (bits > 2) {
        const __m256i second = pair_words(words[2], bits > 3 ? words[3] : zeros, i);
        u = _mm256_add_ps(u, _mm256_cvtepi32_ps(_mm256_madd_epi16(second, pair_words(h[2], zeros, i))));
        if (bits > 3)
            u = _mm256_add_ps(u, _mm256_cvtepi32_ps(_mm256_madd_epi16(second, pair_words(zeros, h[3], i))));
    }
    return u;
}

#endif
