#ifndef ELUTQ_SCALES_AVX512_H
#define ELUTQ_SCALES_AVX512_H

/* The half scales of one plane, or with plane = bits the centers, of rows 0 .. 15 or 16 .. 31 of a block. */
INLINE __m512 load_scales(const uint8_t *block, uint32_t plane, uint32_t half) {
    return _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(block + 64 * plane + 32 * half)));
}

#endif
