/* The levels of a group. */
#ifndef ELUTQ_QUANTIZE_LEVELS_H
#define ELUTQ_QUANTIZE_LEVELS_H

#include "elutq_format.h"
#include "half.h"

#define MAX_LEVELS (1u << ELUTQ_HLQ_MAX_BITS)

/* levels [1 << bits]: the value of every code, summed from the center up in the order of the planes. */
static inline void expand_levels(const uint16_t *half_scales, float center, unsigned bits, float *levels) {
    for (unsigned code = 0; code < 1u << bits; code++) {
        float level = center;
        for (unsigned plane = 0; plane < bits; plane++) {
            float half_scale = elutq_half_to_float(half_scales[plane]);
            level += code >> plane & 1 ? half_scale : -half_scale;
        }
        levels[code] = level;
    }
}

#endif
