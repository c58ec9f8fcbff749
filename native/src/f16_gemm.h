/* Products with fp16 matrices. Part of float_kernels.h, which includes it. */
#ifndef ELUTQ_F16_GEMM_H
#define ELUTQ_F16_GEMM_H

/*
 * y[token][row] of n_rows rows and n_tokens tokens, constants. Each dot product is summed in sixteen lanes, in the order of the
 * columns, whatever it is computed beside. Rows that are read side by side are several streams to the hardware: so for a single
 * token, whose time is memory's, the rows that follow are asked for line by line, as the one stream that they are.
 */
INLINE void multiply_f16_tile(const uint16_t *weights, uint32_t n_rows, const float *x, size_t x_stride, uint32_t n_tokens,
                              uint32_t n_columns, float *y) {
    v16 sums[ELUTQ_F16_TILE][ELUTQ_F16_TILE];
    ELUTQ_UNROLL(4)
    for (uint32_t r = 0; r < n_rows; r++)
        ELUTQ_UNROLL(4)
        for (uint32_t t = 0; t < n_tokens; t++)
            sums[r][t] = v16_set1(0);
    const uintptr_t following = (uintptr_t)(weights + (size_t)n_rows * n_columns);
    for (uint32_t i = 0; i < n_columns; i += 16) {
        const uint32_t left = n_columns - i;
        v16 w[ELUTQ_F16_TILE];
        for (uint32_t line = 0; n_tokens == 1 && line < n_rows; line += ELUTQ_LINE_BYTES / 32)
            ELUTQ_PREFETCH((const char *)(following + (size_t)n_rows * i * sizeof *weights + 32 * line), 2);
        ELUTQ_UNROLL(4)
        for (uint32_t r = 0; r < n_rows; r++) {
            const uint16_t *at = weights + (size_t)r * n_columns + i;
            w[r] = left >= 16 ? v16_load_half(at) : load_stored_first(at, ELUTQ_CACHE_F16, 0, left);
        }
        ELUTQ_UNROLL(4)
        for (uint32_t t = 0; t < n_tokens; t++) {
            v16 xt = left >= 16 ? v16_load(x + t * x_stride + i) : load_first(x + t * x_stride + i, left);
            ELUTQ_UNROLL(4)
            for (uint32_t r = 0; r < n_rows; r++)
                sums[r][t] = v16_fma(w[r], xt, sums[r][t]);
        }
    }
    ELUTQ_UNROLL(4)
    for (uint32_t t = 0; t < n_tokens; t++)
        ELUTQ_UNROLL(4)
        for (uint32_t r = 0; r < n_rows; r++)
            y[(size_t)t * ELUTQ_CHUNK_STRIDE + r] = v16_sum(sums[r][t]);
}

KERNEL void gemm_f16(const struct elutq_matrix *matrix, const float *x, size_t x_stride, uint32_t n_tokens,
                     struct elutq_part part, float *y) {
    const uint32_t first = part.tile * ELUTQ_TILE_ROWS, left = matrix->n_rows - first, n_columns = matrix->n_columns;
    const uint32_t n_rows = left < part.n_tiles * ELUTQ_TILE_ROWS ? left : part.n_tiles * ELUTQ_TILE_ROWS;
    const uint16_t *weights = (const uint16_t *)matrix->data + (size_t)first * n_columns;
    const uint32_t tiled_rows = n_rows - n_rows % ELUTQ_F16_TILE, tiled_tokens = n_tokens - n_tokens % ELUTQ_F16_TILE;
    for (uint32_t row = 0; row < n_rows; row += row < tiled_rows ? ELUTQ_F16_TILE : 1) {
        const uint16_t *rows = weights + (size_t)row * n_columns;
        for (uint32_t token = 0; token < n_tokens; token += row < tiled_rows && token < tiled_tokens ? ELUTQ_F16_TILE : 1) {
            const float *xs = x + token * x_stride;
            float *results = y + (size_t)token * ELUTQ_CHUNK_STRIDE + row;
            if (row >= tiled_rows)
                multiply_f16_tile(rows, 1, xs, x_stride, 1, n_columns, results);
            else if (token >= tiled_tokens)
                multiply_f16_tile(rows, ELUTQ_F16_TILE, xs, x_stride, 1, n_columns, results);
            else
                multiply_f16_tile(rows, ELUTQ_F16_TILE, xs, x_stride, ELUTQ_F16_TILE, n_columns, results);
        }
    }
}

#endif
