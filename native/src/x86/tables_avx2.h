/*
 * Batches for AVX2 by table look-up: the planes of a tile are unpacked once for all tokens. The same sums as gemv, bit for bit.
 *
 * What a cell picks from is one table, in both halves of a register: the lower half looks up what its low nibbles pick, the
 * upper one what the high ones do. So two registers hold a plane's sums of all rows, with no halves left to be added. They
 * hold the rows in the order of whole_avx2.h, which scales are unpacked to and finish_tile undoes.
 */
#ifndef ELUTQ_TABLES_AVX2_H
#define ELUTQ_TABLES_AVX2_H

/*
 * 16-bit sums begin at -2^15, so that each is, unsigned, 2^15 more than it should be: as the lower half of a float of 2^23
 * and above it makes that float SUMS_BIAS more than the sum.
 */
#define SUMS_BIAS (8388608.0f + 32768.0f)

/* Sixteen rows each, as floats or 16-bit sums become floats: rows 0, 8, 1, 9 and 16, 24, 17, 25; then 2, 10 ... */
INLINE void order_rows(__m256 rows[4]) {
    const __m256 a = _mm256_unpacklo_ps(rows[0], rows[1]), b = _mm256_unpackhi_ps(rows[0], rows[1]);
    const __m256 c = _mm256_unpacklo_ps(rows[2], rows[3]), d = _mm256_unpackhi_ps(rows[2], rows[3]);
    rows[0] = _mm256_permute2f128_ps(a, c, 0x20);
    rows[1] = _mm256_permute2f128_ps(b, d, 0x20);
    rows[2] = _mm256_permute2f128_ps(a, c, 0x31);
    rows[3] = _mm256_permute2f128_ps(b, d, 0x31);
}

/* scales[bits + 2][32] = half scales by plane, centers, and -SUMS_BIAS times the first plane's half scales, which is exact. */
INLINE void unpack_scales_of_kind(struct elutq_block block, uint32_t kind, float *scales) {
    block.kind = kind;
    for (uint32_t k = 0; k <= block.bits; k++) {
        __m256 rows[4];
        ELUTQ_UNROLL(4)
        for (uint32_t i = 0; i < 4; i++)
            rows[i] = k < block.bits ? load_half_scales(&block, k, i) : load_centers(&block, i);
        order_rows(rows);
        ELUTQ_UNROLL(4)
        for (uint32_t i = 0; i < 4; i++)
            _mm256_store_ps(scales + ELUTQ_TILE_ROWS * k + 8 * i, rows[i]);
    }
    float *biases = scales + ELUTQ_TILE_ROWS * (block.bits + 1);
    ELUTQ_UNROLL(4)
    for (uint32_t i = 0; i < ELUTQ_TILE_ROWS; i += 8)
        _mm256_store_ps(biases + i, _mm256_mul_ps(_mm256_load_ps(scales + i), _mm256_set1_ps(-SUMS_BIAS)));
}
KERNEL ELUTQ_NEVER_INLINE void unpack_ordered_scales(const struct elutq_block *block, float *scales) {
    if (block->kind == 0)
        unpack_scales_of_kind(*block, 0, scales);
    else if (block->kind == ELUTQ_KIND_BYTES)
        unpack_scales_of_kind(*block, ELUTQ_KIND_BYTES, scales);
    else
        unpack_scales_of_kind(*block, block->kind | ELUTQ_KIND_EVEN, scales);
}

/* indices[cell][plane][32] */
INLINE void unpack_tile(const struct elutq_block *block, uint32_t n_cells, uint8_t *indices, float *scales) {
    const __m256i nibble = _mm256_set1_epi8(15), of_halves = _mm256_setr_epi64x(0, 0, 4, 4);
    unpack_ordered_scales(block, scales);
    for (uint32_t k = 0; k < block->bits; k++)
        ELUTQ_UNROLL(4)
        for (uint32_t cell = 0; cell < n_cells; cell++) {
            const uint8_t *bytes = block->planes + ((size_t)k * n_cells + cell) * ELUTQ_CELL_BYTES;
            const __m256i both = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *)bytes));
            _mm256_store_si256((__m256i *)(indices + 32 * (cell * block->bits + k)),
                               _mm256_and_si256(_mm256_srlv_epi64(both, of_halves), nibble));
        }
}

INLINE __m256i look_up(const int8_t *table, const uint8_t *indices) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *)table)),
                               _mm256_load_si256((const __m256i *)indices));
}

