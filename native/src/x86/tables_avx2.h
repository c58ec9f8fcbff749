/*
 * Batches for AVX2 by table look-up: the nibbles of the planes are unpacked once for all tokens, and an index looks up the
 * tables of two tokens while it is in a register. The same sums as gemv, bit for bit.
 */
#ifndef ELUTQ_TABLES_AVX2_H
#define ELUTQ_TABLES_AVX2_H

INLINE void unpack_tile(const struct elutq_block *block, uint32_t n_cells, uint8_t *indices, float *scales) {
    const __m256i nibble = _mm256_set1_epi8(15);
    unpack_scales(block, scales);
    for (uint32_t i = 0; i < block->bits * n_cells / 2; i++) {
        const __m256i cells = _mm256_load_si256((const __m256i *)(block->planes + 32 * i));
        _mm256_store_si256((__m256i *)(indices + 64 * i), _mm256_and_si256(cells, nibble));
        _mm256_store_si256((__m256i *)(indices + 64 * i + 32), _mm256_and_si256(_mm256_srli_epi16(cells, 4), nibble));
    }
}

INLINE __m256i look_up(__m256i table, const uint8_t *indices) {
    return _mm256_shuffle_epi8(table, _mm256_load_si256((const __m256i *)indices));
}

/* Sums as in sum_plane (gemv_avx2.h) for n_tokens tokens, a constant of at most 2. */
INLINE void sum_unpacked(const uint8_t *indices, const int8_t *const *entries, const uint8_t *const *multipliers,
                         uint32_t n_cells, uint32_t n_tokens, __m128i picked[2][4]) {
    struct word_sums sums[2] = {0};
    for (uint32_t i = 0; i < n_cells / 4; i++) {
        const uint8_t *index = indices + 128 * i; /* cells 0 and 1: rows 0, rows 16; cells 2 and 3 */
#pragma GCC unroll 2
        for (uint32_t t = 0; t < n_tokens; t++) {
            const __m256i of_cells = four_multipliers(multipliers[t] + 4 * i);
            const __m256i first = _mm256_load_si256((const __m256i *)(entries[t] + 64 * i));
            const __m256i second = _mm256_load_si256((const __m256i *)(entries[t] + 64 * i + 32));
            add_four(&sums[t].low_0, &sums[t].high_0, of_cells, look_up(first, index), look_up(second, index + 64));
            add_four(&sums[t].low_16, &sums[t].high_16, of_cells, look_up(first, index + 32), look_up(second, index + 96));
        }
    }
#pragma GCC unroll 2
    for (uint32_t t = 0; t < n_tokens; t++)
        sums_by_row(&sums[t], picked[t]);
}

/* One tile and group times n_tokens tokens: the operations of add_block, in its order. */
INLINE void add_tile(const uint8_t *indices, const float *scales, uint32_t bits, uint32_t n_cells,
                     const struct elutq_tables *tables, uint32_t group, uint32_t n_tokens, float *y) {
    const int8_t *entries[2];
    const uint8_t *multipliers[2];
    __m256 u[2][4] = {{_mm256_setzero_ps()}};
    for (uint32_t t = 0; t < n_tokens; t++) {
        entries[t] = tables[t].entries + (size_t)group * n_cells * 16;
        multipliers[t] = tables[t].multipliers + (size_t)group * n_cells;
    }
    for (uint32_t k = 0; k < bits; k++) {
        __m128i picked[2][4];
        sum_unpacked(indices + (size_t)k * n_cells * 32, entries, multipliers, n_cells, n_tokens, picked);
        for (uint32_t t = 0; t < n_tokens; t++)
            for (uint32_t i = 0; i < 4; i++) {
                const __m256 h = _mm256_load_ps(scales + ELUTQ_TILE_ROWS * k + 8 * i);
                const __m256 sum = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(picked[t][i]));
                u[t][i] = k == 0 ? _mm256_mul_ps(h, sum) : _mm256_fmadd_ps(h, sum, u[t][i]);
            }
    }
    for (uint32_t t = 0; t < n_tokens; t++)
        for (uint32_t i = 0; i < 4; i++) {
            float *f = y + (size_t)t * ELUTQ_CHUNK_STRIDE + 8 * i;
            const __m256 center = _mm256_load_ps(scales + ELUTQ_TILE_ROWS * bits + 8 * i);
            const __m256 fi = _mm256_fmadd_ps(center, _mm256_set1_ps(tables[t].sums[group]), _mm256_loadu_ps(f));
            _mm256_storeu_ps(f, _mm256_fmadd_ps(u[t][i], _mm256_set1_ps(tables[t].scales[group]), fi));
        }
}

#define ELUTQ_TOKENS_AT_ONCE(bits) 2
#define ELUTQ_UNPACK_FROM 4
#include "hlq_gemm.h"

#endif
