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
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cache_row.h"
#include "compiler.h"
#include "guarded_inputs.h"
#include "half.h"
#include "hlq_block.h"
#include "kernel_sets.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static const struct elutq_kernels *const SCALAR = &elutq_kernels_scalar;

/* ---- what went wrong ---- */

static unsigned n_checks, n_mismatches;

ELUTQ_FORMAT(2, 3) static void check(bool right, const char *format, ...) {
    n_checks++;
    if (right || ++n_mismatches > 20)
        return;
    va_list arguments;
    va_start(arguments, format);
    printf("MISMATCH ");
    vprintf(format, arguments);
    printf("\n");
    va_end(arguments);
}

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

/* ---- the float kernels ---- */

static void check_floats(const char *set, const char *kernel, const float *found, const float *expected, size_t n) {
    for (size_t i = 0; i < n; i++)
        check(memcmp(&found[i], &expected[i], sizeof *found) == 0, "%s %s, n = %zu: [%zu] is %a, scalar has %a", set, kernel, n,
              i, found[i], expected[i]);
}

static void check_gemm_f16(const struct elutq_kernels *kernels, uint32_t n_rows, uint32_t n_columns, uint32_t n_tokens) {
    struct elutq_matrix matrix = {.n_rows = n_rows, .n_columns = n_columns, .bits = 16};
    matrix.data = (const uint8_t *)random_halves((size_t)n_rows * n_columns, -2, 2);
    const float *x = random_floats((size_t)n_tokens * n_columns, 1);
    for (uint32_t chunk = 0; chunk < elutq_matrix_chunks(&matrix); chunk++) {
        const uint32_t left = n_rows - chunk * ELUTQ_CHUNK_ROWS, rows = left < ELUTQ_CHUNK_ROWS ? left : ELUTQ_CHUNK_ROWS;
        const size_t n = (size_t)(n_tokens - 1) * ELUTQ_CHUNK_STRIDE + rows;
        float *expected = guarded(n * sizeof *expected), *found = guarded(n * sizeof *found);
        SCALAR->gemm_f16(&matrix, x, n_columns, n_tokens, elutq_chunk_part(&matrix, chunk), expected);
        kernels->gemm_f16(&matrix, x, n_columns, n_tokens, elutq_chunk_part(&matrix, chunk), found);
        for (size_t i = 0; i < n; i++)
            if (i % ELUTQ_CHUNK_STRIDE < rows)
                check(memcmp(&found[i], &expected[i], sizeof *found) == 0,
                      "%s gemm_f16 %u x %u, %u tokens: [%zu] is %a, scalar has %a",
                      kernels->name, n_rows, n_columns, n_tokens, i, found[i], expected[i]);
    }
    free_guarded();
}

/* Runs one statement with kernels `set` = scalar into `expected`, then with the set under test into `found`. */
#define COMPARE(kernel, n_results, statement)                                                                                  \
    do {                                                                                                                       \
        const size_t n_floats = (n_results);                                                                                   \
        float *expected = guarded(n_floats * sizeof *expected), *found = guarded(n_floats * sizeof *found), *y = expected;     \
        const struct elutq_kernels *set = SCALAR;                                                                              \
        memset(expected, 0, n_floats * sizeof *expected);                                                                      \
        memset(found, 0, n_floats * sizeof *found);                                                                            \
        statement;                                                                                                             \
        set = kernels, y = found;                                                                                              \
        statement;                                                                                                             \
        check_floats(kernels->name, kernel, found, expected, n_floats);                                                        \
    } while (0)

static void check_elementwise(const struct elutq_kernels *kernels, uint32_t n) {
    const float *a = random_floats(n, 3), *b = random_floats(n, 200), *c = random_floats(n, 1), *d = random_floats(n, 1);
    COMPARE("rms_scale", 1, y[0] = set->rms_scale(a, n, 1e-5f));
    COMPARE("scale_by", n, set->scale_by(a, 0.7f, b, n, y));
    COMPARE("swiglu", n, set->swiglu(b, a, n, y));
    COMPARE("geglu", n, set->geglu(b, a, n, y));
    COMPARE("soften", n, (memcpy(y, b, n * sizeof *y), set->soften(y, n, 30)));
    COMPARE("add", n, (memcpy(y, a, n * sizeof *y), set->add(b, n, y)));
    COMPARE("add_scaled", n, (memcpy(y, a, n * sizeof *y), set->add_scaled(b, 0.3f, n, y)));
    const float *weights = random_floats(5 * (size_t)n, 1); /* more than are multiplied side by side */
    COMPARE("multiply_floats", 5, set->multiply_floats(weights, a, 5, n, y));
    if (n % 2 == 0)
        COMPARE("rope", n, (memcpy(y, a, n * sizeof *y), set->rope(y, c, d, n)));
    free_guarded();
}

