/* Every float kernel of a set against the scalar one, bit for bit: products in fp16, one by one, and with the cache. */
#ifndef FLOAT_CHECKS_H
#define FLOAT_CHECKS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "cache_row.h"
#include "checking.h"
#include "guarded_inputs.h"
#include "half.h"
#include "hlq_block.h"
#include "kernel_sets.h"

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
        elutq_kernels_scalar.gemm_f16(&matrix, x, n_columns, n_tokens, elutq_chunk_part(&matrix, chunk), expected);
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
        const struct elutq_kernels *set = &elutq_kernels_scalar;                                                               \
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
        elutq_kernels_scalar.cache[ELUTQ_CACHE_F16].store(x, CHUNK, expected);
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
        elutq_kernels_scalar.cache[type].store(x, head_dim, expected + row * row_bytes);
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

static void check_float_kernels(const struct elutq_kernels *kernels) {
    static const uint32_t LENGTHS[] = {1, 2, 15, 16, 17, 34, 64, 100};
    static const uint32_t F16[][3] = {{1, 1, 1}, {5, 16, 4}, {7, 40, 7}, {259, 40, 3}, {20, 192, 9}};
    static const uint32_t ATTEND[][5] = {{1, 1, 1, 8, 0},     {1, 3, 16, 20, 0},  {1, 3, 16, 20, 13}, {4, 1, 37, 64, 0},
                                         {3, 4, 50, 128, 49}, {2, 3, 257, 20, 0}, {2, 3, 257, 20, 5}};
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

#endif
