/*
 * Sixteen float lanes in plain C: the definition that the vec16_<isa>.h files reproduce bit for bit. float_kernels.h is
 * written over these operations once and compiled for every instruction set.
 */
#ifndef ELUTQ_VEC16_SCALAR_H
#define ELUTQ_VEC16_SCALAR_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "compiler.h"
#include "half.h"

#define KERNEL static
#define INLINE static ELUTQ_ALWAYS_INLINE

typedef struct {
    float lane[16];
} v16;

/* A loop stays one: most of these are calls of the C library for each lane, which sixteen times over is a hundred kilobytes. */
#define EACH_LANE(expression)                                                                                                  \
    v16 r;                                                                                                                     \
    ELUTQ_UNROLL(1)                                                                                                            \
    for (int i = 0; i < 16; i++)                                                                                               \
        r.lane[i] = (expression);                                                                                              \
    return r

INLINE v16 v16_set1(float x) {
    EACH_LANE(x);
}
INLINE v16 v16_load(const float *p) {
    EACH_LANE(p[i]);
}
INLINE void v16_store(float *p, v16 a) {
    memcpy(p, a.lane, sizeof a.lane);
}
INLINE v16 v16_load_half(const uint16_t *p) {
    EACH_LANE(elutq_half_to_float(p[i]));
}
INLINE void v16_store_half(uint16_t *p, v16 a) {
    ELUTQ_UNROLL(1)
    for (int i = 0; i < 16; i++)
        p[i] = elutq_float_to_half(a.lane[i]);
}
INLINE v16 v16_load_i8(const int8_t *p) {
    EACH_LANE((float)p[i]);
}
/* Rounds to nearest even and saturates to int8. */
INLINE void v16_store_i8(int8_t *p, v16 a) {
    for (int i = 0; i < 16; i++) {
        float rounded = rintf(a.lane[i]);
        p[i] = (int8_t)(rounded > 127 ? 127 : rounded > -128 ? rounded : -128);
    }
}
INLINE v16 v16_add(v16 a, v16 b) {
    EACH_LANE(a.lane[i] + b.lane[i]);
}
INLINE v16 v16_sub(v16 a, v16 b) {
    EACH_LANE(a.lane[i] - b.lane[i]);
}
INLINE v16 v16_mul(v16 a, v16 b) {
    EACH_LANE(a.lane[i] * b.lane[i]);
}
INLINE v16 v16_div(v16 a, v16 b) {
    EACH_LANE(a.lane[i] / b.lane[i]);
}
INLINE v16 v16_fma(v16 a, v16 b, v16 c) {
    EACH_LANE(fmaf(a.lane[i], b.lane[i], c.lane[i]));
}
INLINE v16 v16_max(v16 a, v16 b) {
    EACH_LANE(a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]);
}
INLINE v16 v16_min(v16 a, v16 b) {
    EACH_LANE(a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]);
}
INLINE v16 v16_abs(v16 a) {
    EACH_LANE(fabsf(a.lane[i]));
}
INLINE v16 v16_round(v16 a) {
    EACH_LANE(rintf(a.lane[i]));
}
/* a * 2^n for whole n in -126 .. 127; where n is NaN, so is a. */
INLINE v16 v16_scale2(v16 a, v16 n) {
    EACH_LANE(a.lane[i] * ldexpf(1.0f, isnan(n.lane[i]) ? 0 : (int)n.lane[i]));
}
/* Sums lanes i and i + 8, then i and i + 4, i + 2, i + 1. */
INLINE float v16_sum(v16 a) {
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            a.lane[i] += a.lane[i + half];
    return a.lane[0];
}
/* sums[i] = v16_sum(a[i]) */
INLINE void v16_sum_4(const v16 a[4], float sums[4]) {
    for (int i = 0; i < 4; i++)
        sums[i] = v16_sum(a[i]);
}
INLINE float v16_largest(v16 a) {
    for (int i = 1; i < 16; i++)
        a.lane[0] = a.lane[i] > a.lane[0] ? a.lane[i] : a.lane[0];
    return a.lane[0];
}

#endif
