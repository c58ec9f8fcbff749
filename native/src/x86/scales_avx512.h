#ifndef ELUTQ_SCALES_AVX512_H
#define ELUTQ_SCALES_AVX512_H

/* The half scales of one plane, or with plane = bits the centers, of rows 0 .. 15 or 16 .. 31 of a block. */
INLINE __m512 load_scales(const uint8_t *block, uint32_t plane, uint32_t half) {
    return _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(block + 64 * plane + 32 * half)));
}

/* scales[bits + 1][ELUTQ_TILE_ROWS] = all of them, as floats. */
INLINE void unpack_scales(const uint8_t *block, uint32_t bits, float *scales) {
    for (uint32_t k = 0; k <= bits; k++)
        for (uint32_t half = 0; half < 2; half++)
            _mm512_store_ps(scales + ELUTQ_TILE_ROWS * k + 16 * half, load_scales(block, k, half));
}

#endif
