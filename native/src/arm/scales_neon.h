/* Half scales and centers of a block for NEON, by its kind: four rows, from row `row`, a multiple of four, on. */
#ifndef ELUTQ_SCALES_NEON_H
#define ELUTQ_SCALES_NEON_H

#include "hlq_block.h"

/* Four bytes as the lower half of a register. */
INLINE uint8x8_t four_bytes(const uint8_t *bytes) {
    uint32_t four;
    memcpy(&four, bytes, sizeof four);
    return vreinterpret_u8_u32(vdup_n_u32(four));
}

INLINE float32x4_t four_stored(const struct elutq_block *block, uint32_t i, uint32_t row) {
    const uint32_t at = ELUTQ_TILE_ROWS * i + row;
    if (!(block->kind & ELUTQ_KIND_BYTES))
        return four_halves(vld1_u16((const uint16_t *)block->scales + at));
    const uint16x4_t words = vget_low_u16(vmovl_u8(four_bytes(block->scales + at)));
    return vmulq_n_f32(four_halves(vshl_n_u16(words, ELUTQ_HALF_SCALE_SHIFT)), block->factor);
}

INLINE float32x4_t four_half_scales(const struct elutq_block *block, uint32_t plane, uint32_t row) {
    if (!(block->kind & ELUTQ_KIND_EVEN))
        return four_stored(block, plane, row);
    return vmulq_n_f32(four_stored(block, 0, row), (float)(1u << plane));
}

INLINE float32x4_t four_centers(const struct elutq_block *block, uint32_t row) {
    if (block->kind & ELUTQ_KIND_CENTERS) {
        const uint32_t first = block->kind & ELUTQ_KIND_BYTES ? ELUTQ_TILE_ROWS : 2 * ELUTQ_TILE_ROWS;
        const int16x8_t words = vmovl_s8(vreinterpret_s8_u8(four_bytes(block->scales + first + row)));
        const float32x4_t quarters = vcvtq_f32_s32(vmovl_s16(vget_low_s16(words)));
        return vmulq_f32(four_stored(block, 0, row), vmulq_n_f32(quarters, 0.25f));
    }
    if (block->kind & ELUTQ_KIND_EVEN)
        return vmulq_n_f32(four_stored(block, 0, row), block->center);
    if (!(block->kind & ELUTQ_KIND_BYTES))
        return four_stored(block, block->bits, row);
    /* The sign, which the widening spreads, stays in the highest bit alone. */
    const int16x8_t words = vmovl_s8(vreinterpret_s8_u8(four_bytes(block->scales + ELUTQ_TILE_ROWS * block->bits + row)));
    const uint16x4_t halves = vshl_n_u16(vreinterpret_u16_s16(vget_low_s16(words)), ELUTQ_CENTER_SHIFT);
    return vmulq_n_f32(four_halves(vand_u16(halves, vdup_n_u16(0x9FC0))), block->factor);
}

#endif
