/*
 * Lays a quantized matrix out as the blocks of a model file; pack of formats/elutq_formats/hlq.py is the twin that
 * defines it, elutq_format.h shows a block.
 */
#include "elutq_quantize.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#include "elutq_format.h"
#include "threads.h"

#define SUPERBLOCK_ROWS (ELUTQ_SUPERBLOCK_TILES * ELUTQ_TILE_ROWS)

struct pack_task {
    elutq_pool *pool;
    size_t n_rows, n_groups;
    unsigned bits, group_size;
    const uint16_t *half_scales, *centers;
    const uint8_t *codes;
    uint8_t *blocks;
    atomic_bool unsound; /* a scale or a code is */
};

static bool is_finite_half(uint16_t half) {
    return (half & 0x7c00) != 0x7c00;
}

/* half_scales [bits][32], then centers [32]; rows past the matrix are zero. Returns whether all are sound. */
static bool pack_scales(const struct pack_task *task, size_t first_row, unsigned n_rows, size_t group, uint16_t *header) {
    unsigned bits = task->bits;
    bool sound = true;
    memset(header, 0, (bits + 1) * ELUTQ_TILE_ROWS * sizeof *header);
    for (unsigned row = 0; row < n_rows; row++) {
        size_t place = (first_row + row) * task->n_groups + group;
        for (unsigned plane = 0; plane < bits; plane++) {
            uint16_t half_scale = task->half_scales[place * bits + plane];
            sound = sound && is_finite_half(half_scale) && (half_scale <= 0x8000); /* -0 is 0 */
            header[plane * ELUTQ_TILE_ROWS + row] = half_scale;
        }
        sound = sound && is_finite_half(task->centers[place]);
        header[bits * ELUTQ_TILE_ROWS + row] = task->centers[place];
    }
    return sound;
}

/* The lowest bits of four bytes, the first byte's lowest: one product brings them together. */
static inline uint8_t gather_bits(uint32_t four) {
    return (uint8_t)((four & 0x01010101u) * 0x01020408u >> 24 & 15);
}

/* The cells of one block; returns the union of its codes. */
static uint32_t pack_planes(const struct pack_task *task, size_t first_row, unsigned n_rows, size_t group, uint8_t *planes) {
    const size_t n_columns = task->n_groups * task->group_size;
    const unsigned n_cells = task->group_size / ELUTQ_CELL_COLUMNS;
    uint32_t seen = 0;
    memset(planes, 0, (size_t)task->bits * n_cells * ELUTQ_CELL_BYTES);
    for (unsigned row = 0; row < n_rows; row++) {
        const uint8_t *codes = task->codes + (first_row + row) * n_columns + group * task->group_size;
        uint8_t *byte = planes + 2 * (row % 8) + row / 8 % 2; /* row 16h + 8o + p: nibble h of byte 2p + o */
        for (unsigned cell = 0; cell < n_cells; cell++) {
            uint32_t four;
            memcpy(&four, codes + cell * ELUTQ_CELL_COLUMNS, sizeof four);
            seen |= four;
            for (unsigned plane = 0; plane < task->bits; plane++)
                byte[(plane * n_cells + cell) * ELUTQ_CELL_BYTES] |= (uint8_t)(gather_bits(four >> plane) << 4 * (row / 16));
        }
    }
    return seen;
}

static void pack_superblocks(void *context, unsigned thread, unsigned n_threads) {
    struct pack_task *task = context;
    unsigned n_items = (unsigned)((task->n_rows + SUPERBLOCK_ROWS - 1) / SUPERBLOCK_ROWS), item;
    const size_t header_bytes = (task->bits + 1) * ELUTQ_TILE_ROWS * sizeof(uint16_t);
    const size_t block_bytes = header_bytes + (size_t)task->bits * (task->group_size / ELUTQ_CELL_COLUMNS) * ELUTQ_CELL_BYTES;
    (void)n_threads;
    while (elutq_pool_take(task->pool, thread, n_items, &item)) {
        size_t first = (size_t)item * SUPERBLOCK_ROWS, left = task->n_rows - first;
        unsigned n_rows = left < SUPERBLOCK_ROWS ? (unsigned)left : SUPERBLOCK_ROWS;
        uint8_t *block = task->blocks + first / ELUTQ_TILE_ROWS * task->n_groups * block_bytes;
        for (size_t group = 0; group < task->n_groups; group++) {
            for (unsigned tile = 0; tile < n_rows; tile += ELUTQ_TILE_ROWS, block += block_bytes) {
                unsigned n_tile_rows = n_rows - tile < ELUTQ_TILE_ROWS ? n_rows - tile : ELUTQ_TILE_ROWS;
                bool sound = pack_scales(task, first + tile, n_tile_rows, group, (uint16_t *)block);
                uint32_t seen = pack_planes(task, first + tile, n_tile_rows, group, block + header_bytes);
                if (!sound || (seen & ~(0x01010101u * ((1u << task->bits) - 1))))
                    task->unsound = true;
            }
        }
    }
}

int elutq_pack(elutq_pool *pool, size_t n_rows, size_t n_columns, unsigned bits, unsigned group_size,
               const uint16_t *half_scales, const uint16_t *centers, const uint8_t *codes, uint8_t *blocks) {
    if (bits < ELUTQ_HLQ_MIN_BITS || bits > ELUTQ_HLQ_MAX_BITS || group_size == 0 || group_size > ELUTQ_MAX_GROUP_SIZE ||
        group_size % ELUTQ_CELL_COLUMNS != 0 || n_columns % group_size != 0 || n_rows > UINT32_MAX)
        return ELUTQ_ERROR_ARGUMENT;
    struct pack_task task = {
        .pool = pool,
        .n_rows = n_rows,
        .n_groups = n_columns / group_size,
        .bits = bits,
        .group_size = group_size,
        .half_scales = half_scales,
        .centers = centers,
        .codes = codes,
        .blocks = blocks,
    };
    const int status = elutq_pool_run(pool, pack_superblocks, &task);
    return task.unsound ? ELUTQ_ERROR_ARGUMENT : status;
}
