/*
 * Holds every kernel set that this build has and this CPU runs against the scalar one, bit for bit, on random inputs that
 * end at guard pages. The tests in test_*_kernels.py check more; this program needs no Python, so that it runs under an
 * emulator of another architecture.
 *
 *     kernels_check [SEED [NAME...]]    NAMEs: the sets that must run here, best first; any others are an error
 *
 * Prints one line a set and exits 0, or prints the mismatches and exits 1. The scalar set's line ends with a number for all
 * the bits of its inputs and results: with one seed the same on every machine, by every compiler.
 */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checking.h"
#include "float_checks.h"
#include "guarded_inputs.h"
#include "half.h"
#include "hlq_block.h"
#include "kernel_sets.h"

static const struct elutq_kernels *const SCALAR = &elutq_kernels_scalar;

/* ---- random matrices ---- */

/* What a matrix is but for its rows. */
struct form {
    uint32_t kind, bits, group_size;
};

static const uint32_t KINDS[] = {
    0,
    ELUTQ_KIND_BYTES,
    ELUTQ_KIND_EVEN,
    ELUTQ_KIND_EVEN | ELUTQ_KIND_BYTES,
    ELUTQ_KIND_EVEN | ELUTQ_KIND_CENTERS,
    ELUTQ_KIND_EVEN | ELUTQ_KIND_BYTES | ELUTQ_KIND_CENTERS,
};

/* Half scales, and of free16 centers, that a sound matrix may have, where they are fp16. */
static void random_scales(const struct elutq_block *block) {
    const uint32_t n_half_scales = block->kind & ELUTQ_KIND_EVEN ? 1 : block->bits, n = n_half_scales + (block->kind == 0);
    for (uint32_t j = 0; j < n * ELUTQ_TILE_ROWS; j++) {
        const bool is_center = j >= n_half_scales * ELUTQ_TILE_ROWS, is_zero = random_bits() % 16 == 0;
        const float value = is_zero ? 0 : is_center ? random_float(-0.01f, 0.01f) : random_float(0, 0.02f);
        const uint16_t half = elutq_float_to_half(value);
        memcpy((uint8_t *)block->scales + 2 * j, &half, sizeof half);
    }
}

static struct elutq_matrix random_matrix(uint32_t n_rows, uint32_t n_groups, struct form form) {
    struct elutq_matrix matrix = {
        .n_rows = n_rows,
        .n_columns = n_groups * form.group_size,
        .bits = form.bits,
        .group_size = form.group_size,
        .kind = form.kind,
    };
    matrix.exponent = form.kind & ELUTQ_KIND_BYTES ? random_bits() % 8 : 0;
    matrix.center = (int32_t)(random_bits() % 17) - 8;
    const size_t n_bytes = (size_t)elutq_matrix_tiles(&matrix) * n_groups * elutq_matrix_block_bytes(&matrix);
    uint8_t *data = guarded(n_bytes);
    for (size_t i = 0; i < n_bytes; i++)
        data[i] = (uint8_t)random_bits();
    matrix.data = data;
    for (uint32_t tile = 0; tile < elutq_matrix_tiles(&matrix) && !(form.kind & ELUTQ_KIND_BYTES); tile++)
        for (uint32_t group = 0; group < n_groups; group++) {
            const struct elutq_block block = elutq_block_at(&matrix, tile, group);
            random_scales(&block);
        }
    return matrix;
}

/* Tiles of one superblock, from `tile` on: as often as not all that are left of it, so that most are looked at both ways. */
static struct elutq_part random_part(const struct elutq_matrix *matrix, uint32_t tile) {
    const uint32_t left = elutq_matrix_tiles(matrix) - tile, within = ELUTQ_SUPERBLOCK_TILES - tile % ELUTQ_SUPERBLOCK_TILES;
    const uint32_t most = left < within ? left : within;
    return (struct elutq_part){tile, random_bits() % 2 ? most : 1 + random_bits() % most};
}

/* ---- products with HLQ matrices ---- */