/* Sums of what n_planes planes, 1 or 2, pick, each times its cell's multiplier, and -2^15: sums[plane][2]. */
INLINE void sum_planes(const uint8_t *indices, uint32_t bits, uint32_t n_planes, const int8_t *entries,
                       const uint8_t *multipliers, uint32_t n_cells, __m256i sums[2][2]) {
    ELUTQ_UNROLL(2)
    for (uint32_t p = 0; p < n_planes; p++)
        sums[p][0] = sums[p][1] = _mm256_set1_epi16(INT16_MIN);
    ELUTQ_UNROLL(2)
    for (uint32_t cell = 0; cell < n_cells; cell += 2) {
        const int8_t *table = entries + 16 * cell;
        const uint8_t *index = indices + 32 * bits * cell;
        int16_t two;
        memcpy(&two, multipliers + cell, sizeof two);
        const __m256i of_cells = _mm256_set1_epi16(two);
        ELUTQ_UNROLL(2)
        for (uint32_t p = 0; p < n_planes; p++, index += 32) {
            const __m256i first = look_up(table, index), second = look_up(table + 16, index + 32 * bits);
            const __m256i low = _mm256_maddubs_epi16(of_cells, _mm256_unpacklo_epi8(first, second));
            const __m256i high = _mm256_maddubs_epi16(of_cells, _mm256_unpackhi_epi8(first, second));
            sums[p][0] = _mm256_add_epi16(sums[p][0], low);
            sums[p][1] = _mm256_add_epi16(sums[p][1], high);
        }
    }
}

/* The sums of eight rows, i being 0 to 3, SUMS_BIAS too large. */
INLINE __m256 biased_sums(const __m256i sums[2], uint32_t i) {
    const __m256i upper_half = _mm256_set1_epi16(0x4B00);
    return _mm256_castsi256_ps(i % 2 == 0 ? _mm256_unpacklo_epi16(sums[i / 2], upper_half)
                                          : _mm256_unpackhi_epi16(sums[i / 2], upper_half));
}

/* One tile and group times one token: the operations of add_block, in its order. */
INLINE void add_tile(const uint8_t *indices, const float *scales, uint32_t bits, uint32_t n_cells,
                     const struct elutq_tables *tables, uint32_t group, uint32_t n_tokens, float *y) {
    (void)n_tokens;
    const int8_t *entries = tables->entries + (size_t)group * n_cells * 16;
    const uint8_t *multipliers = tables->multipliers + (size_t)group * n_cells;
    const float *centers = scales + ELUTQ_TILE_ROWS * bits, *biases = centers + ELUTQ_TILE_ROWS;
    __m256 u[4];
    ELUTQ_UNROLL(2)
    for (uint32_t k = 0; k < bits; k += 2) {
        const uint32_t n_planes = bits - k < 2 ? 1 : 2;
        __m256i sums[2][2];
        sum_planes(indices + 32 * k, bits, n_planes, entries, multipliers, n_cells, sums);
        ELUTQ_UNROLL(2)
        for (uint32_t p = 0; p < n_planes; p++)
            ELUTQ_UNROLL(4)
            for (uint32_t i = 0; i < 4; i++) {
                const __m256 h = _mm256_load_ps(scales + ELUTQ_TILE_ROWS * (k + p) + 8 * i), biased = biased_sums(sums[p], i);
                if (k + p == 0) /* both products are exact: rounded once, as the product with the sum itself is */
                    u[i] = _mm256_fmadd_ps(h, biased, _mm256_load_ps(biases + 8 * i));
                else
                    u[i] = _mm256_fmadd_ps(h, _mm256_sub_ps(biased, _mm256_set1_ps(SUMS_BIAS)), u[i]);
            }
    }
    const __m256 sum = _mm256_set1_ps(tables->sums[group]), scale = _mm256_set1_ps(tables->scales[group]);
    ELUTQ_UNROLL(4)
    for (uint32_t i = 0; i < 4; i++) {
        const __m256 f = _mm256_fmadd_ps(_mm256_load_ps(centers + 8 * i), sum, _mm256_loadu_ps(y + 8 * i));
        _mm256_storeu_ps(y + 8 * i, _mm256_fmadd_ps(u[i], scale, f));
    }
}

#define ELUTQ_TOKENS_AT_ONCE(bits) 1
#define ELUTQ_UNPACK_FROM(bits) 2
#include "hlq_gemm.h"

#endif
