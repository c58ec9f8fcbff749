/* AVX-512 with VNNI, without VBMI (Cascade Lake, Cooper Lake): decode as avx512bw, prefill with 8-bit levels as avx512. */
#define ELUTQ_TARGET "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"
#include "vec16_avx512.h"

#define ELUTQ_F16_TILE 4
#include "float_kernels.h"
#include "gemv_avx512bw.h"
#include "kernel_sets.h"
#include "levels_avx512.h"

const struct elutq_kernels elutq_kernels_avx512vnni = {
    .name = "avx512vnni",
    .gemv = gemv,
    .gemm_tables = gemv_each,
    .build_levels = build_levels,
    .gemm_levels = gemm_levels,
    .levels_from = {0, 8, 6, 8, 8},
    ELUTQ_FLOAT_KERNELS,
};