/* Every half, the floats next to it and between it and the next, and what is too large, too small and not a number. */
static void check_store_f16(const struct elutq_kernels *kernels) {
    enum { CHUNK = 63 };
    float x[CHUNK];
    uint16_t expected[CHUNK], found[CHUNK];
    for (uint32_t half = 0; half < 65536; half += CHUNK / 3) {
        for (uint32_t i = 0; i < CHUNK / 3; i++) {
            float value = elutq_half_to_float((uint16_t)(half + i)), next = elutq_half_to_float((uint16_t)(half + i + 1));
            x[3 * i] = value;
            x[3 * i + 1] = nextafterf(value, INFINITY);
            x[3 * i + 2] = i % 2 ? value / 2 + next / 2 : value * 0x1p14f;
        }
        SCALAR->cache[ELUTQ_CACHE_F16].store(x, CHUNK, expected);
        kernels->cache[ELUTQ_CACHE_F16].store(x, CHUNK, found);
        for (uint32_t i = 0; i < CHUNK; i++)
            check(found[i] == expected[i], "%s fp16 of %a is %04x, scalar has %04x", kernels->name, x[i], found[i],
                  expected[i]);
    }
}

/* Random rows of the cache, stored by these kernels and by the scalar ones. */
static const uint8_t *random_rows(const struct elutq_kernels *kernels, enum elutq_cache_type type, uint32_t n_rows,
                                  uint32_t head_dim) {
    const size_t row_bytes = elutq_cache_row_bytes(type, head_dim);
    uint8_t *expected = guarded(n_rows * row_bytes), *found = guarded(n_rows * row_bytes);
    for (uint32_t row = 0; row < n_rows; row++) {
        const float *x = random_floats(head_dim, row == 0 ? 0 : random_float(0.1f, 3));
        SCALAR->cache[type].store(x, head_dim, expected + row * row_bytes);
        kernels->cache[type].store(x, head_dim, found + row * row_bytes);
        check(memcmp(expected + row * row_bytes, found + row * row_bytes, row_bytes) == 0,
              "%s store, cache type %d, head of %u: not scalar's bytes", kernels->name, (int)type, head_dim);
    }
    return found;
}

/* The keys begin at row `first` of as many rows, so some of them lie before it. */
static void check_attend(const struct elutq_kernels *kernels, enum elutq_cache_type type, uint32_t n_tokens,
                         uint32_t n_queries, uint32_t n_keys, uint32_t head_dim, uint32_t first) {
    const size_t n_rows = (size_t)n_tokens * n_queries;
    const float *queries = random_floats(n_rows * head_dim, 2);
    const uint8_t *keys = random_rows(kernels, type, n_keys, head_dim), *values = random_rows(kernels, type, n_keys, head_dim);
    const struct elutq_ring ring = {keys, values, n_keys, first, n_keys};
    float *scores = guarded(n_rows * ELUTQ_ATTEND_STRIDE * sizeof *scores);
    struct elutq_weighing *weighings = guarded(2 * n_rows * sizeof *weighings);
    float *part = guarded(n_rows * head_dim * sizeof *part);
    COMPARE("attend", n_rows * head_dim, {
        set->cache[type].attend(queries, n_tokens, n_queries, &ring, 0, head_dim, 0.2f, 0, scores, weighings, y);
        if (n_keys > ELUTQ_ATTEND_KEYS) {
            set->cache[type].attend(queries, n_tokens, n_queries, &ring, 1, head_dim, 0.2f, 0, scores, weighings + n_rows,
                                    part);
            set->join_parts(weighings + n_rows, part, (uint32_t)n_rows, head_dim, weighings, y);
        }
        set->finish_parts(weighings, (uint32_t)n_rows, head_dim, y);
    });
    free_guarded();
}

/* ---- ---- */

static void check_set(const struct elutq_kernels *kernels) {
    static const uint32_t ROWS[] = {1, 31, 33, 64, 256, 300}, LENGTHS[] = {1, 2, 15, 16, 17, 34, 64, 100};
    static const uint32_t F16[][3] = {{1, 1, 1}, {5, 16, 4}, {7, 40, 7}, {259, 40, 3}, {20, 192, 9}};
    static const uint32_t ATTEND[][5] = {{1, 1, 1, 8, 0},     {1, 3, 16, 20, 0},   {1, 3, 16, 20, 13}, {4, 1, 37, 64, 0},
                                         {3, 4, 50, 128, 49}, {2, 3, 257, 20, 0}, {2, 3, 257, 20, 5}};
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
    for (size_t i = 0; i < COUNT(F16); i++)
        check_gemm_f16(kernels, F16[i][0], F16[i][1], F16[i][2]);
    for (size_t i = 0; i < COUNT(LENGTHS); i++)
        check_elementwise(kernels, LENGTHS[i]);
    for (size_t i = 0; i < COUNT(ATTEND); i++) {
        const uint32_t *of = ATTEND[i];
        check_attend(kernels, ELUTQ_CACHE_F16, of[0], of[1], of[2], of[3], of[4]);
        check_attend(kernels, ELUTQ_CACHE_Q8, of[0], of[1], of[2], of[3], of[4]);
    }
    check_store_f16(kernels);
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
        const unsigned checks_before = n_checks, mismatches_before = n_mismatches;
        random_state = seed * 0x9E3779B97F4A7C15ull + 1;
        digest_of_freed = 0;
        check_set(kernels);
        printf("%-14s %u checks, %u mismatches, seed %" PRIu64, kernels->name, n_checks - checks_before,
               n_mismatches - mismatches_before, seed);
        if (kernels == SCALAR)
            printf(", bits %016" PRIx64, digest_of_freed);
        printf("\n");
    }
    if (n_arguments > 2)
        check(n_run == n_arguments - 2, "%d kernel sets run here, %d were expected", n_run, n_arguments - 2);
    return n_mismatches == 0 ? 0 : 1;
}
