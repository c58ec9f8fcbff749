/* NEON with the dot products of ARMv8.2 (Cortex-A76, Neoverse N1, Apple M1 and later): prefill with SDOT. */
#if defined(__aarch64__)

#include "kernel_sets.h"

#ifdef ELUTQ_HAS_DOTPROD

#if !defined(__ARM_FEATURE_DOTPROD)
#define ELUTQ_TARGET ELUTQ_WITH("arch=armv8.2-a+dotprod")
#endif
#include "vec16_neon.h"

#define ELUTQ_F16_TILE 2
#define ELUTQ_SMMLA 0
#include "float_kernels.h"
#include "hlq_block.h"
#include "gemv_neon.h"
#include "levels_neon.h"

const struct elutq_kernels elutq_kernels_neon_dotprod = {
    .name = "neon-dotprod",
    .gemv = gemv,
    .gemm_tables = gemv_each,
    .build_levels = build_levels,
    .gemm_levels = gemm_levels,
    .levels_from = {0, 8, 4, 8, 8},
    ELUTQ_FLOAT_KERNELS,
};

#endif

#endif
