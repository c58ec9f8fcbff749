/*
 * AVX-512 without VBMI and VNNI (Skylake-X). Beside it the set with VNNI (Cascade Lake, Cooper Lake), whose prefill has 8-bit
 * levels as avx512; what both have is compiled once.
 */
#if defined(__x86_64__)

#define ELUTQ_TARGET "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"
#include "vec16_avx512.h"

#define ELUTQ_F16_TILE 4
#include "float_kernels.h"
#include "gemv_avx512bw.h"
#include "kernel_sets.h"
#include "tables_avx512bw.h"

const struct elutq_kernels elutq_kernels_avx512bw = {
    .name = "avx512bw", .gemv = gemv, .gemm_tables = gemm_tables, ELUTQ_FLOAT_KERNELS};

#undef ELUTQ_TARGET
#define ELUTQ_TARGET "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"
#include "levels_avx512.h"

const struct elutq_kernels elutq_kernels_avx512vnni = {
    .name = "avx512vnni",
    .gemv = gemv,
    .gemm_tables = gemm_tables,
    .build_levels = build_levels,
    .gemm_levels = gemm_levels,
    .levels_from = {0, 24, 14, 16, 12},
    ELUTQ_FLOAT_KERNELS,
};

#endif
