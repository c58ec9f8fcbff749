/*
 * Sixteen float lanes as two AVX2 registers (with FMA and F16C); vec16_scalar.h defines each operation. ELUTQ_TARGET names
 * the features.
 */
#ifndef ELUTQ_VEC16_AVX2_H
#define ELUTQ_VEC16_AVX2_H

#include <immintrin.h>
#include <stdint.h>

#include "compiler.h"

#define KERNEL ELUTQ_WITH(ELUTQ_TARGET) static
#define INLINE ELUTQ_WITH(ELUTQ_TARGET) static ELUTQ_ALWAYS_INLINE

#include "sums_of_eight.h"

typedef struct {
    __m256 low, high;
} v16;

#define BOTH(operation, ...) ((v16){operation(a.low, __VA_ARGS__), operation(a.high, __VA_ARGS__)})
#define PAIRWISE(operation) ((v16){operation(a.low, b.low), operation(a.high, b.high)})

INLINE v16 v16_set1(float x) {
    return (v16){_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
INLINE v16 v16_load(const float *p) {
    return (v16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
INLINE void v16_store(float *p, v16 a) {
    _mm256_storeu_ps(p, a.low);
    _mm256_storeu_ps(p + 8, a.high);
}
INLINE v16 v16_load_half(const uint16_t *p) {
    return (v16){_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
                 _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8)))};
}
INLINE void v16_store_half(uint16_t *p, v16 a) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(a.low, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    _mm_storeu_si128((__m128i *)(p + 8), _mm256_cvtps_ph(a.high, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
INLINE v16 v16_load_i8(const int8_t *p) {
    return (v16){_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p))),
                 _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(p + 8))))};
}
INLINE void v16_store_i8(int8_t *p, v16 a) {
    __m256i low = _mm256_cvtps_epi32(a.low), high = _mm256_cvtps_epi32(a.high);
    __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xD8);
    _mm_storeu_si128((__m128i *)p, _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
INLINE v16 v16_add(v16 a, v16 b) {
    return PAIRWISE(_mm256_add_ps);
}
INLINE v16 v16_sub(v16 a, v16 b) {
    return PAIRWISE(_mm256_sub_ps);
}
INLINE v16 v16_mul(v16 a, v16 b) {
    return PAIRWISE(_mm256_mul_ps);
}
INLINE v16 v16_div(v16 a, v16 b) {
    return PAIRWISE(_mm256_div_ps);
}
INLINE v16 v16_fma(v16 a, v16 b, v16 c) {
    return (v16){_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
INLINE v16 v16_max(v16 a, v16 b) {
    return PAIRWISE(_mm256_max_ps);
}
INLINE v16 v16_min(v16 a, v16 b) {
    return PAIRWISE(_mm256_min_ps);
}
INLINE v16 v16_abs(v16 a) {
    return BOTH(_mm256_and_ps, _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF)));
}
INLINE v16 v16_round(v16 a) {
    return BOTH(_mm256_round_ps, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
INLINE __m256 scale2_256(__m256 a, __m256 n) {
    __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}
INLINE v16 v16_scale2(v16 a, v16 n) {
    return (v16){scale2_256(a.low, n.low), scale2_256(a.high, n.high)};
}
INLINE float v16_sum(v16 a) {
    __m256 eight = _mm256_add_ps(a.low, a.high);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
INLINE void v16_sum_4(const v16 a[4], float sums[4]) {
    __m256 eight[4];
    ELUTQ_UNROLL(4)
    for (int i = 0; i < 4; i++)
        eight[i] = _mm256_add_ps(a[i].low, a[i].high);
    sums_of_eight(eight, sums);
}
INLINE float v16_largest(v16 a) {
    __m256 eight = _mm256_max_ps(a.low, a.high);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

#endif
