/*
 * AVX2 with FMA and F16C: table look-ups for decode and prefill. Beside it AVX-VNNI (Alder Lake, N100 and later), whose
 * prefill has 8-bit levels; what both have is compiled once.
 */
#if defined(__x86_64__)

#define ELUTQ_TARGET "avx2,fma,f16c"
#include "vec16_avx2.h"

#define ELUTQ_F16_TILE 2
#include "float_kernels.h"
#include "gemv_avx2.h"
#include "kernel_sets.h"

const struct elutq_kernels elutq_kernels_avx2 = {.name = "avx2", .gemv = gemv, .gemm_tables = gemm_tables, ELUTQ_FLOAT_KERNELS};

#ifdef ELUTQ_HAS_AVXVNNI

#undef ELUTQ_TARGET
#define ELUTQ_TARGET "avx2,fma,f16c,avxvnni"
#include "levels_avxvnni.h"

const struct elutq_kernels elutq_kernels_avxvnni = {
    .name = "avxvnni",
    .gemv = gemv,
    .gemm_tables = gemm_tables,
    .build_levels = build_levels,
    .gemm_levels = gemm_levels,
    .levels_from = {0, 0, 56, 36, 26},
    ELUTQ_FLOAT_KERNELS,
};

#endif

#endif
