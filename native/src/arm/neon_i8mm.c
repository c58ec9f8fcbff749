/* NEON with the matrix products of ARMv8.6 (Cortex-A710 and X2, Neoverse V1 and N2, Apple M2 and later): prefill with SMMLA. */
#if defined(__aarch64__)

#include "kernel_sets.h"

#ifdef ELUTQ_HAS_I8MM

#if !defined(__ARM_FEATURE_MATMUL_INT8)
#define ELUTQ_TARGET ELUTQ_WITH("arch=armv8.2-a+i8mm")
#endif
#include "vec16_neon.h"

#define ELUTQ_F16_TILE 2
#define ELUTQ_SMMLA 1
#include "float_kernels.h"
#include "hlq_block.h"
#include "gemv_neon.h"
#include "levels_neon.h"

const struct elutq_kernels elutq_kernels_neon_i8mm = {
    .name = "neon-i8mm",
    .gemv = gemv,
    .gemm_tables = gemv_each,
    .build_levels = build_levels,
    .gemm_levels = gemm_levels,
    .levels_from = {0, 8, 4, 8, 8},
    ELUTQ_FLOAT_KERNELS,
};

#endif

#endif
