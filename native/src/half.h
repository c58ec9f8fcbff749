/* IEEE 754 binary16 <-> binary32 in plain C, round to nearest even; the bits F16C and NEON give. */
#ifndef ELUTQ_HALF_H
#define ELUTQ_HALF_H

#include <stdint.h>
#include <string.h>

#define ELUTQ_LARGEST_HALF 65504.0

static inline float elutq_half_to_float(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16;
    uint32_t rest = half & 0x7FFF;
    uint32_t bits;
    float value;
    if (rest >= 0x7C00) {
        bits = sign | 0x7F800000u | ((rest & 0x3FF) << 13) | (rest > 0x7C00 ? 0x400000u : 0);
    } else if (rest >= 0x0400) {
        bits = sign | ((rest << 13) + ((127 - 15) << 23));
    } else {
        float magnitude = (float)rest * 0x1p-24f; /* subnormals: exact */
        memcpy(&bits, &magnitude, sizeof bits);
        bits |= sign;
    }
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint16_t elutq_float_to_half(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint16_t sign = (uint16_t)((bits >> 16) & 0x8000);
    bits &= 0x7FFFFFFF;
    if (bits > 0x7F800000u) /* NaN: quiet, keep the payload's head */
        return (uint16_t)(sign | 0x7E00 | ((bits >> 13) & 0x1FF));
    if (bits >= 0x47800000u)
        return (uint16_t)(sign | 0x7C00);
    if (bits < 0x38800000u) { /* subnormal result: let the adder round at the right place */
        float magnitude;
        memcpy(&magnitude, &bits, sizeof magnitude);
        magnitude += 0.5f;
        uint32_t rounded;
        memcpy(&rounded, &magnitude, sizeof rounded);
        return (uint16_t)(sign | (rounded - 0x3F000000u));
    }
    uint32_t rounded = bits + 0xFFF + ((bits >> 13) & 1) - ((127u - 15u) << 23);
    return (uint16_t)(sign | (rounded >> 13));
}

#endif
