/*
 * Batches for AVX-512 without VBMI by table look-up: the nibbles of the planes are unpacked once for all tokens, and an index
 * looks up the tables of four tokens while it is in a register. The same sums as gemv, bit for bit.
 */
#ifndef ELUTQ_TABLES_AVX512BW_H
#define ELUTQ_TABLES_AVX512BW_H

#define TABLE_TOKENS 4

INLINE void unpack_tile(const struct elutq_block *block, uint32_t n_cells, uint8_t *indices, float *scales) {
    const __m512i nibble = _mm512_set1_epi8(15);
    unpack_scales(block, scales);
    for (uint32_t i = 0; i < block->bits * n_cells / 4; i++) {
        const __m512i cells = _mm512_loadu_si512(block->planes + 64 * i);
        _mm512_store_si512(indices + 128 * i, _mm512_and_si512(cells, nibble));
        _mm512_store_si512(indices + 128 * i + 64, _mm512_and_si512(_mm512_srli_epi16(cells, 4), nibble));
    }
}

/* Sums as in sum_plane (gemv_avx512bw.h) for n_tokens tokens, a constant of at most TABLE_TOKENS. */
INLINE void sum_unpacked(const uint8_t *indices, const int8_t *const *entries, const uint8_t *const *multipliers,
                         uint32_t n_cells, uint32_t n_tokens, __m512i picked[TABLE_TOKENS]) {
    const __m512i zero = _mm512_setzero_si512();
    struct word_sums sums[TABLE_TOKENS];
    ELUTQ_UNROLL(4)
    for (uint32_t t = 0; t < n_tokens; t++)
        sums[t] = (struct word_sums){zero, zero, zero, zero};
    for (uint32_t i = 0; i < n_cells / 8; i++) {
        __m512i index[4]; /* of cells 0 .. 3: rows 0, rows 16; of cells 4 .. 7 */
        ELUTQ_UNROLL(4)
        for (uint32_t j = 0; j < 4; j++)
            index[j] = _mm512_load_si512(indices + 256 * i + 64 * j);
        ELUTQ_UNROLL(4)
        for (uint32_t t = 0; t < n_tokens; t++) {
            const __m512i of_cells = eight_multipliers(multipliers[t] + 8 * i);
            const __m512i first = _mm512_load_si512(entries[t] + 128 * i);
            const __m512i second = _mm512_load_si512(entries[t] + 128 * i + 64);
            add_eight(&sums[t].low_0, &sums[t].high_0, of_cells, _mm512_shuffle_epi8(first, index[0]),
                      _mm512_shuffle_epi8(second, index[2]));
            add_eight(&sums[t].low_16, &sums[t].high_16, of_cells, _mm512_shuffle_epi8(first, index[1]),
                      _mm512_shuffle_epi8(second, index[3]));
        }
    }
    ELUTQ_UNROLL(4)
    for (uint32_t t = 0; t < n_tokens; t++)
        picked[t] = sums_by_row(&sums[t]);
}

/* Rows are in order. */
INLINE void finish_tile(float *y) {
    (void)y;
}

/* One tile and group times n_tokens tokens: the operations of add_block, in its order. */
INLINE void add_tile(const uint8_t *indices, const float *scales, uint32_t bits, uint32_t n_cells,
                     const struct elutq_tables *tables, uint32_t group, uint32_t n_tokens, float *y) {
    const int8_t *entries[TABLE_TOKENS];
    const uint8_t *multipliers[TABLE_TOKENS];
    __m512 u[TABLE_TOKENS][2];
    ELUTQ_UNROLL(4)
    for (uint32_t t = 0; t < n_tokens; t++) {
        entries[t] = tables[t].entries + (size_t)group * n_cells * 16;
        multipliers[t] = tables[t].multipliers + (size_t)group * n_cells;
    }
    ELUTQ_UNROLL(4)
    for (uint32_t k = 0; k < bits; k++) {
        __m512i picked[TABLE_TOKENS];
        sum_unpacked(indices + (size_t)k * n_cells * 32, entries, multipliers, n_cells, n_tokens, picked);
        ELUTQ_UNROLL(4)
        for (uint32_t t = 0; t < n_tokens; t++)
            ELUTQ_UNROLL(2)
            for (uint32_t half = 0; half < 2; half++) {
                const __m512 h = _mm512_load_ps(scales + ELUTQ_TILE_ROWS * k + 16 * half);
                const __m512 sum = half_to_floats(picked[t], half);
                u[t][half] = k == 0 ? _mm512_mul_ps(h, sum) : _mm512_fmadd_ps(h, sum, u[t][half]);
            }
    }
    ELUTQ_UNROLL(4)
    for (uint32_t t = 0; t < n_tokens; t++)
        ELUTQ_UNROLL(2)
        for (uint32_t half = 0; half < 2; half++) {
            float *f = y + (size_t)t * ELUTQ_CHUNK_STRIDE + 16 * half;
            const __m512 center = _mm512_load_ps(scales + ELUTQ_TILE_ROWS * bits + 16 * half);
            const __m512 fh = _mm512_fmadd_ps(center, _mm512_set1_ps(tables[t].sums[group]), _mm512_loadu_ps(f));
            _mm512_storeu_ps(f, _mm512_fmadd_ps(u[t][half], _mm512_set1_ps(tables[t].scales[group]), fh));
        }
}

#define ELUTQ_TOKENS_AT_ONCE(bits) TABLE_TOKENS
#define ELUTQ_UNPACK_FROM(bits) ((bits) <= 2 ? 4 : 6)
#include "hlq_gemm.h"

#endif
