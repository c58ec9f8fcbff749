/*
 * The walk over a part of a matrix for a batch of tokens by table look-up, the same for every instruction set that unpacks the
 * planes first. A file includes this after hlq_gemv.h and after it has defined
 *
 *     unpack_tile(&block, n_cells, indices, scales)         scales[bits + 2][32]: half scales by plane, centers, their factor
 *                                                           in them; the rest is its own
 *     add_tile(indices, scales, bits, n_cells, tables, group, n_tokens, y)
 *     finish_tile(y)                                        after the last group: the order of rows, where add_tile has another
 *     ELUTQ_TOKENS_AT_ONCE(bits)                            tokens whose sums the registers hold: add_tile's n_tokens, or 1
 *     ELUTQ_UNPACK_FROM(bits)                               tokens that make up for the unpacking
 */
#ifndef ELUTQ_HLQ_GEMM_H
#define ELUTQ_HLQ_GEMM_H

#include "hlq_gemv.h"

/* Bytes of one cell's indices, unpacked: one for each of the tile's rows. */
#define UNPACKED_CELL_BYTES ELUTQ_TILE_ROWS

/* One group of a superblock, unpacked. It stays in L1 while all tokens go by: 16 KB of indices at 2 bits and groups of 128. */
struct superblock_indices {
    uint8_t indices[ELUTQ_SUPERBLOCK_TILES * ELUTQ_HLQ_MAX_BITS * ELUTQ_HLQ_MAX_GROUP_SIZE / ELUTQ_CELL_COLUMNS *
                    UNPACKED_CELL_BYTES]; /* [tile][as unpack_tile leaves them] */
    float scales[ELUTQ_SUPERBLOCK_TILES][(ELUTQ_HLQ_MAX_BITS + 2) * ELUTQ_TILE_ROWS]; /* likewise */
};

INLINE void gemm_tables_shape(const struct elutq_matrix *matrix, const struct elutq_tables *tables, uint32_t n_tokens,
                              struct elutq_part part, float *y, struct superblock_indices *unpacked, uint32_t bits,
                              uint32_t group_size) {
    const uint32_t n_cells = group_size / ELUTQ_CELL_COLUMNS, n_groups = matrix->n_columns / group_size;
    const uint32_t n_tiles = part.n_tiles, at_once = ELUTQ_TOKENS_AT_ONCE(bits);
    const uint32_t kind = matrix->kind, tile_indices = bits * n_cells * UNPACKED_CELL_BYTES;
    const size_t block_bytes = elutq_block_bytes(kind, bits, group_size);
    const size_t stride = elutq_group_stride(matrix, part), others = stride - n_tiles * block_bytes;
    const uint32_t n_steps = (n_tokens + at_once - 1) / at_once;
    const size_t asked_bytes = (block_bytes / n_steps + ELUTQ_LINE_BYTES) / ELUTQ_LINE_BYTES * ELUTQ_LINE_BYTES;
    const uint8_t *data = elutq_part_data(matrix, part);
    for (uint32_t token = 0; token < n_tokens; token++)
        memset(y + (size_t)token * ELUTQ_CHUNK_STRIDE, 0, (size_t)n_tiles * ELUTQ_TILE_ROWS * sizeof *y);
    for (uint32_t group = 0; group < n_groups; group++, data += others) {
        for (uint32_t tile = 0; tile < n_tiles; tile++, data += block_bytes) {
            const struct elutq_block block = elutq_block_of(matrix, kind, bits, data);
            unpack_tile(&block, n_cells, unpacked->indices + tile * tile_indices, unpacked->scales[tile]);
        }
        /* Memory has nothing to do meanwhile: the next group is asked for, some lines at a time. */
        const uint8_t *next = data + others, *next_end = next + n_tiles * block_bytes;
        for (uint32_t token = 0; token < n_tokens; token += at_once)
            for (uint32_t tile = 0; tile < n_tiles; tile++) {
                if (next < next_end)
                    ask_by_line(next, asked_bytes, 0);
                next += asked_bytes;
                float *results = y + (size_t)token * ELUTQ_CHUNK_STRIDE + tile * ELUTQ_TILE_ROWS;
                const uint8_t *indices = unpacked->indices + tile * tile_indices;
                const float *scales = unpacked->scales[tile];
                if (token + at_once <= n_tokens)
                    add_tile(indices, scales, bits, n_cells, tables + token, group, at_once, results);
                else
                    for (uint32_t t = token; t < n_tokens; t++, results += ELUTQ_CHUNK_STRIDE)
                        add_tile(indices, scales, bits, n_cells, tables + t, group, 1, results);
            }
    }
    for (uint32_t token = 0; token < n_tokens; token++)
        for (uint32_t tile = 0; tile < n_tiles; tile++)
            finish_tile(y + (size_t)token * ELUTQ_CHUNK_STRIDE + tile * ELUTQ_TILE_ROWS);
}

KERNEL void gemm_tables(const struct elutq_matrix *matrix, const struct elutq_tables *tables, uint32_t n_tokens,
                        struct elutq_part part, float *y) {
    if (n_tokens < ELUTQ_UNPACK_FROM(matrix->bits)) {
        gemv_each(matrix, tables, n_tokens, part, y);
        return;
    }
    _Alignas(64) struct superblock_indices unpacked; /* one for all shapes: the stack of a thread is small */
    ELUTQ_FOR_SHAPE(matrix, gemm_tables_shape, matrix, tables, n_tokens, part, y, &unpacked);
}

#endif
