/* What half scales and centers may be: any fp16 number, or one that a byte of the file stands for (elutq_format.h). */
#ifndef ELUTQ_QUANTIZE_GRID_H
#define ELUTQ_QUANTIZE_GRID_H

#include <math.h>
#include <stdbool.h>

#include "elutq_format.h"
#include "elutq_quantize.h"
#include "half.h"

/* The nearest to a number of those up to last << shift that have the fp16 bits byte << shift, times 2^exponent. */
static inline uint16_t nearest_byte(double magnitude, unsigned exponent, unsigned shift, unsigned last) {
    const float factor = (float)(1u << exponent); /* a power of two: nothing is rounded by it */
    const unsigned half = elutq_float_to_half((float)fmin(magnitude, ELUTQ_LARGEST_HALF) / factor);
    const unsigned nearest = (half + (1u << (shift - 1))) >> shift, byte = nearest < last ? nearest : last;
    return elutq_float_to_half(elutq_half_to_float((uint16_t)(byte << shift)) * factor);
}

/* What a matrix is rounded to. */
struct grid {
    unsigned kind, exponent;
};

static inline bool is_grid(unsigned kind, unsigned exponent) {
    return kind == 0 ? exponent == 0 : kind == ELUTQ_KIND_BYTES && exponent <= ELUTQ_MAX_EXPONENT;
}

static inline uint16_t round_half_scale(double magnitude, struct grid grid) {
    if (grid.kind == 0)
        return elutq_float_to_half((float)fmin(magnitude, ELUTQ_LARGEST_HALF));
    return nearest_byte(magnitude, grid.exponent, ELUTQ_HALF_SCALE_SHIFT, 255);
}

static inline float round_center(double center, struct grid grid) {
    if (grid.kind == 0)
        return elutq_half_to_float(elutq_float_to_half((float)fmin(fmax(center, -ELUTQ_LARGEST_HALF), ELUTQ_LARGEST_HALF)));
    const unsigned sign = center < 0.0 ? 0x8000 : 0;
    return elutq_half_to_float((uint16_t)(sign | nearest_byte(fabs(center), grid.exponent, ELUTQ_CENTER_SHIFT, 127)));
}

#endif
