#include "key_balance.h"

#include <math.h>

/* A pair is an outlier from so many times the median pair's magnitude on. */
#define ORDINARY 2.0f

/* Divisors stop here, so that no file makes a query overflow. */
#define LARGEST_EXPONENT 12

/* What the file tells of the magnitude of pair i of a head's keys: by the norm's weight, where keys are normed, or the bias. */
static float magnitude(const float *weights, uint32_t half, uint32_t i) {
    return hypotf(weights[i], weights[i + half]);
}

/* The median over a head's pairs. */
static float median_magnitude(const float *weights, uint32_t half) {
    for (uint32_t i = 0; i < half; i++) {
        const float candidate = magnitude(weights, half, i);
        uint32_t below = 0, equal = 0;
        for (uint32_t j = 0; j < half; j++) {
            const float other = magnitude(weights, half, j);
            below += other < candidate;
            equal += other == candidate;
        }
        if (below <= half / 2 && half / 2 < below + equal)
            return candidate;
    }
    return 0; /* not all are numbers */
}

/* The power of two nearest to magnitude / ordinary, at least 1. */
static float divisor(float magnitude, float ordinary) {
    if (!(ordinary > 0 && magnitude > ordinary && magnitude <= 1e30f))
        return 1;
    const int exponent = ilogbf(magnitude / ordinary * 1.41421356f);
    return ldexpf(1, exponent < LARGEST_EXPONENT ? exponent : LARGEST_EXPONENT);
}

bool elutq_key_balance(const struct elutq_model *model, float *factors) {
    const uint32_t head_dim = model->config.head_dim, half = head_dim / 2;
    bool any = false;
    for (uint32_t layer = 0; layer < model->config.n_layers; layer++) {
        const float *norm = model->layers[layer].k_norm, *bias = model->layers[layer].k.bias;
        for (uint32_t head = 0; head < model->config.n_kv_heads; head++, factors += 2 * head_dim) {
            const float *weights = norm != NULL ? norm : bias != NULL ? bias + (size_t)head * head_dim : NULL;
            const float ordinary = weights == NULL ? 0 : ORDINARY * median_magnitude(weights, half);
            for (uint32_t i = 0; i < half; i++) {
                const float by = weights == NULL ? 1 : divisor(magnitude(weights, half, i), ordinary);
                factors[i] = factors[i + half] = by;
                factors[head_dim + i] = factors[head_dim + i + half] = 1 / by;
                any |= by != 1;
            }
        }
    }
    return any;
}
