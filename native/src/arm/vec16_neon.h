/*
 * Sixteen float lanes as four NEON registers (base AArch64); vec16_scalar.h defines each operation. A file that needs more
 * than base AArch64 defines ELUTQ_TARGET, an attribute that says so.
 */
#ifndef ELUTQ_VEC16_NEON_H
#define ELUTQ_VEC16_NEON_H

#include <arm_neon.h>
#include <stdint.h>

#include "compiler.h"

#ifndef ELUTQ_TARGET
#define ELUTQ_TARGET
#endif

#define KERNEL static ELUTQ_TARGET
#define INLINE static ELUTQ_ALWAYS_INLINE ELUTQ_TARGET

typedef struct {
    float32x4_t q[4];
} v16;

#define EACH_QUAD(expression)                                                                                                  \
    v16 r;                                                                                                                     \
    for (int i = 0; i < 4; i++)                                                                                                \
        r.q[i] = (expression);                                                                                                 \
    return r

INLINE v16 v16_set1(float x) {
    EACH_QUAD(vdupq_n_f32(x));
}
INLINE v16 v16_load(const float *p) {
    EACH_QUAD(vld1q_f32(p + 4 * i));
}
INLINE void v16_store(float *p, v16 a) {
    for (int i = 0; i < 4; i++)
        vst1q_f32(p + 4 * i, a.q[i]);
}
/* Half precision as integers: four of them to floats and back, which base AArch64 has instructions for. */
INLINE float32x4_t four_halves(uint16x4_t halves) {
    return vcvt_f32_f16(vreinterpret_f16_u16(halves));
}
INLINE v16 v16_load_half(const uint16_t *p) {
    EACH_QUAD(four_halves(vld1_u16(p + 4 * i)));
}
INLINE void v16_store_half(uint16_t *p, v16 a) {
    for (int i = 0; i < 4; i++)
        vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(a.q[i])));
}
INLINE v16 v16_load_i8(const int8_t *p) {
    const int8x16_t bytes = vld1q_s8(p);
    const int16x8_t words[2] = {vmovl_s8(vget_low_s8(bytes)), vmovl_s8(vget_high_s8(bytes))};
    EACH_QUAD(vcvtq_f32_s32(vmovl_s16(i % 2 ? vget_high_s16(words[i / 2]) : vget_low_s16(words[i / 2]))));
}
INLINE void v16_store_i8(int8_t *p, v16 a) {
    int16x8_t words[2];
    for (int i = 0; i < 2; i++)
        words[i] = vcombine_s16(vqmovn_s32(vcvtnq_s32_f32(a.q[2 * i])), vqmovn_s32(vcvtnq_s32_f32(a.q[2 * i + 1])));
    vst1q_s8(p, vcombine_s8(vqmovn_s16(words[0]), vqmovn_s16(words[1])));
}
INLINE v16 v16_add(v16 a, v16 b) {
    EACH_QUAD(vaddq_f32(a.q[i], b.q[i]));
}
INLINE v16 v16_sub(v16 a, v16 b) {
    EACH_QUAD(vsubq_f32(a.q[i], b.q[i]));
}
INLINE v16 v16_mul(v16 a, v16 b) {
    EACH_QUAD(vmulq_f32(a.q[i], b.q[i]));
}
INLINE v16 v16_div(v16 a, v16 b) {
    EACH_QUAD(vdivq_f32(a.q[i], b.q[i]));
}
INLINE v16 v16_fma(v16 a, v16 b, v16 c) {
    EACH_QUAD(vfmaq_f32(c.q[i], a.q[i], b.q[i]));
}
/* Compared and selected, because fmax takes the NaN where the definition takes b. */
INLINE float32x4_t larger(float32x4_t a, float32x4_t b) {
    return vbslq_f32(vcgtq_f32(a, b), a, b);
}
INLINE v16 v16_max(v16 a, v16 b) {
    EACH_QUAD(larger(a.q[i], b.q[i]));
}
INLINE v16 v16_min(v16 a, v16 b) {
    EACH_QUAD(vbslq_f32(vcltq_f32(a.q[i], b.q[i]), a.q[i], b.q[i]));
}
INLINE v16 v16_abs(v16 a) {
    EACH_QUAD(vabsq_f32(a.q[i]));
}
INLINE v16 v16_round(v16 a) {
    EACH_QUAD(vrndnq_f32(a.q[i]));
}
INLINE v16 v16_scale2(v16 a, v16 n) {
    const int32x4_t bias = vdupq_n_s32(127);
    EACH_QUAD(vmulq_f32(a.q[i], vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n.q[i]), bias), 23))));
}
INLINE float v16_sum(v16 a) {
    float32x4_t four = vaddq_f32(vaddq_f32(a.q[0], a.q[2]), vaddq_f32(a.q[1], a.q[3]));
    float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(vpadd_f32(two, two), 0);
}
INLINE void v16_sum_4(const v16 a[4], float sums[4]) {
    for (int i = 0; i < 4; i++)
        sums[i] = v16_sum(a[i]);
}
INLINE float v16_largest(v16 a) {
    return vmaxnmvq_f32(larger(larger(a.q[0], a.q[2]), larger(a.q[1], a.q[3])));
}

#endif
