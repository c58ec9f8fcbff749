/* Half scales and centers of a block for AVX-512, by its kind: sixteen rows, those of one half of the tile. */
#ifndef ELUTQ_SCALES_AVX512_H
#define ELUTQ_SCALES_AVX512_H

#include "hlq_block.h"

/* Row 16 * half of the numbers of `width` bytes from number `i` on. */
INLINE const __m128i *rows_at(const struct elutq_block *block, uint32_t i, uint32_t width, uint32_t half) {
    return (const __m128i *)(block->scales + width * (ELUTQ_TILE_ROWS * i + 16 * half));
}

INLINE __m512 stored_half_scales(const struct elutq_block *block, uint32_t i, uint32_t half) {
    if (!(block->kind & ELUTQ_KIND_BYTES))
        return _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)rows_at(block, i, 2, half)));
    const __m256i words = _mm256_cvtepu8_epi16(_mm_load_si128(rows_at(block, i, 1, half)));
    return _mm512_mul_ps(_mm512_cvtph_ps(_mm256_slli_epi16(words, ELUTQ_HALF_SCALE_SHIFT)), _mm512_set1_ps(block->factor));
}

INLINE __m512 load_half_scales(const struct elutq_block *block, uint32_t plane, uint32_t half) {
    if (!(block->kind & ELUTQ_KIND_EVEN))
        return stored_half_scales(block, plane, half);
    return _mm512_mul_ps(stored_half_scales(block, 0, half), _mm512_set1_ps((float)(1u << plane)));
}

INLINE __m512 load_centers(const struct elutq_block *block, uint32_t half) {
    if (block->kind & ELUTQ_KIND_CENTERS) {
        const __m128i *at = block->kind & ELUTQ_KIND_BYTES ? rows_at(block, 1, 1, half) : rows_at(block, 2, 1, half);
        const __m512 quarters = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_load_si128(at)));
        return _mm512_mul_ps(stored_half_scales(block, 0, half), _mm512_mul_ps(quarters, _mm512_set1_ps(0.25f)));
    }
    if (block->kind & ELUTQ_KIND_EVEN)
        return _mm512_mul_ps(stored_half_scales(block, 0, half), _mm512_set1_ps(block->center));
    if (!(block->kind & ELUTQ_KIND_BYTES))
        return stored_half_scales(block, block->bits, half);
    /* The sign, which the widening spreads, stays in the highest bit alone. */
    const __m256i words = _mm256_cvtepi8_epi16(_mm_load_si128(rows_at(block, block->bits, 1, half)));
    const __m256i halves = _mm256_and_si256(_mm256_slli_epi16(words, ELUTQ_CENTER_SHIFT), _mm256_set1_epi16((short)0x9FC0));
    return _mm512_mul_ps(_mm512_cvtph_ps(halves), _mm512_set1_ps(block->factor));
}

INLINE void unpack_scales_of(const struct elutq_block *block, float *scales) {
    for (uint32_t half = 0; half < 2; half++) {
        for (uint32_t k = 0; k < block->bits; k++)
            _mm512_store_ps(scales + ELUTQ_TILE_ROWS * k + 16 * half, load_half_scales(block, k, half));
        _mm512_store_ps(scales + ELUTQ_TILE_ROWS * block->bits + 16 * half, load_centers(block, half));
    }
}
KERNEL ELUTQ_NEVER_INLINE void unpack_other_scales(const struct elutq_block *block, float *scales) {
    unpack_scales_of(block, scales);
}

/* scales[bits + 1][ELUTQ_TILE_ROWS] = all of them: half scales by plane, then centers. */
INLINE void unpack_scales(const struct elutq_block *block, float *scales) {
    if (block->kind == 0)
        unpack_scales_of(block, scales);
    else
        unpack_other_scales(block, scales);
}

#endif
