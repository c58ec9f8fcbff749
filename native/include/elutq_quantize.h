/*
 * The quantizer's hot loops. elutq_cli/pipeline/compute/loops holds a numpy twin of each that defines the result; given
 * the same finite input both return the same bits, with any number of threads.
 *
 * A group of `group_size` consecutive columns of a row shares its levels c + sum_k (+-h_k); bit k - 1 of a code is the
 * sign of h_k. Half scales are float16 as integers. No function keeps a pointer after it returns. Beside what
 * stands below, each returns ELUTQ_ERROR_IN_USE or ELUTQ_ERROR_FORKED, and has done nothing, where the pool cannot run.
 */
#ifndef ELUTQ_QUANTIZE_H
#define ELUTQ_QUANTIZE_H

#include <stddef.h>
#include <stdint.h>

#include "elutq.h"

/*
 * Half scales and centers are rounded to what blocks of the matrix's `kind` and `exponent` hold (elutq_format.h): of kind 0
 * float16, with exponent 0; of ELUTQ_KIND_BYTES the numbers that bytes stand for; of that with ELUTQ_KIND_EVEN and
 * ELUTQ_KIND_CENTERS such a half scale, its multiples, and a center in quarters of it. There are no others here.
 */

/*
 * Fits levels to every group by alternating optimisation from each start in turn, keeps the best, rounds it and
 * gives every weight the code of the nearest level. Of an even kind it tries what blocks can hold, without starts: those,
 * n_iterations and proximity must be in range and change nothing.
 *
 *   weights      [n_rows][row_stride], of which the first n_columns are read; group_size divides n_columns
 *   importance   [n_columns], what a squared error in a column costs, >= 0 and not all zero within a group; NULL: all 1
 *   starts       [n_starts][bits + 1], half scales and center (from the middle), in halves of a group's range
 *   proximity    pull towards the present levels in each solve, relative to the sum of a group's importances; > 0
 *   half_scales  [n_rows][n_columns / group_size][bits], written
 *   centers      [n_rows][n_columns / group_size], written
 *   codes        [n_rows][n_columns], written
 *
 * bits is 1 to 4, group_size at most ELUTQ_HLQ_MAX_GROUP_SIZE. Returns ELUTQ_OK or ELUTQ_ERROR_ARGUMENT.
 */
int elutq_fit(elutq_pool *pool, const float *weights, size_t n_rows, size_t n_columns, size_t row_stride, unsigned bits,
              unsigned group_size, const float *importance, const double *starts, unsigned n_starts, unsigned n_iterations,
              double proximity, unsigned kind, unsigned exponent, uint16_t *half_scales, float *centers,
              uint8_t *codes);

/*
 * Rounds one group of columns to its levels, one column after the other, and takes each column's error out of those to its
 * right: error_j = (w_j - level) / factor[j][j], then w_k -= error_j * factor[j][k] for k > j.
 *
 *   weights      [n_rows][row_stride], of which the first group_size are read and left unchanged
 *   factor       [group_size][factor_stride], diagonal block of the upper triangular factor of H^-1
 *   half_scales  [n_rows][bits]
 *   centers      [n_rows]
 *   codes        [n_rows][group_size], written
 *   errors       [n_rows][group_size], written
 *
 * Returns ELUTQ_OK or ELUTQ_ERROR_ARGUMENT (bits or group_size out of range).
 */
int elutq_feedback(elutq_pool *pool, const float *weights, size_t n_rows, size_t row_stride, unsigned bits,
                   unsigned group_size, const float *factor, size_t factor_stride, const uint16_t *half_scales,
                   const float *centers, uint8_t *codes, float *errors);

/*
 * Improves one group of every row under the group's block of the Hessian: levels are solved for with the codes held, then
 * each weight in turn takes the code that lowers the row's error d H d^T (d = target - value) most, over all columns up to
 * n_sweeps times and until nothing changes. A row that would not gain stays as it is.
 *
 *   hessian      [group_size][group_size], symmetric, positive definite; group_size a multiple of 4
 *   residual     [n_rows][row_stride], of which the first group_size are read and left unchanged: d H of every row
 *   proximity    > 0, added to the diagonal of each solve's normal equations, relative to it
 *   half_scales  [n_rows][bits], changed in place; of an even kind multiples of the first, as elutq_fit leaves them
 *   centers      [n_rows], changed in place
 *   codes        [n_rows][group_size], below 2^bits; changed in place
 *   grown        [n_rows][group_size], written: by how much the dequantized weights grew
 *
 * Returns ELUTQ_OK or ELUTQ_ERROR_ARGUMENT (bits, group_size, proximity, kind, exponent or a code out of range).
 */
int elutq_refine(elutq_pool *pool, const float *hessian, const float *residual, size_t n_rows, size_t row_stride,
                 unsigned bits, unsigned group_size, unsigned n_sweeps, double proximity, unsigned kind,
                 unsigned exponent, uint16_t *half_scales, float *centers, uint8_t *codes, float *grown);

/*
 * Lays a matrix out as the blocks of a model file (elutq_format.h), little-endian as this machine is taken to be.
 *
 *   kind         ELUTQ_KIND_... (elutq_format.h)
 *   half_scales  [n_rows][n_columns / group_size][bits, of an even kind 1] as they are stored, two bytes or one each;
 *                group_size divides n_columns
 *   centers      [n_rows][n_columns / group_size] as they are stored; not read where the matrix has one for all
 *   codes        [n_rows][n_columns], below 2^bits
 *   blocks       [ceil(n_rows / 32) * n_columns / group_size][block bytes], written
 *
 * Returns ELUTQ_OK or ELUTQ_ERROR_ARGUMENT (bits, group_size or kind out of range, group_size no multiple of 4, or a code too
 * large).
 */
int elutq_pack(elutq_pool *pool, size_t n_rows, size_t n_columns, unsigned bits, unsigned group_size, unsigned kind,
               const uint8_t *half_scales, const uint8_t *centers, const uint8_t *codes, uint8_t *blocks);

/* 1 where elutq_add_rounded_product computes (a processor with AVX512-BF16), else 0. */
int elutq_has_rounded_products(void);

/*
 * Adds to `target` the product of two matrices whose elements are rounded to bfloat16; sums are float. On the calling
 * thread: several may call it at once, for targets that do not overlap. The sum of an element depends on nothing but its
 * row and its column.
 *
 *   left         [n_rows][n_inner], elements left_row and left_inner apart, of which one is 1
 *   right        [n_inner][n_columns], elements right_inner and right_column apart, of which one is 1
 *   target       [n_rows][n_columns], rows target_row apart, at least n_columns
 *
 * Returns ELUTQ_OK, ELUTQ_ERROR_ARGUMENT (neither distance of a factor is 1, target_row is too small, or this processor has
 * no such products) or ELUTQ_ERROR_MEMORY (for the 1 MB of a call).
 */
int elutq_add_rounded_product(const float *left, ptrdiff_t left_row, ptrdiff_t left_inner, const float *right,
                              ptrdiff_t right_inner, ptrdiff_t right_column, size_t n_rows, size_t n_columns, size_t n_inner,
                              float *target, size_t target_row);

#endif
