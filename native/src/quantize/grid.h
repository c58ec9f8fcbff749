/* What half scales and centers may be: any fp16 number, or one that a byte of the file stands for (elutq_format.h). */
#ifndef ELUTQ_QUANTIZE_GRID_H
#define ELUTQ_QUANTIZE_GRID_H

#include <math.h>
#include <stdbool.h>

#include "elutq_format.h"
#include "elutq_quantize.h"
#include "half.h"

/* The byte up to `last` whose value is nearest to a number. */
static inline unsigned nearest_byte(double magnitude, unsigned exponent, unsigned shift, unsigned last) {
    const float factor = (float)(1u << exponent); /* a power of two: nothing is rounded by it */
    const unsigned half = elutq_float_to_half((float)fmin(magnitude, ELUTQ_LARGEST_HALF) / factor);
    const unsigned nearest = (half + (1u << (shift - 1))) >> shift;
    return nearest < last ? nearest : last;
}

/* The number with the fp16 bits byte << shift, times 2^exponent: an fp16 number. */
static inline uint16_t byte_value(unsigned byte, unsigned exponent, unsigned shift) {
    return elutq_float_to_half(elutq_half_to_float((uint16_t)(byte << shift)) * (float)(1u << exponent));
}

/* What a matrix is rounded to. */
struct grid {
    unsigned kind, exponent;
};

static inline bool is_even(struct grid grid) {
    return (grid.kind & ELUTQ_KIND_EVEN) != 0;
}

/* The last half scale of an even kind is 2^(bits - 1) times what the byte says, and an fp16 number too. */
static inline bool is_grid(struct grid grid, unsigned bits) {
    if (grid.kind == 0)
        return grid.exponent == 0;
    if (grid.kind == (ELUTQ_KIND_EVEN | ELUTQ_KIND_BYTES | ELUTQ_KIND_CENTERS))
        return grid.exponent <= ELUTQ_MAX_EXPONENT - (bits - 1);
    return grid.kind == ELUTQ_KIND_BYTES && grid.exponent <= ELUTQ_MAX_EXPONENT;
}

/* Of kinds that are not even. */
static inline uint16_t round_half_scale(double magnitude, struct grid grid) {
    if (grid.kind == 0)
        return elutq_float_to_half((float)fmin(magnitude, ELUTQ_LARGEST_HALF));
    return byte_value(nearest_byte(magnitude, grid.exponent, ELUTQ_HALF_SCALE_SHIFT, 255), grid.exponent,
                      ELUTQ_HALF_SCALE_SHIFT);
}

static inline float round_center(double center, struct grid grid) {
    if (grid.kind == 0)
        return elutq_half_to_float(elutq_float_to_half((float)fmin(fmax(center, -ELUTQ_LARGEST_HALF), ELUTQ_LARGEST_HALF)));
    const unsigned byte = nearest_byte(fabs(center), grid.exponent, ELUTQ_CENTER_SHIFT, 127);
    const unsigned sign = center < 0.0 ? 0x8000 : 0;
    return elutq_half_to_float((uint16_t)(sign | byte_value(byte, grid.exponent, ELUTQ_CENTER_SHIFT)));
}

#endif
