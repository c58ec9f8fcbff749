/*
 * Lays a quantized matrix out as the blocks of a model file; pack of formats/elutq_formats/hlq.py is the twin that
 * defines it, elutq_format.h shows a block.
 */
#include "elutq_quantize.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#include "hlq_block.h"
#include "threads.h"

#define SUPERBLOCK_ROWS (ELUTQ_SUPERBLOCK_TILES * ELUTQ_TILE_ROWS)

struct pack_task {
    elutq_pool *pool;
    size_t n_rows, n_groups;
    unsigned bits, group_size, kind;
    const uint8_t *half_scales, *centers, *codes;
    uint8_t *blocks;
    atomic_bool unsound; /* a code is */
};

/*
 * Numbers [n_rows][n_groups][n] of `width` bytes, of one group, as [n][32]; rows past the matrix are zero. Returns where the
 * next go.
 */
static uint8_t *pack_numbers(const struct pack_task *task, size_t first_row, unsigned n_rows, size_t group,
                             const uint8_t *numbers, unsigned n, unsigned width, uint8_t *to) {
    memset(to, 0, (size_t)n * ELUTQ_TILE_ROWS * width);
    for (unsigned row = 0; row < n_rows; row++) {
        const size_t place = (first_row + row) * task->n_groups + group;
        for (unsigned i = 0; i < n; i++)
            memcpy(to + (i * ELUTQ_TILE_ROWS + row) * width, numbers + (place * n + i) * width, width);
    }
    return to + (size_t)n * ELUTQ_TILE_ROWS * width;
}

/* Half scales, then centers where groups have their own. Returns where the planes go. */
static uint8_t *pack_scales(const struct pack_task *task, size_t first_row, unsigned n_rows, size_t group, uint8_t *block) {
    const unsigned width = task->kind & ELUTQ_KIND_BYTES ? 1 : 2;
    const bool even = (task->kind & ELUTQ_KIND_EVEN) != 0;
    block = pack_numbers(task, first_row, n_rows, group, task->half_scales, even ? 1 : task->bits, width, block);
    if (even && !(task->kind & ELUTQ_KIND_CENTERS))
        return block;
    return pack_numbers(task, first_row, n_rows, group, task->centers, 1, even ? 1 : width, block);
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
    const size_t block_bytes = elutq_block_bytes(task->kind, task->bits, task->group_size);
    (void)n_threads;
    while (elutq_pool_take(task->pool, thread, n_items, &item)) {
        size_t first = (size_t)item * SUPERBLOCK_ROWS, left = task->n_rows - first;
        unsigned n_rows = left < SUPERBLOCK_ROWS ? (unsigned)left : SUPERBLOCK_ROWS;
        uint8_t *block = task->blocks + first / ELUTQ_TILE_ROWS * task->n_groups * block_bytes;
        for (size_t group = 0; group < task->n_groups; group++) {
            for (unsigned tile = 0; tile < n_rows; tile += ELUTQ_TILE_ROWS, block += block_bytes) {
                unsigned n_tile_rows = n_rows - tile < ELUTQ_TILE_ROWS ? n_rows - tile : ELUTQ_TILE_ROWS;
                uint8_t *planes = pack_scales(task, first + tile, n_tile_rows, group, block);
                uint32_t seen = pack_planes(task, first + tile, n_tile_rows, group, planes);
                if (seen & ~(0x01010101u * ((1u << task->bits) - 1)))
                    task->unsound = true;
            }
        }
    }
}

int elutq_pack(elutq_pool *pool, size_t n_rows, size_t n_columns, unsigned bits, unsigned group_size, unsigned kind,
               const uint8_t *half_scales, const uint8_t *centers, const uint8_t *codes, uint8_t *blocks) {
    if (bits < ELUTQ_HLQ_MIN_BITS || bits > ELUTQ_HLQ_MAX_BITS || group_size == 0 || group_size > ELUTQ_HLQ_MAX_GROUP_SIZE ||
        group_size % ELUTQ_CELL_COLUMNS != 0 || n_columns % group_size != 0 || n_rows > UINT32_MAX ||
        !elutq_is_kind(kind))
        return ELUTQ_ERROR_ARGUMENT;
    struct pack_task task = {
        .pool = pool,
        .n_rows = n_rows,
        .n_groups = n_columns / group_size,
        .bits = bits,
        .group_size = group_size,
        .kind = kind,
        .half_scales = half_scales,
        .centers = centers,
        .codes = codes,
        .blocks = blocks,
    };
    const int status = elutq_pool_run(pool, pack_superblocks, &task);
    return task.unsound ? ELUTQ_ERROR_ARGUMENT : status;
}
