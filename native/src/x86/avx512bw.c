/* AVX-512 without VBMI and VNNI (Skylake-X). */
#define ELUTQ_TARGET "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"
#include "vec16_avx512.h"

#define ELUTQ_F16_TILE 4
#include "float_kernels.h"
#include "gemv_avx512bw.h"
#include "kernel_sets.h"
#include "tables_avx512bw.h"

const struct elutq_kernels elutq_kernels_avx512bw = {.name = "avx512bw", .gemv = gemv, .gemm_tables = gemm_tables, ELUTQ_FLOAT_KERNELS};
