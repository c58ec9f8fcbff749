/* AVX2 with AVX-VNNI (Alder Lake, N100 and later): decode as avx2, prefill with 8-bit levels. */
#include "kernel_sets.h"

#ifdef ELUTQ_HAS_AVXVNNI

#define ELUTQ_TARGET "avx2,fma,f16c,avxvnni"
#include "vec16_avx2.h"

#define ELUTQ_F16_TILE 2
#include "float_kernels.h"
#include "gemv_avx2.h"
#include "levels_avxvnni.h"

const struct elutq_kernels elutq_kernels_avxvnni = {
    .name = "avxvnni",
    .gemv = gemv,
    .gemm_tables = gemm_tables,
    .build_levels = build_levels,
    .gemm_levels = gemm_levels,
    .levels_from = {0, 8, 8, 8, 8},
    ELUTQ_FLOAT_KERNELS,
};

#endif
