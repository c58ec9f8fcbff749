/* The kernels in portable C. They define the result; every other set is held against them. */
#include "vec16_scalar.h"

#define ELUTQ_F16_TILE 2
#include "float_kernels.h"
#include "hlq_block.h"
#include "kernel_sets.h"
#include "stream.h"

/*
 * One block: f[row] += c * sum(x) + scale * sum_k h_k * (sum of the table entries that plane k picks,
 * each times its cell's multiplier). The integer sum is exact, at most ELUTQ_MULTIPLIERS times 127: sixteen bits hold it.
 */
INLINE void add_block(const struct elutq_block *block, uint32_t n_cells, const int8_t *entries, const uint8_t *multipliers,
                      float scale, float sum, struct elutq_asking asking, float *f) {
    (void)asking;
    for (uint32_t row = 0; row < ELUTQ_TILE_ROWS; row++) {
        const uint32_t byte = elutq_cell_byte(row), shift = elutq_cell_shift(row);
        float u = 0;
        for (uint32_t k = 0; k < block->bits; k++) {
            const uint8_t *plane = block->planes + (size_t)k * n_cells * ELUTQ_CELL_BYTES;
            int32_t picked = 0;
            for (uint32_t cell = 0; cell < n_cells; cell++)
                picked += multipliers[cell] * entries[16 * cell + ((plane[ELUTQ_CELL_BYTES * cell + byte] >> shift) & 15)];
            float half_scale = elutq_half_scale(block, k, row);
            u = k == 0 ? half_scale * (float)picked : fmaf(half_scale, (float)picked, u);
        }
        f[row] = fmaf(elutq_center(block, row), sum, f[row]);
        f[row] = fmaf(u, scale, f[row]);
    }
}

#include "hlq_gemv.h"

/* The levels of one row and group as integers u = sum_k bit_k * steps[k], 0 to 255: w ~ middle + step * (u - 128). */
struct integer_levels {
    int32_t steps[ELUTQ_HLQ_MAX_BITS];
    float step, middle;
};

/*
 * h_k ~ delta * steps[k] for whole steps that add up to at most 255: rounding at some scales just below 255 / sum h_k, of
 * which the one that leaves the least squares is kept (that is, the largest (h.steps)^2 / steps.steps), has a third of
 * the error of rounding at one. Half scales that are negative or not finite, which no sound file holds, make the row NaN.
 */
static struct integer_levels round_levels(const struct elutq_block *block, uint32_t row) {
    const uint32_t bits = block->bits;
    struct integer_levels best = {0};
    float h[ELUTQ_HLQ_MAX_BITS], total = 0;
    for (uint32_t k = 0; k < bits; k++) {
        h[k] = elutq_half_scale(block, k, row);
        if (!(h[k] >= 0 && h[k] < INFINITY))
            return (struct integer_levels){.middle = NAN};
        total += h[k];
    }
    const float inverse = 1.0f / (total > SMALLEST_SCALED ? total : SMALLEST_SCALED);
    float best_hs = 0, best_ss = 1, best_scale = 0, sum = 0;
    for (int trial = 0; trial < ELUTQ_LEVELS_TRIALS(bits); trial++) {
        const float scale = (ELUTQ_LEVELS_TOP(bits) - (float)trial) * inverse;
        float hs = 0, ss = 0;
        for (uint32_t k = 0; k < bits; k++) {
            const float step = rintf(h[k] * scale);
            hs = fmaf(h[k], step, hs);
            ss = fmaf(step, step, ss);
        }
        if (!(hs * hs * best_ss > best_hs * best_hs * ss)) /* hs^2 / ss grows */
            continue;
        best_hs = hs;
        best_ss = ss;
        best_scale = scale;
    }
    for (uint32_t k = 0; k < bits; k++) {
        best.steps[k] = (int32_t)rintf(h[k] * best_scale);
        sum += (float)best.steps[k];
    }
    best.step = 2 * (best_hs / best_ss);
    best.middle = fmaf(best.step, fmaf(sum, -0.5f, 128.0f), elutq_center(block, row));
    return best;
}

/* Expands one row of a block to u - 128 in [-128, 127]. */
static void expand_row(const uint8_t *planes, uint32_t bits, uint32_t group_size, uint32_t row, const int32_t *steps,
                       int32_t *levels) {
    const uint32_t byte = elutq_cell_byte(row), shift = elutq_cell_shift(row);
    for (uint32_t column = 0; column < group_size; column++) {
        levels[column] = -128;
        for (uint32_t k = 0; k < bits; k++) {
            uint8_t cell = planes[k * elutq_plane_bytes(group_size) + column / ELUTQ_CELL_COLUMNS * ELUTQ_CELL_BYTES + byte];
            levels[column] += steps[k] * ((cell >> (shift + column % ELUTQ_CELL_COLUMNS)) & 1);
        }
    }
}

