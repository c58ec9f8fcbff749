/* Where things lie inside an HLQ matrix (elutq_format.h). Arguments come from a validated model: nothing overflows. */
#ifndef ELUTQ_HLQ_BLOCK_H
#define ELUTQ_HLQ_BLOCK_H

#include <stdbool.h>

#include "elutq_format.h"
#include "elutq_kernels.h"
#include "half.h"

/* One tile's numbers of one group: where they lie, and how they are to be read. */
struct elutq_block {
    const uint8_t *scales, *planes;
    uint32_t kind, bits;
    float factor; /* what the numbers that are bytes are to be multiplied by */
    float center; /* of the matrix, times h_1 */
};

/* Whether it is one of the six: centers of groups beside even levels only, as the others always have them. */
static inline bool elutq_is_kind(uint32_t kind) {
    return kind <= (ELUTQ_KIND_BYTES | ELUTQ_KIND_EVEN | ELUTQ_KIND_CENTERS) &&
           (!(kind & ELUTQ_KIND_CENTERS) || (kind & ELUTQ_KIND_EVEN) != 0);
}

/* Bytes of one tile's half scales and centers. */
static inline size_t elutq_scales_bytes(uint32_t kind, uint32_t bits) {
    const size_t width = kind & ELUTQ_KIND_BYTES ? 1 : 2;
    if (kind & ELUTQ_KIND_EVEN)
        return ELUTQ_TILE_ROWS * (kind & ELUTQ_KIND_CENTERS ? width + 1 : width);
    return ELUTQ_TILE_ROWS * width * (bits + 1);
}

static inline size_t elutq_plane_bytes(uint32_t group_size) {
    return (size_t)group_size / ELUTQ_CELL_COLUMNS * ELUTQ_CELL_BYTES;
}

/* A multiple of 32, of free16 of 64. */
static inline size_t elutq_block_bytes(uint32_t kind, uint32_t bits, uint32_t group_size) {
    return elutq_scales_bytes(kind, bits) + bits * elutq_plane_bytes(group_size);
}

static inline size_t elutq_matrix_block_bytes(const struct elutq_matrix *matrix) {
    return elutq_block_bytes(matrix->kind, matrix->bits, matrix->group_size);
}

