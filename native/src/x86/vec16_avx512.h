/* Sixteen float lanes as one AVX-512 register; vec16_scalar.h defines each operation. ELUTQ_TARGET names the features. */
#ifndef ELUTQ_VEC16_AVX512_H
#define ELUTQ_VEC16_AVX512_H

#include <immintrin.h>
#include <stdint.h>

#include "compiler.h"

#define KERNEL ELUTQ_WITH(ELUTQ_TARGET) static
#define INLINE ELUTQ_WITH(ELUTQ_TARGET) static ELUTQ_ALWAYS_INLINE

#include "sums_of_eight.h"

typedef __m512 v16;

INLINE v16 v16_set1(float x) {
    return _mm512_set1_ps(x);
}
INLINE v16 v16_load(const float *p) {
    return _mm512_loadu_ps(p);
}
INLINE void v16_store(float *p, v16 a) {
    _mm512_storeu_ps(p, a);
}
INLINE v16 v16_load_half(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
INLINE void v16_store_half(uint16_t *p, v16 a) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
INLINE v16 v16_load_i8(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
INLINE void v16_store_i8(int8_t *p, v16 a) {
    _mm_storeu_si128((__m128i *)p, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a)));
}
INLINE v16 v16_add(v16 a, v16 b) {
    return _mm512_add_ps(a, b);
}
INLINE v16 v16_sub(v16 a, v16 b) {
    return _mm512_sub_ps(a, b);
}
INLINE v16 v16_mul(v16 a, v16 b) {
    return _mm512_mul_ps(a, b);
}
INLINE v16 v16_div(v16 a, v16 b) {
    return _mm512_div_ps(a, b);
}
INLINE v16 v16_fma(v16 a, v16 b, v16 c) {
    return _mm512_fmadd_ps(a, b, c);
}
INLINE v16 v16_max(v16 a, v16 b) {
    return _mm512_max_ps(a, b);
}
INLINE v16 v16_min(v16 a, v16 b) {
    return _mm512_min_ps(a, b);
}
INLINE v16 v16_abs(v16 a) {
    return _mm512_abs_ps(a);
}
INLINE v16 v16_round(v16 a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
INLINE v16 v16_scale2(v16 a, v16 n) {
    return _mm512_scalef_ps(a, n);
}
INLINE float v16_sum(v16 a) {
    __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
INLINE void v16_sum_4(const v16 a[4], float sums[4]) {
    __m256 eight[4];
    ELUTQ_UNROLL(4)
    for (int i = 0; i < 4; i++)
        eight[i] = _mm256_add_ps(_mm512_castps512_ps256(a[i]), _mm512_extractf32x8_ps(a[i], 1));
    sums_of_eight(eight, sums);
}
INLINE float v16_largest(v16 a) {
    return _mm512_reduce_max_ps(a);
}

#endif
