/*
 * Batches for AVX-512 VBMI by table look-up: the indices that the planes hold are unpacked once for all tokens, and an index
 * looks up the tables of a few tokens while it is in a register. The same sums as gemv, bit for bit.
 */
#ifndef ELUTQ_TABLES_AVX512_H
#define ELUTQ_TABLES_AVX512_H

INLINE void unpack_tile(const struct elutq_block *block, uint32_t n_cells, uint8_t *indices, float *scales) {
    const uint32_t bits = block->bits;
    unpack_scales(block, scales);
    for (uint32_t i = 0; i < n_cells / 4; i++)
        for (uint32_t k = 0; k < bits; k++, indices += 128) {
            const struct row_indices rows = four_cells(block->planes + ((size_t)k * n_cells + 4 * i) * ELUTQ_CELL_BYTES);
            _mm512_store_si512(indices, rows.rows_0);
            _mm512_store_si512(indices + 64, rows.rows_16);
        }
}

/* Rows are in order. */
INLINE void finish_tile(float *y) {
    (void)y;
}

/* One tile and group times n_tokens tokens, a constant of at most 4: the operations of add_block, in its order. */
INLINE void add_tile(const uint8_t *indices, const float *scales, uint32_t bits, uint32_t n_cells,
                     const struct elutq_tables *tables, uint32_t group, uint32_t n_tokens, float *y) {
    __m512i sums[4][ELUTQ_HLQ_MAX_BITS][2];
    ELUTQ_UNROLL(4)
    for (uint32_t t = 0; t < n_tokens; t++)
        ELUTQ_UNROLL(4)
        for (uint32_t k = 0; k < bits; k++)
            sums[t][k][0] = sums[t][k][1] = _mm512_setzero_si512();
    for (uint32_t i = 0; i < n_cells / 4; i++) {
        __m512i table[4], of_cells[4];
        ELUTQ_UNROLL(4)
        for (uint32_t t = 0; t < n_tokens; t++) {
            table[t] = _mm512_load_si512(tables[t].entries + ((size_t)group * n_cells + 4 * i) * 16);
            of_cells[t] = four_multipliers(tables[t].multipliers + (size_t)group * n_cells + 4 * i);
        }
        ELUTQ_UNROLL(4)
        for (uint32_t k = 0; k < bits; k++)
            ELUTQ_UNROLL(2)
            for (uint32_t half = 0; half < 2; half++) {
                const __m512i index = _mm512_load_si512(indices + ((i * bits + k) * 2 + half) * 64);
                ELUTQ_UNROLL(4)
                for (uint32_t t = 0; t < n_tokens; t++)
                    sums[t][k][half] = dot_bytes(sums[t][k][half], of_cells[t], _mm512_permutexvar_epi8(index, table[t]));
            }
    }
    ELUTQ_UNROLL(4)
    for (uint32_t t = 0; t < n_tokens; t++) {
        const __m512 scale = _mm512_set1_ps(tables[t].scales[group]), sum = _mm512_set1_ps(tables[t].sums[group]);
        ELUTQ_UNROLL(2)
        for (uint32_t half = 0; half < 2; half++) {
            float *f = y + (size_t)t * ELUTQ_CHUNK_STRIDE + 16 * half;
            const float *h = scales + 16 * half;
            __m512 u = _mm512_mul_ps(_mm512_load_ps(h), _mm512_cvtepi32_ps(sums[t][0][half]));
            ELUTQ_UNROLL(4)
            for (uint32_t k = 1; k < bits; k++)
                u = _mm512_fmadd_ps(_mm512_load_ps(h + ELUTQ_TILE_ROWS * k), _mm512_cvtepi32_ps(sums[t][k][half]), u);
            const __m512 fh = _mm512_fmadd_ps(_mm512_load_ps(h + ELUTQ_TILE_ROWS * bits), sum, _mm512_loadu_ps(f));
            _mm512_storeu_ps(f, _mm512_fmadd_ps(u, scale, fh));
        }
    }
}

#define ELUTQ_TOKENS_AT_ONCE(bits) ((bits) <= 2 ? 4 : 2)
#define ELUTQ_UNPACK_FROM(bits) 3
#include "hlq_gemm.h"

#endif
