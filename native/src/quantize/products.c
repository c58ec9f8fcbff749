/*
 * Products of float matrices whose factors are rounded to bfloat16, summed in float: on processors with instructions for
 * them they take a half to a third of the time of products of floats.
 *
 * Blocks of both factors are rounded and laid out as panels, of 16 rows of the left factor or columns of the right one:
 * [pair of the inner axis][16], two bfloat16 in a word. The inner loop has the sums of 8 rows and 32 columns in registers.
 * Sums run along the inner axis in pairs, then in blocks, whatever the size of the rest: a tile of a product has the
 * bits that it has in the whole.
 */
#include "elutq_quantize.h"

#include "kernel_sets.h"

#ifdef ELUTQ_HAS_AVX512BF16

#include <immintrin.h>

#include "aligned.h"
#include "compiler.h"

#define TARGET ELUTQ_WITH("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")

#define PANEL 16        /* words of a line of a panel: what a register has */
#define TILE_ROWS 8     /* in registers, of a panel of the left factor */
#define TILE_PANELS 2   /* and of the right one */
#define BLOCK 512       /* rows, columns and inner elements of blocks: two of them stay in a cache of 1 MB */
#define PAIRS (BLOCK / 2)
#define PANEL_WORDS (PAIRS * PANEL)

/* Elements of a factor that are multiplied with each other lie `along` apart, its rows or columns `across`. */
struct factor {
    const float *first;
    ptrdiff_t along, across;
};

static size_t least(size_t a, size_t b) {
    return a < b ? a : b;
}