static struct elutq_tables tables_of(const struct elutq_kernels *kernels, const float *x, const struct elutq_matrix *matrix) {
    const uint32_t n_groups = elutq_matrix_groups(matrix);
    struct elutq_tables tables = {
        .entries = guarded((size_t)matrix->n_columns / ELUTQ_CELL_COLUMNS * 16),
        .multipliers = guarded(matrix->n_columns / ELUTQ_CELL_COLUMNS),
        .scales = guarded(n_groups * sizeof(float)),
        .sums = guarded(n_groups * sizeof(float)),
    };
    kernels->build_tables(x, matrix->group_size, 0, 1, &tables);
    kernels->build_tables(x, matrix->group_size, 1, n_groups, &tables);
    return tables;
}

/* y[chunks][256] of one token. */
static float *gemv(const struct elutq_kernels *kernels, const struct elutq_matrix *matrix, const float *x) {
    const struct elutq_tables tables = tables_of(kernels, x, matrix);
    const uint32_t n_rows = elutq_matrix_tiles(matrix) * ELUTQ_TILE_ROWS;
    float *y = guarded(n_rows * sizeof *y);
    for (uint32_t chunk = 0; chunk < elutq_matrix_chunks(matrix); chunk++)
        kernels->gemv(matrix, &tables, elutq_chunk_part(matrix, chunk), y + (size_t)chunk * ELUTQ_CHUNK_ROWS);
    return y;
}

static void check_gemv(const struct elutq_kernels *kernels, uint32_t n_rows, struct form form) {
    struct elutq_matrix matrix = random_matrix(n_rows, 3, form);
    float *x = random_activations(matrix.n_columns, 1);
    for (uint32_t i = 0; i < form.group_size / 2; i++)
        x[i] *= 100;
    x[0] = 50; /* large enough that its sign shows in every table entry */
    const float *expected = gemv(SCALAR, &matrix, x), *found = gemv(kernels, &matrix, x);
    for (uint32_t row = 0; row < elutq_matrix_tiles(&matrix) * ELUTQ_TILE_ROWS; row++)
        check(memcmp(&expected[row], &found[row], sizeof *found) == 0,
              "%s gemv %u rows, kind %u, %u bits, group size %u: row %u is %a, scalar has %a", kernels->name, n_rows, form.kind,
              form.bits, form.group_size,
              row, found[row], expected[row]);

    /* One bit of one plane changes its row and no other: the comparison above is not one of zeros with zeros. */
    const uint32_t row = random_bits() % n_rows, in_tile = row % ELUTQ_TILE_ROWS;
    const struct elutq_block block = elutq_block_at(&matrix, row / ELUTQ_TILE_ROWS, 0);
    const uint16_t one = elutq_float_to_half(1);
    if (form.kind & ELUTQ_KIND_BYTES)
        ((uint8_t *)block.scales)[in_tile] = 0xFF;
    else
        memcpy((uint8_t *)block.scales + 2 * in_tile, &one, sizeof one);
    const float *before = gemv(kernels, &matrix, x);
    ((uint8_t *)block.planes)[elutq_cell_byte(in_tile)] ^= (uint8_t)(1u << elutq_cell_shift(in_tile));
    const float *after = gemv(kernels, &matrix, x);
    for (uint32_t i = 0; i < n_rows; i++)
        check((before[i] != after[i]) == (i == row),
              "%s gemv %u rows, kind %u, %u bits, group size %u: row %u after row %u changed", kernels->name,
              n_rows, form.kind, form.bits, form.group_size, i, row);
    free_guarded();
}

/* Parts of a superblock give what all of it gives. */
static void check_parts(const struct elutq_kernels *kernels, uint32_t n_rows, struct form form) {
    struct elutq_matrix matrix = random_matrix(n_rows, 3, form);
    const float *x = random_floats(matrix.n_columns, 2), *whole = gemv(kernels, &matrix, x);
    const struct elutq_tables tables = tables_of(kernels, x, &matrix);
    for (uint32_t tile = 0, n; tile < elutq_matrix_tiles(&matrix); tile += n) {
        const struct elutq_part part = random_part(&matrix, tile);
        n = part.n_tiles;
        float *y = guarded(n * ELUTQ_TILE_ROWS * sizeof *y);
        kernels->gemv(&matrix, &tables, part, y);
        check(memcmp(y, whole + tile * ELUTQ_TILE_ROWS, n * ELUTQ_TILE_ROWS * sizeof *y) == 0,
              "%s gemv %u rows, kind %u, %u bits, group size %u: tiles %u to %u", kernels->name, n_rows, form.kind, form.bits,
              form.group_size, tile, tile + n);
    }
    free_guarded();
}

