/*
 * The walk over a part of a matrix, the same for every instruction set. A file includes this after it has defined
 *
 *     add_block(&block, n_cells, entries, multipliers, scale, sum, asking, f)
 *
 * which adds one block's result to f[32]: f += c * sum + scale * sum_k h_k * (sum of the entries that plane k picks, each
 * times its cell's multiplier). The block's factor, a power of two, is taken into scale and sum. It is to ask_for each of
 * the block's lines where it uses it; scalar, whose time is not memory's, and NEON leave that out.
 *
 * With ELUTQ_SPREADS_MULTIPLIERS it has also defined spread_multipliers, which makes of a group's multipliers what add_block
 * gets, and with ELUTQ_ORDERS_ROWS finish_rows(kind, n_tiles, y), which after the last group puts rows in their order.
 */
#ifndef ELUTQ_HLQ_GEMV_H
#define ELUTQ_HLQ_GEMV_H

#include "hlq_block.h"
#include "stream.h"

/*
 * How far behind a line of a part the one lies that is to be asked for: of a whole superblock, which is one stream, some
 * lines; of fewer tiles, whose bytes come group by group, `stride` apart, as many groups as make up for so many lines.
 */
INLINE size_t elutq_ahead(size_t stride, size_t group_bytes) {
    const size_t enough = ELUTQ_LINES_AHEAD * ELUTQ_LINE_BYTES;
    return stride == group_bytes ? enough : (enough + group_bytes - 1) / group_bytes * stride;
}

#ifndef ELUTQ_SPREADS_MULTIPLIERS
#define ELUTQ_SPREAD_BYTES 1
INLINE const uint8_t *spread_multipliers(const uint8_t *multipliers, uint32_t n_cells, uint8_t *room) {
    (void)n_cells;
    (void)room;
    return multipliers;
}
#endif
#ifndef ELUTQ_ORDERS_ROWS
INLINE void finish_rows(uint32_t kind, uint32_t n_tiles, float *y) {
    (void)kind;
    (void)n_tiles;
    (void)y;
}
#endif

INLINE void gemv_shape(const struct elutq_matrix *matrix, const struct elutq_tables *tables, struct elutq_part part, float *y,
                       bool by_line, uint32_t kind, uint32_t bits, uint32_t group_size) {
    const uint32_t n_cells = group_size / ELUTQ_CELL_COLUMNS;
    const uint32_t n_tiles = part.n_tiles, n_groups = matrix->n_columns / group_size;
    const uint8_t *data = elutq_part_data(matrix, part);
    const size_t block_bytes = elutq_block_bytes(kind, bits, group_size);
    const size_t stride = elutq_group_stride(matrix, part), others = stride - n_tiles * block_bytes;
    const struct elutq_asking asking = {by_line, by_line ? elutq_ahead(stride, n_tiles * block_bytes) : 0};
    _Alignas(64) uint8_t room[ELUTQ_SPREAD_BYTES];
    memset(y, 0, (size_t)n_tiles * ELUTQ_TILE_ROWS * sizeof *y);
    for (uint32_t group = 0; group < n_groups; group++, data += others) {
        const int8_t *entries = tables->entries + (size_t)group * n_cells * 16;
        const uint8_t *multipliers = spread_multipliers(tables->multipliers + (size_t)group * n_cells, n_cells, room);
        for (uint32_t tile = 0; tile < n_tiles; tile++, data += block_bytes) {
            struct elutq_block block = elutq_block_of(matrix, kind, bits, data);
            const float scale = tables->scales[group] * block.factor, sum = tables->sums[group] * block.factor;
            block.factor = 1;
            if (!by_line)
                ask_by_page(data, block_bytes);
            add_block(&block, n_cells, entries, multipliers, scale, sum, asking, y + tile * ELUTQ_TILE_ROWS);
        }
    }
    finish_rows(kind, n_tiles, y);
}

/*
 * Functions that stay apart: inlined into one, the compiler shares registers between loops that never run together. A
 * constant says what every block reads in its own way; of the even kinds, which read one half scale, that they are even.
 */
#define GEMV_WALK(name, by_line, kind)                                                                                         \
    ELUTQ_NEVER_INLINE KERNEL void name(const struct elutq_matrix *matrix, const struct elutq_tables *tables,                  \
                                        struct elutq_part part, float *y) {                                                    \
        ELUTQ_FOR_SHAPE(matrix, gemv_shape, matrix, tables, part, y, by_line, kind)                                           \
    }
#define GEMV_KIND(name, kind)                                                                                                  \
    GEMV_WALK(name##_by_line, true, kind)                                                                                      \
    GEMV_WALK(name##_by_page, false, kind)                                                                                     \
    KERNEL void name(const struct elutq_matrix *matrix, const struct elutq_tables *tables, struct elutq_part part, float *y) { \
        if (ELUTQ_ASK_BY_LINE || part.n_tiles < elutq_chunk_tiles(matrix, part.tile / ELUTQ_SUPERBLOCK_TILES))                 \
            name##_by_line(matrix, tables, part, y);                                                                          \
        else                                                                                                                   \
            name##_by_page(matrix, tables, part, y);                                                                          \
    }
GEMV_KIND(gemv_free16, 0)
GEMV_KIND(gemv_free8, ELUTQ_KIND_BYTES)
GEMV_KIND(gemv_even, ELUTQ_KIND_EVEN | (matrix->kind & (ELUTQ_KIND_BYTES | ELUTQ_KIND_CENTERS)))
#undef GEMV_KIND
#undef GEMV_WALK

KERNEL void gemv(const struct elutq_matrix *matrix, const struct elutq_tables *tables, struct elutq_part part, float *y) {
    if (matrix->kind & ELUTQ_KIND_EVEN)
        gemv_even(matrix, tables, part, y);
    else if (matrix->kind & ELUTQ_KIND_BYTES)
        gemv_free8(matrix, tables, part, y);
    else
        gemv_free16(matrix, tables, part, y);
}

/* gemm_tables, as it is defined: one token after the other. A superblock stays in L2 meanwhile. */
KERNEL void gemv_each(const struct elutq_matrix *matrix, const struct elutq_tables *tables, uint32_t n_tokens,
                      struct elutq_part part, float *y) {
    for (uint32_t token = 0; token < n_tokens; token++)
        gemv(matrix, &tables[token], part, y + (size_t)token * ELUTQ_CHUNK_STRIDE);
}

#endif
