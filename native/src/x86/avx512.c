/* AVX-512 with VBMI and VNNI (Ice Lake, Zen 4 and later): tables of 64 entries, sums with vpdpbusd. */
#define ELUTQ_TARGET "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni"
#include "vec16_avx512.h"

#define ELUTQ_TABLE_BIAS 0
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

struct row_sums {
    __m512i rows_0, rows_16; /* int32 sums of rows 0 .. 15 and 16 .. 31 */
};

/*
 * Sums the entries that one plane picks. Four cells are transposed so that each 32-bit lane holds one row's four nibbles;
 * vpermb looks them up in the four cells' tables at once (index = cell * 16 + nibble), vpdpbusd with ones adds the four
 * signed bytes to the row's sum. |sum| <= 32 * 127.
 */
INLINE struct row_sums sum_plane(const uint8_t *plane, const int8_t *entries, uint32_t n_cells) {
    prefetch_ahead(plane, n_cells * ELUTQ_CELL_BYTES);
    const __m512i transpose = _mm512_loadu_si512(TRANSPOSE), nibble = _mm512_set1_epi8(15), ones = _mm512_set1_epi8(1);
    const __m512i cell = _mm512_set1_epi32(0x30201000);
    struct row_sums sums = {_mm512_setzero_si512(), _mm512_setzero_si512()};
#pragma GCC unroll 8
    for (uint32_t i = 0; i < n_cells / 4; i++) {
        __m512i rows = _mm512_permutexvar_epi8(transpose, _mm512_load_si512(plane + 64 * i));
        __m512i table = _mm512_load_si512(entries + 64 * i);
        /* (bits & nibble) | cell */
        __m512i index_0 = _mm512_ternarylogic_epi32(rows, nibble, cell, 0xEA);
        __m512i index_16 = _mm512_ternarylogic_epi32(_mm512_srli_epi16(rows, 4), nibble, cell, 0xEA);
        sums.rows_0 = dot_bytes(sums.rows_0, ones, _mm512_permutexvar_epi8(index_0, table));
        sums.rows_16 = dot_bytes(sums.rows_16, ones, _mm512_permutexvar_epi8(index_16, table));
    }
    return sums;
}

INLINE void add_block(const uint8_t *block, uint32_t bits, uint32_t n_cells, const int8_t *entries, float scale, float sum,
                      float *f) {
    __m512 u_0 = _mm512_setzero_ps(), u_16 = u_0;
    for (uint32_t k = 0; k < bits; k++) {
        struct row_sums picked =
            sum_plane(block + 64 * (bits + 1) + (size_t)k * n_cells * ELUTQ_CELL_BYTES, entries, n_cells);
        __m512 picked_0 = _mm512_cvtepi32_ps(picked.rows_0), picked_16 = _mm512_cvtepi32_ps(picked.rows_16);
        u_0 = k == 0 ? _mm512_mul_ps(load_scales(block, k, 0), picked_0)
                     : _mm512_fmadd_ps(load_scales(block, k, 0), picked_0, u_0);
        u_16 = k == 0 ? _mm512_mul_ps(load_scales(block, k, 1), picked_16)
                      : _mm512_fmadd_ps(load_scales(block, k, 1), picked_16, u_16);
    }
    __m512 f_0 = _mm512_fmadd_ps(load_scales(block, bits, 0), _mm512_set1_ps(sum), _mm512_loadu_ps(f));
    __m512 f_16 = _mm512_fmadd_ps(load_scales(block, bits, 1), _mm512_set1_ps(sum), _mm512_loadu_ps(f + 16));
    _mm512_storeu_ps(f, _mm512_fmadd_ps(u_0, _mm512_set1_ps(scale), f_0));
    _mm512_storeu_ps(f + 16, _mm512_fmadd_ps(u_16, _mm512_set1_ps(scale), f_16));
}

#include "hlq_gemv.h"

const struct elutq_kernels elutq_kernels_avx512 = {
    .name = "avx512",
    .gemv = gemv,
    .build_levels = build_levels,
    .gemm_levels = gemm_levels,
    ELUTQ_FLOAT_KERNELS,
};