/* The block of a matrix that begins at `data`. Kind and bits are the matrix's, and constants where that pays. */
static inline struct elutq_block elutq_block_of(const struct elutq_matrix *matrix, uint32_t kind, uint32_t bits,
                                                const uint8_t *data) {
    return (struct elutq_block){
        .scales = data,
        .planes = data + elutq_scales_bytes(kind, bits),
        .kind = kind,
        .bits = bits,
        .factor = kind & ELUTQ_KIND_BYTES ? (float)(1u << matrix->exponent) : 1,
        .center = 0.25f * (float)matrix->center,
    };
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

static inline uint64_t elutq_matrix_bytes(const struct elutq_matrix *matrix) {
    if (matrix->bits == 16)
        return (uint64_t)matrix->n_rows * matrix->n_columns * sizeof(uint16_t);
    return (uint64_t)elutq_matrix_tiles(matrix) * elutq_matrix_groups(matrix) * elutq_matrix_block_bytes(matrix);
}

/* One of the matrices that lie one behind the other, alike, of which `first` is the first. */
static inline struct elutq_matrix elutq_matrix_behind(const struct elutq_matrix *first, uint32_t i) {
    struct elutq_matrix matrix = *first;
    matrix.data += i * elutq_matrix_bytes(first);
    return matrix;
}

/* Tiles in a superblock: 8, fewer in the last. */
static inline uint32_t elutq_chunk_tiles(const struct elutq_matrix *matrix, uint32_t chunk) {
    uint32_t left = elutq_matrix_tiles(matrix) - chunk * ELUTQ_SUPERBLOCK_TILES;
    return left < ELUTQ_SUPERBLOCK_TILES ? left : ELUTQ_SUPERBLOCK_TILES;
}

/* First block of a superblock; its blocks follow as [group][tile]. */
static inline const uint8_t *elutq_chunk_data(const struct elutq_matrix *matrix, uint32_t chunk) {
    const size_t n_blocks = (size_t)chunk * ELUTQ_SUPERBLOCK_TILES * elutq_matrix_groups(matrix);
    return matrix->data + n_blocks * elutq_matrix_block_bytes(matrix);
}

/* All tiles of a superblock. */
static inline struct elutq_part elutq_chunk_part(const struct elutq_matrix *matrix, uint32_t chunk) {
    return (struct elutq_part){chunk * ELUTQ_SUPERBLOCK_TILES, elutq_chunk_tiles(matrix, chunk)};
}

/* First block of a part; those of its other tiles follow, and those of the next group elutq_group_stride behind. */
static inline const uint8_t *elutq_part_data(const struct elutq_matrix *matrix, struct elutq_part part) {
    return elutq_chunk_data(matrix, part.tile / ELUTQ_SUPERBLOCK_TILES) +
           part.tile % ELUTQ_SUPERBLOCK_TILES * elutq_matrix_block_bytes(matrix);
}
static inline size_t elutq_group_stride(const struct elutq_matrix *matrix, struct elutq_part part) {
    return elutq_chunk_tiles(matrix, part.tile / ELUTQ_SUPERBLOCK_TILES) * elutq_matrix_block_bytes(matrix);
}

/* One block of a matrix, by its tile and group. */
static inline struct elutq_block elutq_block_at(const struct elutq_matrix *matrix, uint32_t tile, uint32_t group) {
    const uint32_t chunk = tile / ELUTQ_SUPERBLOCK_TILES;
    const size_t i = (size_t)group * elutq_chunk_tiles(matrix, chunk) + tile % ELUTQ_SUPERBLOCK_TILES;
    const uint8_t *data = elutq_chunk_data(matrix, chunk) + i * elutq_matrix_block_bytes(matrix);
    return elutq_block_of(matrix, matrix->kind, matrix->bits, data);
}

/* ---- the numbers of one row ---- */

/* Number `i` of row `row` where half scales stand; it may be one that is not finite or below zero. */
static inline float elutq_stored_half_scale(const struct elutq_block *block, uint32_t i, uint32_t row) {
    const uint32_t at = i * ELUTQ_TILE_ROWS + row;
    if (block->kind & ELUTQ_KIND_BYTES)
        return elutq_half_to_float((uint16_t)(block->scales[at] << ELUTQ_HALF_SCALE_SHIFT)) * block->factor;
    return elutq_half_to_float(((const uint16_t *)block->scales)[at]);
}

static inline float elutq_half_scale(const struct elutq_block *block, uint32_t plane, uint32_t row) {
    if (block->kind & ELUTQ_KIND_EVEN)
        return elutq_stored_half_scale(block, 0, row) * (float)(1u << plane);
    return elutq_stored_half_scale(block, plane, row);
}

static inline float elutq_center(const struct elutq_block *block, uint32_t row) {
    if (block->kind & ELUTQ_KIND_CENTERS) {
        const int8_t *centers = (const int8_t *)block->scales + elutq_scales_bytes(block->kind ^ ELUTQ_KIND_CENTERS, 0);
        return elutq_half_scale(block, 0, row) * (0.25f * (float)centers[row]);
    }
    if (block->kind & ELUTQ_KIND_EVEN)
        return elutq_half_scale(block, 0, row) * block->center;
    if (block->kind & ELUTQ_KIND_BYTES) {
        const uint8_t byte = block->scales[block->bits * ELUTQ_TILE_ROWS + row];
        return elutq_half_to_float((uint16_t)((byte & 128) << 8 | (byte & 127) << ELUTQ_CENTER_SHIFT)) * block->factor;
    }
    return elutq_stored_half_scale(block, block->bits, row);
}

/* The byte of a cell, and the shift within it, that hold a tile's row. */
static inline uint32_t elutq_cell_byte(uint32_t row) {
    return 2 * (row & 7) + ((row >> 3) & 1);
}
static inline uint32_t elutq_cell_shift(uint32_t row) {
    return row < 16 ? 0 : 4;
}

/*
 * ELUTQ_FOR_SHAPE calls function(..., bits, group_size) with the matrix's shape as compile-time constants, so that an
 * always-inline body is compiled once for each of the sixteen shapes, its loops unrolled; ELUTQ_FOR_BITS does so for bits
 * alone, where more is done in a loop than its end costs.
 */
#define ELUTQ_FOR_SHAPE(matrix, function, ...)                                                                                 \
    switch ((matrix)->bits << 12 | (matrix)->group_size) {                                                                     \
        ELUTQ_SHAPES_OF(1, function, __VA_ARGS__)                                                                              \
        ELUTQ_SHAPES_OF(2, function, __VA_ARGS__)                                                                              \
        ELUTQ_SHAPES_OF(3, function, __VA_ARGS__)                                                                              \
        ELUTQ_SHAPES_OF(4, function, __VA_ARGS__)                                                                              \
    }
#define ELUTQ_SHAPES_OF(bits, function, ...)                                                                                   \
    case bits << 12 | 32:                                                                                                      \
        function(__VA_ARGS__, bits, 32);                                                                                       \
        break;                                                                                                                 \
    case bits << 12 | 64:                                                                                                      \
        function(__VA_ARGS__, bits, 64);                                                                                       \
        break;                                                                                                                 \
    case bits << 12 | 128:                                                                                                     \
        function(__VA_ARGS__, bits, 128);                                                                                      \
        break;                                                                                                                 \
    case bits << 12 | 256:                                                                                                     \
        function(__VA_ARGS__, bits, 256);                                                                                      \
        break;

#define ELUTQ_FOR_BITS(matrix, function, ...)                                                                                  \
    switch ((matrix)->bits) {                                                                                                  \
    case 1:                                                                                                                    \
        function(__VA_ARGS__, 1);                                                                                              \
        break;                                                                                                                 \
    case 2:                                                                                                                    \
        function(__VA_ARGS__, 2);                                                                                              \
        break;                                                                                                                 \
    case 3:                                                                                                                    \
        function(__VA_ARGS__, 3);                                                                                              \
        break;                                                                                                                 \
    case 4:                                                                                                                    \
        function(__VA_ARGS__, 4);                                                                                              \
        break;                                                                                                                 \
    }

#endif
