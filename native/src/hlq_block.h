/* Where things lie inside an HLQ matrix (elutq_format.h). Arguments come from a validated model: nothing overflows. */
#ifndef ELUTQ_HLQ_BLOCK_H
#define ELUTQ_HLQ_BLOCK_H

#include "elutq_format.h"
#include "elutq_kernels.h"

static inline size_t elutq_scales_bytes(uint32_t bits) {
    return (size_t)(bits + 1) * ELUTQ_TILE_ROWS * sizeof(uint16_t);
}

static inline size_t elutq_plane_bytes(uint32_t group_size) {
    return (size_t)group_size / ELUTQ_CELL_COLUMNS * ELUTQ_CELL_BYTES;
}

static inline size_t elutq_block_bytes(uint32_t bits, uint32_t group_size) {
    return elutq_scales_bytes(bits) + bits * elutq_plane_bytes(group_size);
}

static inline uint32_t elutq_matrix_tiles(const struct elutq_matrix *matrix) {
    return (matrix->n_rows + ELUTQ_TILE_ROWS - 1) / ELUTQ_TILE_ROWS;
}

static inline uint32_t elutq_matrix_chunks(const struct elutq_matrix *matrix) {
    return (matrix->n_rows + ELUTQ_CHUNK_ROWS - 1) / ELUTQ_CHUNK_ROWS;
}

static inline uint32_t elutq_matrix_groups(const struct elutq_matrix *matrix) {
    return matrix->n_columns / matrix->group_size;
}

/* Tiles in a superblock: 8, fewer in the last. */
static inline uint32_t elutq_chunk_tiles(const struct elutq_matrix *matrix, uint32_t chunk) {
    uint32_t left = elutq_matrix_tiles(matrix) - chunk * ELUTQ_SUPERBLOCK_TILES;
    return left < ELUTQ_SUPERBLOCK_TILES ? left : ELUTQ_SUPERBLOCK_TILES;
}

/* First block of a superblock; its blocks follow as [group][tile]. */
static inline const uint8_t *elutq_chunk_data(const struct elutq_matrix *matrix, uint32_t chunk) {
    return matrix->data + (size_t)chunk * ELUTQ_SUPERBLOCK_TILES * elutq_matrix_groups(matrix) *
                              elutq_block_bytes(matrix->bits, matrix->group_size);
}

/* Row within the tile of byte j's low nibble; the high nibble holds that row + 16. */
static inline uint32_t elutq_cell_row(uint32_t j) {
    return (j >> 1) + 8 * (j & 1);
}

/* The byte of a cell, and the shift within it, that hold a tile's row. */
static inline uint32_t elutq_cell_byte(uint32_t row) {
    return 2 * (row & 7) + ((row >> 3) & 1);
}
static inline uint32_t elutq_cell_shift(uint32_t row) {
    return row < 16 ? 0 : 4;
}

/*
 * Calls function(..., bits, group_size) with the matrix's shape as compile-time constants, so that an always-inline body
 * is compiled once for each of the twelve shapes, its loops unrolled.
 */
#define ELUTQ_FOR_SHAPE(matrix, function, ...)                                                                                 \
    switch ((matrix)->bits << 8 | (matrix)->group_size) {                                                                      \
        ELUTQ_SHAPES_OF(1, function, __VA_ARGS__)                                                                              \
        ELUTQ_SHAPES_OF(2, function, __VA_ARGS__)                                                                              \
        ELUTQ_SHAPES_OF(3, function, __VA_ARGS__)                                                                              \
        ELUTQ_SHAPES_OF(4, function, __VA_ARGS__)                                                                              \
    }
#define ELUTQ_SHAPES_OF(bits, function, ...)                                                                                   \
    case bits << 8 | 32:                                                                                                       \
        function(__VA_ARGS__, bits, 32);                                                                                       \
        break;                                                                                                                 \
    case bits << 8 | 64:                                                                                                       \
        function(__VA_ARGS__, bits, 64);                                                                                       \
        break;                                                                                                                 \
    case bits << 8 | 128:                                                                                                      \
        function(__VA_ARGS__, bits, 128);                                                                                      \
        break;

#endif
