/*
 * The walk over a chunk, the same for every instruction set. A file includes this after it has defined
 *
 *     add_block(block, bits, n_cells, entries, scale, sum, by_line, f)
 *
 * which adds one block's result to f[32]: f += c * sum + scale * sum_k h_k * (sum of the entries that plane k picks). With
 * by_line, a constant, it is to ask_by_line for each of the block's lines where it uses it.
 */
#ifndef ELUTQ_HLQ_GEMV_H
#define ELUTQ_HLQ_GEMV_H

#include "hlq_block.h"
#include "stream.h"

INLINE void gemv_shape(const struct elutq_matrix *matrix, const struct elutq_tables *tables, uint32_t chunk, float *y,
                       bool by_line, uint32_t bits, uint32_t group_size) {
    const uint32_t n_cells = group_size / ELUTQ_CELL_COLUMNS;
    const uint32_t n_tiles = elutq_chunk_tiles(matrix, chunk), n_groups = matrix->n_columns / group_size;
    const uint8_t *block = elutq_chunk_data(matrix, chunk);
    memset(y, 0, (size_t)n_tiles * ELUTQ_TILE_ROWS * sizeof *y);
    for (uint32_t group = 0; group < n_groups; group++) {
        const int8_t *entries = tables->entries + (size_t)group * n_cells * 16;
        for (uint32_t tile = 0; tile < n_tiles; tile++, block += elutq_block_bytes(bits, group_size)) {
            if (!by_line)
                ask_by_page(block, elutq_block_bytes(bits, group_size));
            add_block(block, bits, n_cells, entries, tables->scales[group], tables->sums[group], by_line,
                      y + tile * ELUTQ_TILE_ROWS);
        }
    }
}

KERNEL void gemv(const struct elutq_matrix *matrix, const struct elutq_tables *tables, uint32_t chunk, float *y) {
    if (ELUTQ_ASK_BY_LINE)
        ELUTQ_FOR_SHAPE(matrix, gemv_shape, matrix, tables, chunk, y, true)
    else
        ELUTQ_FOR_SHAPE(matrix, gemv_shape, matrix, tables, chunk, y, false)
}

/* gemm_tables, as it is defined: one token after the other. A superblock stays in L2 meanwhile. */
KERNEL void gemv_each(const struct elutq_matrix *matrix, const struct elutq_tables *tables, uint32_t n_tokens,
                      uint32_t chunk, float *y) {
    for (uint32_t token = 0; token < n_tokens; token++)
        gemv(matrix, &tables[token], chunk, y + (size_t)token * ELUTQ_CHUNK_STRIDE);
}

#endif