/* A batch of tokens gets what gemv gives each, from parts of superblocks as from all of them. */
static void check_gemm_tables(const struct elutq_kernels *kernels, uint32_t n_rows, struct form form) {
    enum { N_TOKENS = 11 }; /* whole batches of every set, and some over */
    struct elutq_matrix matrix = random_matrix(n_rows, 3, form);
    struct elutq_tables tables[N_TOKENS];
    const float *x = random_floats((size_t)N_TOKENS * matrix.n_columns, 2), *expected[N_TOKENS];
    for (uint32_t token = 0; token < N_TOKENS; token++) {
        tables[token] = tables_of(kernels, x + (size_t)token * matrix.n_columns, &matrix);
        expected[token] = gemv(SCALAR, &matrix, x + (size_t)token * matrix.n_columns);
    }
    for (uint32_t tile = 0, n; tile < elutq_matrix_tiles(&matrix); tile += n) {
        const struct elutq_part part = random_part(&matrix, tile);
        n = part.n_tiles;
        const uint32_t rows = n * ELUTQ_TILE_ROWS, n_tokens = 1 + random_bits() % N_TOKENS;
        float *y = guarded(((n_tokens - 1) * ELUTQ_CHUNK_STRIDE + rows) * sizeof *y);
        kernels->gemm_tables(&matrix, tables, n_tokens, part, y);
        for (uint32_t token = 0; token < n_tokens; token++)
            check(memcmp(y + token * ELUTQ_CHUNK_STRIDE, expected[token] + tile * ELUTQ_TILE_ROWS, rows * sizeof *y) == 0,
                  "%s gemm_tables %u rows, kind %u, %u bits, group size %u: tiles %u to %u of token %u of %u are not gemv's",
                  kernels->name, n_rows, form.kind, form.bits, form.group_size, tile, tile + n, token, n_tokens);
    }
    free_guarded();
}

/* y[chunks][n_tokens][ELUTQ_CHUNK_STRIDE], by parts of superblocks. */
static float *gemm_levels(const struct elutq_kernels *kernels, const struct elutq_matrix *matrix, const float *x,
                          uint32_t n_tokens) {
    const size_t padded = (n_tokens + ELUTQ_LEVELS_TOKENS - 1) / ELUTQ_LEVELS_TOKENS * ELUTQ_LEVELS_TOKENS;
    const uint32_t n_groups = elutq_matrix_groups(matrix);
    const size_t n_scales = padded * n_groups, n_chunks = elutq_matrix_chunks(matrix);
    struct elutq_levels levels = {
        .values = guarded(padded * matrix->n_columns),
        .high = guarded(padded * matrix->n_columns),
        .high_cells = guarded(n_scales * sizeof(uint64_t)),
        .scales = guarded(n_scales * sizeof(float)),
        .sums = guarded(n_scales * sizeof(float)),
        .biases = guarded(n_scales * sizeof(int32_t)),
    };
    const float *others = random_activations(matrix->n_columns, 2); /* what is left of them changes nothing */
    for (uint32_t token = 0; token < padded; token++)
        kernels->build_levels(others, matrix->n_columns, matrix->group_size, token, 0, n_groups, &levels);
    for (uint32_t token = 0; token < n_tokens; token++)
        for (uint32_t first = 0, end; first < n_groups; first = end) { /* in parts, as threads do */
            end = first + 1 + token % 3 < n_groups ? first + 1 + token % 3 : n_groups;
            kernels->build_levels(x + (size_t)token * matrix->n_columns, matrix->n_columns, matrix->group_size, token, first,
                                  end, &levels);
        }
    const size_t chunk_floats = (size_t)n_tokens * ELUTQ_CHUNK_STRIDE;
    float *y = guarded(n_chunks * chunk_floats * sizeof *y);
    memset(y, 0, n_chunks * chunk_floats * sizeof *y);
    for (uint32_t tile = 0, n; tile < elutq_matrix_tiles(matrix); tile += n) {
        const struct elutq_part part = random_part(matrix, tile);
        n = part.n_tiles;
        kernels->gemm_levels(matrix, &levels, n_tokens, part,
                             y + tile / ELUTQ_SUPERBLOCK_TILES * chunk_floats +
                                 tile % ELUTQ_SUPERBLOCK_TILES * ELUTQ_TILE_ROWS);
    }
    return y;
}

