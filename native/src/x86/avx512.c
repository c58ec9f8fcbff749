/* AVX-512 with VBMI and VNNI (Ice Lake, Zen 4 and later): tables of 64 entries, sums with vpdpbusd. */
#if defined(__x86_64__)

#define ELUTQ_TARGET "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni"
#include "vec16_avx512.h"

#define ELUTQ_F16_TILE 4
#include "float_kernels.h"
#include "hlq_block.h"
#include "kernel_sets.h"
#include "levels_avx512.h"

/* Byte 4r + c of the transposed cells is byte j of cell c, where j is the byte that holds row r: rows together. */
static const uint8_t TRANSPOSE[64] = {
    0, 16, 32, 48, 2, 18, 34, 50, 4, 20, 36, 52, 6, 22, 38, 54, 8, 24, 40, 56, 10, 26, 42, 58, 12, 28, 44, 60, 14, 30, 46, 62,
    1, 17, 33, 49, 3, 19, 35, 51, 5, 21, 37, 53, 7, 23, 39, 55, 9, 25, 41, 57, 11, 27, 43, 59, 13, 29, 45, 61, 15, 31, 47, 63,
};

/* Bytes of rows 0 .. 15 and 16 .. 31, each row's four in a 32-bit lane. */
struct row_indices {
    __m512i rows_0, rows_16;
};

/* Indices into the tables of four cells, 64 entries: cell * 16 + nibble. */
INLINE struct row_indices four_cells(const uint8_t *cells) {
    const __m512i nibble = _mm512_set1_epi8(15), cell = _mm512_set1_epi32(0x30201000);
    const __m512i rows = _mm512_permutexvar_epi8(_mm512_loadu_si512(TRANSPOSE), _mm512_loadu_si512(cells));
    /* (bits & nibble) | cell */
    return (struct row_indices){_mm512_ternarylogic_epi32(rows, nibble, cell, 0xEA),
                                _mm512_ternarylogic_epi32(_mm512_srli_epi16(rows, 4), nibble, cell, 0xEA)};
}

/* The multipliers of four cells, in each 32-bit lane: the order in which four_cells leaves a row's bytes. */
INLINE __m512i four_multipliers(const uint8_t *multipliers) {
    int32_t four;
    memcpy(&four, multipliers, sizeof four);
    return _mm512_set1_epi32(four);
}

struct row_sums {
    __m512i rows_0, rows_16; /* int32 sums of rows 0 .. 15 and 16 .. 31 */
};

/*
 * Sums the entries that one plane picks: vpermb looks up each row's four nibbles in the tables of four cells at once,
 * vpdpbusd adds the four signed bytes, times the multipliers of their cells, to the row's sum.
 */
INLINE struct row_sums sum_plane(const uint8_t *plane, const int8_t *entries, const uint8_t *multipliers, uint32_t n_cells,
                                 struct elutq_asking asking) {
    struct row_sums sums = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    ELUTQ_UNROLL(8)
    for (uint32_t i = 0; i < n_cells / 4; i++) {
        ask_for(asking, plane + 64 * i, 64);
        const struct row_indices rows = four_cells(plane + 64 * i);
        __m512i table = _mm512_load_si512(entries + 64 * i);
        const __m512i of_cells = four_multipliers(multipliers + 4 * i);
        sums.rows_0 = dot_bytes(sums.rows_0, of_cells, _mm512_permutexvar_epi8(rows.rows_0, table));
        sums.rows_16 = dot_bytes(sums.rows_16, of_cells, _mm512_permutexvar_epi8(rows.rows_16, table));
    }
    return sums;
}

INLINE void add_block(const struct elutq_block *block, uint32_t n_cells, const int8_t *entries, const uint8_t *multipliers,
                      float scale, float sum, struct elutq_asking asking, float *f) {
    __m512 u_0 = _mm512_setzero_ps(), u_16 = u_0;
    ask_for(asking, block->scales, elutq_scales_bytes(block->kind, block->bits));
    ELUTQ_UNROLL(4)
    for (uint32_t k = 0; k < block->bits; k++) {
        struct row_sums picked =
            sum_plane(block->planes + (size_t)k * n_cells * ELUTQ_CELL_BYTES, entries, multipliers, n_cells, asking);
        __m512 picked_0 = _mm512_cvtepi32_ps(picked.rows_0), picked_16 = _mm512_cvtepi32_ps(picked.rows_16);
        const __m512 h_0 = load_half_scales(block, k, 0), h_16 = load_half_scales(block, k, 1);
        u_0 = k == 0 ? _mm512_mul_ps(h_0, picked_0) : _mm512_fmadd_ps(h_0, picked_0, u_0);
        u_16 = k == 0 ? _mm512_mul_ps(h_16, picked_16) : _mm512_fmadd_ps(h_16, picked_16, u_16);
    }
    __m512 f_0 = _mm512_fmadd_ps(load_centers(block, 0), _mm512_set1_ps(sum), _mm512_loadu_ps(f));
    __m512 f_16 = _mm512_fmadd_ps(load_centers(block, 1), _mm512_set1_ps(sum), _mm512_loadu_ps(f + 16));
    _mm512_storeu_ps(f, _mm512_fmadd_ps(u_0, _mm512_set1_ps(scale), f_0));
    _mm512_storeu_ps(f + 16, _mm512_fmadd_ps(u_16, _mm512_set1_ps(scale), f_16));
}

#include "hlq_gemv.h"
#include "tables_avx512.h"

const struct elutq_kernels elutq_kernels_avx512 = {
    .name = "avx512",
    .gemv = gemv,
    .gemm_tables = gemm_tables,
    .build_levels = build_levels,
    .gemm_levels = gemm_levels,
    .levels_from = {0, 0, 0, 96, 56},
    ELUTQ_FLOAT_KERNELS,
};

#endif
