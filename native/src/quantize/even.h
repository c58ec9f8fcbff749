/*
 * Evenly spaced levels: all of a group follow from one half scale, a byte, and a center counted in quarters of it.
 * elutq_cli/pipeline/compute/loops/even.py is the twin that explains and defines it.
 */
#ifndef ELUTQ_QUANTIZE_EVEN_H
#define ELUTQ_QUANTIZE_EVEN_H

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "grid.h"
#include "wide.h"

#define EVEN_SCALES 32 /* half scales that a fit tries, side by side: GCC unrolls loops of up to 16 rounds away */
#define EVEN_ABOVE 4   /* how many of them are above the one that spans a group's range */
#define EVEN_AWAY 8    /* quarters that the centers which it tries with each are from the middle of the range, at most */
#define EVEN_CENTER_REACH 31.0

/* The half scale of plane 1, and the center. */
struct even_levels {
    float first, center;
};

static inline float even_scale(int byte, struct grid grid) {
    const unsigned sound = byte < 0 ? 0 : byte > 255 ? 255 : (unsigned)byte;
    return elutq_half_to_float(byte_value(sound, grid.exponent, ELUTQ_HALF_SCALE_SHIFT));
}

/* What a file can hold. */
static inline float sound_quarters(double quarters) {
    return (float)(quarters < -128.0 ? -128.0 : quarters > 127.0 ? 127.0 : quarters);
}

/* The center nearest to a number, in quarters of a half scale. */
static inline float even_quarters(double center, float first) {
    return first > 0.0f ? sound_quarters(rint(4.0 * center / (double)first)) : 0.0f;
}

static inline float even_center(float quarters, float first) {
    return first * (quarters * 0.25f) + 0.0f; /* no zero has a sign */
}

static inline void spread_even(float first, unsigned bits, uint16_t *half_scales) {
    for (unsigned plane = 0; plane < bits; plane++)
        half_scales[plane] = elutq_float_to_half(first * (float)(1u << plane));
}

/* A group's weights, and what a squared error of each costs. */
struct even_group {
    float weights[ELUTQ_HLQ_MAX_GROUP_SIZE], masses[ELUTQ_HLQ_MAX_GROUP_SIZE];
    unsigned size, bits;
};

/* Half scales, a center for each, and what the group costs with them. */
struct even_tries {
    float firsts[EVEN_SCALES], quarters[EVEN_SCALES], errors[EVEN_SCALES];
};

/* The errors if each weight takes its nearest level; a weight's place is counted in steps from half a step below the lowest. */
WITHIN void find_even_errors(const struct even_group *group, struct even_tries *tries) {
    const float last = (float)((1u << group->bits) - 1), middle = (float)(1u << (group->bits - 1));
    float per_step[EVEN_SCALES], below[EVEN_SCALES], sums[EVEN_SCALES] = {0};
    for (unsigned k = 0; k < EVEN_SCALES; k++) {
        per_step[k] = tries->firsts[k] > 0.0f ? 0.5f / tries->firsts[k] : 0.0f;
        below[k] = middle - tries->quarters[k] * 0.125f;
    }
    for (unsigned i = 0; i < group->size; i++) {
        const float weight = group->weights[i], mass = group->masses[i];
        for (unsigned k = 0; k < EVEN_SCALES; k++) {
            const float place = weight * per_step[k] + below[k], above = place < 0.0f ? 0.0f : place;
            const float within = above > last ? last : above, off = place - (float)(int)within - 0.5f;
            sums[k] += mass * (off * off);
        }
    }
    for (unsigned k = 0; k < EVEN_SCALES; k++) {
        const float first = tries->firsts[k];
        tries->errors[k] = first > 0.0f ? sums[k] * (first * first) : INFINITY;
    }
}

/* Tries centers so many quarters away from these; half scales with which they cost less keep them. */
WITHIN void try_even_centers(const struct even_group *group, const float *quarters, int away, struct even_tries *best) {
    struct even_tries tries = *best;
    for (unsigned k = 0; k < EVEN_SCALES; k++)
        tries.quarters[k] = sound_quarters(quarters[k] + (float)away);
    find_even_errors(group, &tries);
    for (unsigned k = 0; k < EVEN_SCALES; k++) {
        const bool better = tries.errors[k] < best->errors[k];
        best->quarters[k] = better ? tries.quarters[k] : best->quarters[k];
        best->errors[k] = better ? tries.errors[k] : best->errors[k];
    }
}

WITHIN struct even_levels fit_even(const float *weights, const float *importance, unsigned size, unsigned bits,
                                   struct grid grid) {
    struct even_group group;
    group.size = size;
    group.bits = bits;
    float lowest = weights[0], highest = weights[0];
    for (unsigned i = 0; i < size; i++) {
        lowest = weights[i] < lowest ? weights[i] : lowest;
        highest = weights[i] > highest ? weights[i] : highest;
        group.weights[i] = weights[i];
        group.masses[i] = importance ? importance[i] : 1.0f;
    }
    const double middle = ((double)lowest + (double)highest) * 0.5, reach = ((double)highest - (double)lowest) * 0.5;
    const double spanning = fmax(reach / ((1u << bits) - 1), fabs(middle) / EVEN_CENTER_REACH);
    const int top = (int)nearest_byte(spanning, grid.exponent, ELUTQ_HALF_SCALE_SHIFT, 255) + EVEN_ABOVE;
    struct even_tries best;
    float from[EVEN_SCALES];
    for (int k = 0; k < EVEN_SCALES; k++) {
        best.firsts[k] = even_scale(top - k, grid);
        from[k] = best.quarters[k] = even_quarters(middle, best.firsts[k]);
        best.errors[k] = INFINITY;
    }
    for (int away = -EVEN_AWAY; away < EVEN_AWAY; away += 2)
        try_even_centers(&group, from, away, &best);
    memcpy(from, best.quarters, sizeof from);
    for (int away = -1; away <= 1; away += 2)
        try_even_centers(&group, from, away, &best);
    unsigned chosen = 0;
    for (unsigned k = 1; k < EVEN_SCALES; k++)
        chosen = best.errors[k] < best.errors[chosen] ? k : chosen;
    return (struct even_levels){best.firsts[chosen], even_center(best.quarters[chosen], best.firsts[chosen])};
}

/*
 * Rounds the half scale, negative too, and the center that solve a group's normal equations, whose matrix is
 * {{own, across}, {across, total}}: of the bytes near it each with its best center, the one that loses least. The half scale
 * returned has the sign of the solution.
 */
WITHIN struct even_levels round_even(double first, double center, double own, double across, double total, struct grid grid) {
    static const int NEAR[] = {0, -1, 1};
    const int nearest = (int)nearest_byte(fabs(first), grid.exponent, ELUTQ_HALF_SCALE_SHIFT, 255);
    struct even_levels best = {0.0f, 0.0f};
    double least = INFINITY;
    for (unsigned i = 0; i < sizeof NEAR / sizeof NEAR[0]; i++) {
        const float magnitude = even_scale(nearest + NEAR[i], grid);
        const double moved = (first < 0.0 ? -(double)magnitude : (double)magnitude) - first;
        const float found = even_center(even_quarters(center - across / total * moved, magnitude), magnitude);
        const double shifted = (double)found - center;
        const double lost = own * (moved * moved) + 2.0 * across * (moved * shifted) + total * (shifted * shifted);
        if (lost < least) {
            least = lost;
            best = (struct even_levels){first < 0.0 ? -magnitude : magnitude, found};
        }
    }
    return best;
}

#endif