/* One row of a block times all tokens: f[token] += middle * sum(x) + step * scale * (levels . whole numbers). */
static void add_row_levels(const struct elutq_matrix *matrix, const struct elutq_levels *levels, uint32_t n_tokens,
                           uint32_t group, const int32_t *weights, float step, float middle, float *f) {
    const uint32_t group_size = matrix->group_size, cell_stride = ELUTQ_CELL_COLUMNS * ELUTQ_LEVELS_TOKENS;
    for (uint32_t token = 0; token < n_tokens; token++, f += ELUTQ_CHUNK_STRIDE) {
        const size_t slot = token / ELUTQ_LEVELS_TOKENS, lane = token % ELUTQ_LEVELS_TOKENS;
        const size_t at = (slot * elutq_matrix_groups(matrix) + group) * ELUTQ_LEVELS_TOKENS + lane;
        const size_t first = (slot * matrix->n_columns + (size_t)group * group_size) * ELUTQ_LEVELS_TOKENS +
                             lane * ELUTQ_CELL_COLUMNS;
        int32_t product = 0;
        for (uint32_t column = 0; column < group_size; column++) {
            const size_t i = first + column / ELUTQ_CELL_COLUMNS * cell_stride + column % ELUTQ_CELL_COLUMNS;
            product += weights[column] * (levels->values[i] + 256 * levels->high[i]);
        }
        *f = fmaf(middle, levels->sums[at], *f);
        *f = fmaf((float)product * step, levels->scales[at], *f);
    }
}

static void gemm_levels(const struct elutq_matrix *matrix, const struct elutq_levels *levels, uint32_t n_tokens,
                        struct elutq_part part, float *y) {
    const uint32_t n_tiles = part.n_tiles, n_groups = elutq_matrix_groups(matrix);
    for (uint32_t token = 0; token < n_tokens; token++)
        memset(y + (size_t)token * ELUTQ_CHUNK_STRIDE, 0, (size_t)n_tiles * ELUTQ_TILE_ROWS * sizeof *y);
    for (uint32_t group = 0; group < n_groups; group++) {
        for (uint32_t tile = 0; tile < n_tiles; tile++) {
            const struct elutq_block block = elutq_block_at(matrix, part.tile + tile, group);
            for (uint32_t row = 0; row < ELUTQ_TILE_ROWS; row++) {
                const struct integer_levels rounded = round_levels(&block, row);
                int32_t weights[ELUTQ_HLQ_MAX_GROUP_SIZE];
                expand_row(block.planes, matrix->bits, matrix->group_size, row, rounded.steps, weights);
                add_row_levels(matrix, levels, n_tokens, group, weights, rounded.step, rounded.middle,
                               y + tile * ELUTQ_TILE_ROWS + row);
            }
        }
    }
}

void elutq_matrix_row(const struct elutq_matrix *matrix, uint32_t row, float *y) {
    if (matrix->bits == 16) {
        const uint16_t *weights = (const uint16_t *)matrix->data + (size_t)row * matrix->n_columns;
        for (uint32_t column = 0; column < matrix->n_columns; column++)
            y[column] = elutq_half_to_float(weights[column]);
        return;
    }
    const uint32_t bits = matrix->bits, group_size = matrix->group_size, n_groups = elutq_matrix_groups(matrix);
    const uint32_t row_in_tile = row % ELUTQ_TILE_ROWS;
    const uint32_t byte = elutq_cell_byte(row_in_tile), shift = elutq_cell_shift(row_in_tile);
    for (uint32_t group = 0; group < n_groups; group++) {
        const struct elutq_block block = elutq_block_at(matrix, row / ELUTQ_TILE_ROWS, group);
        float *yg = y + (size_t)group * group_size;
        const float center = elutq_center(&block, row_in_tile);
        for (uint32_t column = 0; column < group_size; column++)
            yg[column] = center;
        for (uint32_t k = 0; k < bits; k++) {
            const uint8_t *plane = block.planes + k * elutq_plane_bytes(group_size);
            const float half_scale = elutq_half_scale(&block, k, row_in_tile);
            for (uint32_t column = 0; column < group_size; column++) {
                uint32_t nibble = plane[column / ELUTQ_CELL_COLUMNS * ELUTQ_CELL_BYTES + byte] >> shift;
                yg[column] += (nibble >> column % ELUTQ_CELL_COLUMNS) & 1 ? half_scale : -half_scale;
            }
        }
    }
}

const struct elutq_kernels elutq_kernels_scalar = {
    .name = "scalar",
    .gemv = gemv,
    .gemm_tables = gemv_each,
    .build_levels = build_levels,
    .gemm_levels = gemm_levels,
    .levels_from = {0, 0, 0, 96, 56}, /* as avx512, whose passes these then define */
    ELUTQ_FLOAT_KERNELS,
};
