#include <string.h>

#include "kernel_sets.h"

static bool always(void) {
    return true;
}

static const struct {
    const struct elutq_kernels *kernels;
    bool (*supported)(void);
} SETS[] = {
#if defined(__x86_64__)
    {&elutq_kernels_avx512, elutq_cpu_has_avx512},
    {&elutq_kernels_avx512vnni, elutq_cpu_has_avx512vnni},
#ifdef ELUTQ_HAS_AVXVNNI
    {&elutq_kernels_avxvnni, elutq_cpu_has_avxvnni},
#endif
    {&elutq_kernels_avx512bw, elutq_cpu_has_avx512bw},
    {&elutq_kernels_avx2, elutq_cpu_has_avx2},
#elif defined(__aarch64__)
#ifdef ELUTQ_HAS_I8MM
    {&elutq_kernels_neon_i8mm, elutq_cpu_has_i8mm},
#endif
#ifdef ELUTQ_HAS_DOTPROD
    {&elutq_kernels_neon_dotprod, elutq_cpu_has_dotprod},
#endif
    {&elutq_kernels_neon, always},
#endif
    {&elutq_kernels_scalar, always},
};

#define N_SETS (sizeof SETS / sizeof SETS[0])

const struct elutq_kernels *elutq_kernels_at(unsigned i) {
    return i < N_SETS ? SETS[i].kernels : NULL;
}

int elutq_kernels_supported(const struct elutq_kernels *kernels) {
    for (unsigned i = 0; i < N_SETS; i++)
        if (SETS[i].kernels == kernels)
            return SETS[i].supported();
    return 0;
}

const struct elutq_kernels *elutq_kernels_named(const char *name) {
    for (unsigned i = 0; i < N_SETS; i++)
        if (strcmp(SETS[i].kernels->name, name) == 0)
            return SETS[i].supported() ? SETS[i].kernels : NULL;
    return NULL;
}
