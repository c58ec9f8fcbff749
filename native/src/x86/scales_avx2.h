/* Half scales and centers of a block for AVX2, by its kind: eight rows, from row 8 * eight on. */
#ifndef ELUTQ_SCALES_AVX2_H
#define ELUTQ_SCALES_AVX2_H

#include "hlq_block.h"

/* Row 8 * eight of the numbers of `width` bytes from number `i` on. */
INLINE const __m128i *rows_at(const struct elutq_block *block, uint32_t i, uint32_t width, uint32_t eight) {
    return (const __m128i *)(block->scales + width * (ELUTQ_TILE_ROWS * i + 8 * eight));
}

INLINE __m256 stored_half_scales(const struct elutq_block *block, uint32_t i, uint32_t eight) {
    if (!(block->kind & ELUTQ_KIND_BYTES))
        return _mm256_cvtph_ps(_mm_load_si128(rows_at(block, i, 2, eight)));
    const __m128i words = _mm_cvtepu8_epi16(_mm_loadl_epi64(rows_at(block, i, 1, eight)));
    return _mm256_mul_ps(_mm256_cvtph_ps(_mm_slli_epi16(words, ELUTQ_HALF_SCALE_SHIFT)), _mm256_set1_ps(block->factor));
}

INLINE __m256 load_half_scales(const struct elutq_block *block, uint32_t plane, uint32_t eight) {
    if (!(block->kind & ELUTQ_KIND_EVEN))
        return stored_half_scales(block, plane, eight);
    return _mm256_mul_ps(stored_half_scales(block, 0, eight), _mm256_set1_ps((float)(1u << plane)));
}

INLINE __m256 load_centers(const struct elutq_block *block, uint32_t eight) {
    if (block->kind & ELUTQ_KIND_CENTERS) {
        const __m128i *at = block->kind & ELUTQ_KIND_BYTES ? rows_at(block, 1, 1, eight) : rows_at(block, 2, 1, eight);
        const __m256 quarters = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(at)));
        return _mm256_mul_ps(stored_half_scales(block, 0, eight), _mm256_mul_ps(quarters, _mm256_set1_ps(0.25f)));
    }
    if (block->kind & ELUTQ_KIND_EVEN)
        return _mm256_mul_ps(stored_half_scales(block, 0, eight), _mm256_set1_ps(block->center));
    if (!(block->kind & ELUTQ_KIND_BYTES))
        return stored_half_scales(block, block->bits, eight);
    /* The sign, which the widening spreads, stays in the highest bit alone. */
    const __m128i words = _mm_cvtepi8_epi16(_mm_loadl_epi64(rows_at(block, block->bits, 1, eight)));
    const __m128i halves = _mm_and_si128(_mm_slli_epi16(words, ELUTQ_CENTER_SHIFT), _mm_set1_epi16((short)0x9FC0));
    return _mm256_mul_ps(_mm256_cvtph_ps(halves), _mm256_set1_ps(block->factor));
}

INLINE void unpack_scales_of(const struct elutq_block *block, float *scales) {
    for (uint32_t eight = 0; eight < ELUTQ_TILE_ROWS / 8; eight++) {
        for (uint32_t k = 0; k < block->bits; k++)
            _mm256_store_ps(scales + ELUTQ_TILE_ROWS * k + 8 * eight, load_half_scales(block, k, eight));
        _mm256_store_ps(scales + ELUTQ_TILE_ROWS * block->bits + 8 * eight, load_centers(block, eight));
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
