/* Decode for AVX2: table look-ups with vpshufb, two cells an instruction. */
#ifndef ELUTQ_GEMV_AVX2_H
#define ELUTQ_GEMV_AVX2_H

#include "hlq_block.h"
#include "scales_avx2.h"
#include "stream.h"
#include "whole_avx2.h"

/* The multipliers of four cells in the order of add_four: those of cells 0 and 2 in the lower half, of 1 and 3 above. */
INLINE __m256i four_multipliers(const uint8_t *multipliers) {
    const __m256i order = _mm256_setr_epi8(0, 2, 0, 2, 0, 2, 0, 2, 0, 2, 0, 2, 0, 2, 0, 2,
                                           1, 3, 1, 3, 1, 3, 1, 3, 1, 3, 1, 3, 1, 3, 1, 3);
    int32_t four;
    memcpy(&four, multipliers, sizeof four);
    return _mm256_shuffle_epi8(_mm256_set1_epi32(four), order);
}

/*
 * Sums of multiplied entries as 16-bit lanes, two cells side by side in each half: of bytes 0 .. 7 and of bytes 8 .. 15 of a
 * cell, for its low nibbles (rows 0 .. 15) and its high ones. At most ELUTQ_MULTIPLIERS * 127 in magnitude.
 */
struct word_sums {
    __m256i low_0, high_0, low_16, high_16;
};

/* sum + words, in this order: GCC otherwise regroups the additions into trees whose parts it keeps on the stack. */
INLINE __m256i add_words(__m256i sum, __m256i words) {
    sum = _mm256_add_epi16(sum, words);
    ELUTQ_SETTLE(sum);
    return sum;
}

/* Adds the entries that four cells pick, `first` those of cells 0 and 1, `second` of 2 and 3, each times its multiplier. */
INLINE void add_four(__m256i *low, __m256i *high, __m256i of_cells, __m256i first, __m256i second) {
    *low = add_words(*low, _mm256_maddubs_epi16(of_cells, _mm256_unpacklo_epi8(first, second)));
    *high = add_words(*high, _mm256_maddubs_epi16(of_cells, _mm256_unpackhi_epi8(first, second)));
}

/* The multipliers of a group's cells, each four as add_four takes them: all tiles of the group use them. */
#define ELUTQ_SPREADS_MULTIPLIERS
#define ELUTQ_SPREAD_BYTES (ELUTQ_HLQ_MAX_GROUP_SIZE / ELUTQ_CELL_COLUMNS / 4 * 32)
INLINE const uint8_t *spread_multipliers(const uint8_t *multipliers, uint32_t n_cells, uint8_t *room) {
    for (uint32_t i = 0; i < n_cells / 4; i++)
        _mm256_store_si256((__m256i *)(room + 32 * i), four_multipliers(multipliers + 4 * i));
    return room;
}

/* rows[0] gets rows 0 .. 7, rows[1] rows 8 .. 15: even bytes of a cell hold the former, odd ones the latter. */
INLINE void words_by_row(__m256i low, __m256i high, __m128i rows[2]) {
    const __m128i even_first = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
#define ADD_HALVES(v) _mm_add_epi16(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1))
    const __m128i a = _mm_shuffle_epi8(ADD_HALVES(low), even_first), b = _mm_shuffle_epi8(ADD_HALVES(high), even_first);
#undef ADD_HALVES
    rows[0] = _mm_unpacklo_epi64(a, b);
    rows[1] = _mm_unpackhi_epi64(a, b);
}

/* picked[i] gets rows 8i .. 8i+7. */
INLINE void sums_by_row(const struct word_sums *sums, __m128i picked[4]) {
    words_by_row(sums->low_0, sums->high_0, picked);
    words_by_row(sums->low_16, sums->high_16, picked + 2);
}

/* The same as words in the order of whole_avx2.h. */
INLINE void sums_in_words(const struct word_sums *sums, __m256i words[2]) {
#define ADD_HALVES(a, b) _mm256_add_epi16(_mm256_blend_epi32(a, b, 0xF0), _mm256_permute2x128_si256(a, b, 0x21))
    words[0] = ADD_HALVES(sums->low_0, sums->low_16);
    words[1] = ADD_HALVES(sums->high_0, sums->high_16);
#undef ADD_HALVES
}

/* The entries that four cells pick: by low nibbles cells 0 and 1, then 2 and 3; by high ones the same. */
INLINE void look_up_four(const uint8_t *plane, const int8_t *entries, __m256i picked[4]) {
    const __m256i nibble = _mm256_set1_epi8(15);
    ELUTQ_UNROLL(2)
    for (uint32_t j = 0; j < 2; j++) {
        __m256i cells = _mm256_load_si256((const __m256i *)(plane + 32 * j));
        ELUTQ_SETTLE(cells); /* loaded once, not for each half of its bytes */
        const __m256i table = _mm256_load_si256((const __m256i *)(entries + 32 * j));
        picked[j] = _mm256_shuffle_epi8(table, _mm256_and_si256(cells, nibble));
        picked[2 + j] = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(cells, 4), nibble));
    }
}