/* Turns 16 registers of 16 words into those of its columns. */
TARGET static inline void transpose(__m512i rows[PANEL]) {
    __m512i t[PANEL];
    for (unsigned i = 0; i < PANEL; i += 2) {
        t[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    for (unsigned i = 0; i < PANEL; i += 4)
        for (unsigned j = 0; j < 2; j++) {
            rows[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
            rows[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
        }
    for (unsigned j = 0; j < 4; j++) /* now quarter q of rows[4 g + j] is column 4 q + j of rows 4 g to 4 g + 3 */
        for (unsigned half = 0; half < 2; half++) {
            t[j + 8 * half] = _mm512_shuffle_i32x4(rows[8 * half + j], rows[8 * half + 4 + j], 0x88);
            t[j + 8 * half + 4] = _mm512_shuffle_i32x4(rows[8 * half + j], rows[8 * half + 4 + j], 0xDD);
        }
    for (unsigned j = 0; j < 4; j++)
        for (unsigned odd = 0; odd < 2; odd++) {
            rows[j + 4 * odd] = _mm512_shuffle_i32x4(t[j + 4 * odd], t[j + 4 * odd + 8], 0x88);
            rows[j + 4 * odd + 8] = _mm512_shuffle_i32x4(t[j + 4 * odd], t[j + 4 * odd + 8], 0xDD);
        }
}

TARGET static inline __m512i rounded(__m512 low, __m512 high) {
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

/* A panel of which both elements of a pair are in one row or column of the factor: `along` is 1. */
TARGET static void pack_along(struct factor from, size_t n_across, size_t n_along, uint32_t *panel) {
    for (size_t i = 0; i < n_along; i += 2 * PANEL) {
        const size_t left = n_along - i;
        const __mmask16 first = left >= 16 ? 0xFFFF : (__mmask16)((1u << left) - 1);
        const __mmask16 second = left >= 32 ? 0xFFFF : left <= 16 ? 0 : (__mmask16)((1u << (left - 16)) - 1);
        __m512i lines[PANEL];
        for (size_t j = 0; j < PANEL; j++) {
            const float *at = from.first + (ptrdiff_t)(j < n_across ? j : 0) * from.across + i;
            lines[j] = j < n_across ? rounded(_mm512_maskz_loadu_ps(first, at), _mm512_maskz_loadu_ps(second, at + 16))
                                    : _mm512_setzero_si512();
        }
        transpose(lines);
        const size_t n_lines = least(PANEL, (left + 1) / 2);
        for (size_t j = 0; j < n_lines; j++)
            _mm512_store_si512(panel + (i / 2 + j) * PANEL, lines[j]);
    }
}

/* A panel whose lines are runs of the factor: `across` is 1. */
TARGET static void pack_across(struct factor from, size_t n_across, size_t n_along, uint32_t *panel) {
    const __mmask16 there = n_across >= PANEL ? 0xFFFF : (__mmask16)((1u << n_across) - 1);
    const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                                5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    for (size_t i = 0; i < n_along; i += 2) {
        const float *at = from.first + (ptrdiff_t)i * from.along;
        const __m512 low = _mm512_maskz_loadu_ps(there, at);
        const __m512 high = i + 1 < n_along ? _mm512_maskz_loadu_ps(there, at + from.along) : _mm512_setzero_ps();
        _mm512_store_si512(panel + i / 2 * PANEL, _mm512_permutexvar_epi16(interleave, rounded(low, high)));
    }
}

/* Rounds a block of a factor and lays it out as panels; the last is filled up with zeros. */
static void pack(struct factor from, size_t n_across, size_t n_along, uint32_t *panels) {
    for (size_t i = 0; i < n_across; i += PANEL, panels += PANEL_WORDS) {
        const struct factor part = {from.first + (ptrdiff_t)i * from.across, from.along, from.across};
        (from.along == 1 ? pack_along : pack_across)(part, least(PANEL, n_across - i), n_along, panels);
    }
}

/* Adds the products of 8 rows of a panel and of two other panels to their places; so many rows and columns are there. */
TARGET static void add_tile(const uint32_t *left, const uint32_t *right, size_t n_pairs, float *target, size_t stride,
                            size_t n_rows, size_t n_columns) {
    __m512 sums[TILE_ROWS][TILE_PANELS];
    for (unsigned i = 0; i < TILE_ROWS; i++)
        for (unsigned j = 0; j < TILE_PANELS; j++)
            sums[i][j] = _mm512_setzero_ps();
    for (size_t pair = 0; pair < n_pairs; pair++) {
        const __m512bh first = (__m512bh)_mm512_load_si512(right + pair * PANEL);
        const __m512bh second = (__m512bh)_mm512_load_si512(right + PANEL_WORDS + pair * PANEL);
        for (unsigned i = 0; i < TILE_ROWS; i++) {
            const __m512bh row = (__m512bh)_mm512_set1_epi32((int)left[pair * PANEL + i]);
            sums[i][0] = _mm512_dpbf16_ps(sums[i][0], row, first);
            sums[i][1] = _mm512_dpbf16_ps(sums[i][1], row, second);
        }
    }
    const uint32_t mask = n_columns >= 32 ? 0xFFFFFFFF : (1u << n_columns) - 1;
    const __mmask16 there[TILE_PANELS] = {(__mmask16)mask, (__mmask16)(mask >> 16)};
    for (unsigned i = 0; i < TILE_ROWS; i++)
        for (unsigned j = 0; i < n_rows && j < TILE_PANELS; j++) {
            float *at = target + i * stride + j * PANEL;
            _mm512_mask_storeu_ps(at, there[j], _mm512_add_ps(_mm512_maskz_loadu_ps(there[j], at), sums[i][j]));
        }
}

static void add_block(const uint32_t *left, const uint32_t *right, size_t n_pairs, float *target, size_t stride,
                      size_t n_rows, size_t n_columns) {
    for (size_t column = 0; column < n_columns; column += TILE_PANELS * PANEL)
        for (size_t row = 0; row < n_rows; row += TILE_ROWS)
            add_tile(left + row / PANEL * PANEL_WORDS + row % PANEL, right + column / PANEL * PANEL_WORDS, n_pairs,
                     target + row * stride + column, stride, least(TILE_ROWS, n_rows - row), n_columns - column);
}

int elutq_has_rounded_products(void) {
    return elutq_cpu_has_avx512bf16() ? 1 : 0;
}

int elutq_add_rounded_product(const float *left, ptrdiff_t left_row, ptrdiff_t left_inner, const float *right,
                              ptrdiff_t right_inner, ptrdiff_t right_column, size_t n_rows, size_t n_columns, size_t n_inner,
                              float *target, size_t target_row) {
    if ((left_row != 1 && left_inner != 1) || (right_inner != 1 && right_column != 1) || target_row < n_columns ||
        !elutq_has_rounded_products())
        return ELUTQ_ERROR_ARGUMENT;
    const size_t panels = (BLOCK / PANEL) * PANEL_WORDS;
    uint32_t *room = elutq_allocate_aligned(2 * panels, sizeof *room);
    if (room == NULL)
        return ELUTQ_ERROR_MEMORY;
    for (size_t column = 0; column < n_columns; column += BLOCK)
        for (size_t inner = 0; inner < n_inner; inner += BLOCK) {
            const size_t columns = least(BLOCK, n_columns - column), along = least(BLOCK, n_inner - inner);
            const float *corner = right + (ptrdiff_t)inner * right_inner + (ptrdiff_t)column * right_column;
            pack((struct factor){corner, right_inner, right_column}, columns, along, room);
            for (size_t row = 0; row < n_rows; row += BLOCK) {
                const size_t rows = least(BLOCK, n_rows - row);
                corner = left + (ptrdiff_t)row * left_row + (ptrdiff_t)inner * left_inner;
                pack((struct factor){corner, left_inner, left_row}, rows, along, room + panels);
                add_block(room + panels, room, (along + 1) / 2, target + row * target_row + column, target_row, rows, columns);
            }
        }
    elutq_free_aligned(room);
    return ELUTQ_OK;
}

#else

int elutq_has_rounded_products(void) {
    return 0;
}

int elutq_add_rounded_product(const float *left, ptrdiff_t left_row, ptrdiff_t left_inner, const float *right,
                              ptrdiff_t right_inner, ptrdiff_t right_column, size_t n_rows, size_t n_columns, size_t n_inner,
                              float *target, size_t target_row) {
    (void)left, (void)left_row, (void)left_inner, (void)right, (void)right_inner, (void)right_column, (void)n_rows;
    (void)n_columns, (void)n_inner, (void)target, (void)target_row;
    return ELUTQ_ERROR_ARGUMENT;
}

#endif