static void check_gemm_levels(const struct elutq_kernels *kernels, uint32_t n_rows, struct form form) {
    static const uint32_t TOKENS[] = {1, 4, 8, 13};
    for (size_t i = 0; i < COUNT(TOKENS); i++) {
        const uint32_t n_tokens = TOKENS[i];
        struct elutq_matrix matrix = random_matrix(n_rows, 3, form);
        const float *x = random_activations((size_t)n_tokens * matrix.n_columns, 2);
        const float *expected = gemm_levels(SCALAR, &matrix, x, n_tokens), *found = gemm_levels(kernels, &matrix, x, n_tokens);
        const size_t n = (size_t)n_tokens * ELUTQ_CHUNK_STRIDE * elutq_matrix_chunks(&matrix);
        for (size_t at = 0; at < n; at++)
            check(memcmp(&expected[at], &found[at], sizeof *found) == 0,
                  "%s gemm_levels %u rows, kind %u, %u bits, group size %u, %u tokens: y[%zu] is %a, scalar has %a",
                  kernels->name, n_rows, form.kind, form.bits, form.group_size, n_tokens, at, found[at], expected[at]);
        free_guarded();
    }
}

/* ---- ---- */

static void check_set(const struct elutq_kernels *kernels) {
    static const uint32_t ROWS[] = {1, 31, 33, 64, 256, 300};
    for (uint32_t bits = ELUTQ_HLQ_MIN_BITS; bits <= ELUTQ_HLQ_MAX_BITS; bits++)
        for (uint32_t group_size = 32; group_size <= ELUTQ_HLQ_MAX_GROUP_SIZE; group_size *= 2)
            for (size_t i = 0; i < COUNT(ROWS) + COUNT(KINDS) - 1; i++) { /* all rows of free16, then the other kinds */
                const bool other = i >= COUNT(ROWS);
                const struct form form = {KINDS[other ? i - COUNT(ROWS) + 1 : 0], bits, group_size};
                const uint32_t n_rows = other ? 289 : ROWS[i];
                check_gemv(kernels, n_rows, form);
                check_gemm_tables(kernels, n_rows, form);
                check_parts(kernels, n_rows, form);
                if (kernels->gemm_levels != NULL)
                    check_gemm_levels(kernels, n_rows, form);
            }
    check_float_kernels(kernels);
}

int main(int n_arguments, char **arguments) {
    const uint64_t seed = n_arguments > 1 ? strtoull(arguments[1], NULL, 10) : 1;
    int n_run = 0;
    for (unsigned i = 0; elutq_kernels_at(i) != NULL; i++) {
        const struct elutq_kernels *kernels = elutq_kernels_at(i);
        if (!elutq_kernels_supported(kernels))
            continue;
        if (n_arguments > 2)
            check(2 + n_run < n_arguments && strcmp(arguments[2 + n_run], kernels->name) == 0,
                  "%s runs here, which was not expected at this place", kernels->name);
        n_run++;
        const unsigned checks_before = n_checks, failures_before = n_failures;
        random_state = seed * 0x9E3779B97F4A7C15ull + 1;
        digest_of_freed = 0;
        check_set(kernels);
        printf("%-14s %u checks, %u mismatches, seed %" PRIu64, kernels->name, n_checks - checks_before,
               n_failures - failures_before, seed);
        if (kernels == SCALAR)
            printf(", bits %016" PRIx64, digest_of_freed);
        printf("\n");
    }
    if (n_arguments > 2)
        check(n_run == n_arguments - 2, "%d kernel sets run here, %d were expected", n_run, n_arguments - 2);
    return n_failures == 0 ? 0 : 1;
}