/* Sums the entries that one plane picks, each times its cell's multiplier: four cells are looked up ahead of their products. */
INLINE struct word_sums sum_plane(const uint8_t *plane, const int8_t *entries, const uint8_t *multipliers, uint32_t n_cells,
                                  struct elutq_asking asking) {
    const __m256i zero = _mm256_setzero_si256();
    struct word_sums sums = {zero, zero, zero, zero};
    __m256i picked[4];
    ELUTQ_FORGET(entries); /* else tables and multipliers of all cells are kept from tile to tile, on the stack */
    ELUTQ_FORGET(multipliers);
    look_up_four(plane, entries, picked);
    ELUTQ_UNROLL(16)
    for (uint32_t i = 0; i < n_cells / 4; i++) {
        ask_for(asking, plane + 64 * i, 64);
        __m256i next[4] = {zero, zero, zero, zero};
        if (i + 1 < n_cells / 4)
            look_up_four(plane + 64 * (i + 1), entries + 64 * (i + 1), next);
        const __m256i of_cells = _mm256_load_si256((const __m256i *)(multipliers + 32 * i));
        add_four(&sums.low_0, &sums.high_0, of_cells, picked[0], picked[1]);
        add_four(&sums.low_16, &sums.high_16, of_cells, picked[2], picked[3]);
        memcpy(picked, next, sizeof picked);
    }
    return sums;
}

/* Of free8: scale and results are in the order of whole_avx2.h. */
INLINE void add_byte_block(const struct elutq_block *block, uint32_t n_cells, const int8_t *entries,
                           const uint8_t *multipliers, float scale, float sum, struct elutq_asking asking, float *f) {
    __m256i words[ELUTQ_HLQ_MAX_BITS][2], h[ELUTQ_HLQ_MAX_BITS][2], whole[2];
    __m256 centers[4];
    for (uint32_t k = 0; k < block->bits; k++) {
        const struct word_sums sums =
            sum_plane(block->planes + (size_t)k * n_cells * ELUTQ_CELL_BYTES, entries, multipliers, n_cells, asking);
        sums_in_words(&sums, words[k]);
    }
    ELUTQ_UNROLL(4)
    for (uint32_t k = 0; k < block->bits; k++)
        whole_half_scales(block->scales + ELUTQ_TILE_ROWS * k, h[k]);
    whole_centers(block->scales + ELUTQ_TILE_ROWS * block->bits, whole);
    centers_of(whole, centers);
    ELUTQ_UNROLL(4)
    for (uint32_t i = 0; i < 4; i++) {
        const __m256 u = scaled_sums(words, h, block->bits, i);
        const __m256 fi = _mm256_fmadd_ps(centers[i], _mm256_set1_ps(sum), _mm256_loadu_ps(f + 8 * i));
        _mm256_storeu_ps(f + 8 * i, _mm256_fmadd_ps(u, _mm256_set1_ps(scale * WHOLE_HALF_SCALE), fi));
    }
}

INLINE void add_block(const struct elutq_block *block, uint32_t n_cells, const int8_t *entries, const uint8_t *multipliers,
                      float scale, float sum, struct elutq_asking asking, float *f) {
    __m128i picked[ELUTQ_HLQ_MAX_BITS][4];
    ask_for(asking, block->scales, elutq_scales_bytes(block->kind, block->bits));
    if (block->kind == ELUTQ_KIND_BYTES) {
        add_byte_block(block, n_cells, entries, multipliers, scale, sum, asking, f);
        return;
    }
    for (uint32_t k = 0; k < block->bits; k++) {
        const struct word_sums sums =
            sum_plane(block->planes + (size_t)k * n_cells * ELUTQ_CELL_BYTES, entries, multipliers, n_cells, asking);
        sums_by_row(&sums, picked[k]);
    }
    for (uint32_t i = 0; i < 4; i++) {
        __m256 u = _mm256_mul_ps(load_half_scales(block, 0, i), _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(picked[0][i])));
        for (uint32_t k = 1; k < block->bits; k++)
            u = _mm256_fmadd_ps(load_half_scales(block, k, i), _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(picked[k][i])), u);
        __m256 fi = _mm256_fmadd_ps(load_centers(block, i), _mm256_set1_ps(sum), _mm256_loadu_ps(f + 8 * i));
        _mm256_storeu_ps(f + 8 * i, _mm256_fmadd_ps(u, _mm256_set1_ps(scale), fi));
    }
}

#define ELUTQ_ORDERS_ROWS
INLINE void finish_rows(uint32_t kind, uint32_t n_tiles, float *y) {
    for (uint32_t tile = 0; tile < n_tiles && kind == ELUTQ_KIND_BYTES; tile++)
        finish_tile(y + tile * ELUTQ_TILE_ROWS);
}

#include "hlq_gemv.h"
#include "tables_avx2.h"

#endif
