/* The last steps of v16_sum for four vectors at once, in the same order, so that the sums have the same bits. */
#ifndef ELUTQ_SUMS_OF_EIGHT_H
#define ELUTQ_SUMS_OF_EIGHT_H

INLINE void sums_of_eight(const __m256 eight[4], float sums[4]) {
    const __m256 four_02 = _mm256_add_ps(_mm256_permute2f128_ps(eight[0], eight[2], 0x20),
                                         _mm256_permute2f128_ps(eight[0], eight[2], 0x31));
    const __m256 four_13 = _mm256_add_ps(_mm256_permute2f128_ps(eight[1], eight[3], 0x20),
                                         _mm256_permute2f128_ps(eight[1], eight[3], 0x31));
    const __m256 two = _mm256_add_ps(_mm256_shuffle_ps(four_02, four_13, 0x44), _mm256_shuffle_ps(four_02, four_13, 0xEE));
    const __m256 one = _mm256_add_ps(two, _mm256_movehdup_ps(two)); /* even lanes: 0, 1 and 2, 3 */
    _mm_storeu_ps(sums, _mm_shuffle_ps(_mm256_castps256_ps128(one), _mm256_extractf128_ps(one, 1), 0x88));
}

#endif
