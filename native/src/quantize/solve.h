/* Small systems of linear equations, for the levels of a group. */
#ifndef ELUTQ_QUANTIZE_SOLVE_H
#define ELUTQ_QUANTIZE_SOLVE_H

#include "elutq_format.h"

#define MAX_UNKNOWNS (ELUTQ_HLQ_MAX_BITS + 1)

/* Solves matrix * x = step in place by elimination without pivoting; only the lower triangle of matrix is used. */
static inline void solve(double matrix[MAX_UNKNOWNS][MAX_UNKNOWNS], double *step, unsigned size) {
    for (unsigned j = 0; j < size; j++) {
        for (unsigned i = j + 1; i < size; i++) {
            double factor = matrix[i][j] / matrix[j][j];
            step[i] -= factor * step[j];
            for (unsigned k = j + 1; k <= i; k++)
                matrix[i][k] -= factor * matrix[k][j];
        }
    }
    for (unsigned i = size; i-- > 0;) {
        for (unsigned k = i + 1; k < size; k++)
            step[i] -= matrix[k][i] * step[k];
        step[i] /= matrix[i][i];
    }
}

#endif
