/* Products with fp16 matrices. Part of float_kernels.h, which includes it. */
#ifndef ELUTQ_F16_GEMM_H
#define ELUTQ_F16_GEMM_H

/* Dot products of ELUTQ_F16_TILE rows with as many tokens, each in sixteen lanes: y[token][row]. */
INLINE void multiply_f16_tile(const uint16_t *weights, const float *x, size_t x_stride, uint32_t n_columns, float *y) {
    v16 sums[ELUTQ_F16_TILE][ELUTQ_F16_TILE];
#pragma GCC unroll 4
    for (uint32_t r = 0; r < ELUTQ_F16_TILE; r++)
#pragma GCC unroll 4
        for (uint32_t t = 0; t < ELUTQ_F16_TILE; t++)
            sums[r][t] = v16_set1(0);
    for (uint32_t i = 0; i < n_columns; i += 16) {
        const uint32_t left = n_columns - i;
        v16 w[ELUTQ_F16_TILE];
#pragma GCC unroll 4
        for (uint32_t r = 0; r < ELUTQ_F16_TILE; r++) {
            const uint16_t *at = weights + (size_t)r * n_columns + i;
            w[r] = left >= 16 ? v16_load_half(at) : load_stored_first(at, ELUTQ_CACHE_F16, 0, left);
        }
#pragma GCC unroll 4
        for (uint32_t t = 0; t < ELUTQ_F16_TILE; t++) {
            v16 xt = left >= 16 ? v16_load(x + t * x_stride + i) : load_first(x + t * x_stride + i, left);
#pragma GCC unroll 4
            for (uint32_t r = 0; r < ELUTQ_F16_TILE; r++)
                sums[r][t] = v16_fma(w[r], xt, sums[r][t]);
        }
    }
#pragma GCC unroll 4
    for (uint32_t t = 0; t < ELUTQ_F16_TILE; t++)
#pragma GCC unroll 4
        for (uint32_t r = 0; r < ELUTQ_F16_TILE; r++)
            y[(size_t)t * ELUTQ_CHUNK_STRIDE + r] = v16_sum(sums[r][t]);
}

KERNEL void gemm_f16(const struct elutq_matrix *matrix, const float *x, size_t x_stride, uint32_t n_tokens, uint32_t chunk,
                     float *y) {
    const uint32_t first = chunk * ELUTQ_CHUNK_ROWS, n_columns = matrix->n_columns;
    const uint32_t n_rows = matrix->n_rows - first < ELUTQ_CHUNK_ROWS ? matrix->n_rows - first : ELUTQ_CHUNK_ROWS;
    const uint16_t *weights = (const uint16_t *)matrix->data + (size_t)first * n_columns;
    const uint32_t tiled_rows = n_rows - n_rows % ELUTQ_F16_TILE, tiled_tokens = n_tokens - n_tokens % ELUTQ_F16_TILE;
    for (uint32_t row = 0; row < tiled_rows; row += ELUTQ_F16_TILE)
        for (uint32_t token = 0; token < tiled_tokens; token += ELUTQ_F16_TILE)
            multiply_f16_tile(weights + (size_t)row * n_columns, x + token * x_stride, x_stride, n_columns,
                              y + (size_t)token * ELUTQ_CHUNK_STRIDE + row);
    for (uint32_t row = 0; row < n_rows; row++)
        for (uint32_t token = row < tiled_rows ? tiled_tokens : 0; token < n_tokens; token++)
            y[(size_t)token * ELUTQ_CHUNK_STRIDE + row] =
                dot_stored(weights + (size_t)row * n_columns, ELUTQ_CACHE_F16, x + token * x_stride, n_columns);
}

#endif
