/* AVX2 with FMA and F16C: table look-ups for decode and, token by token, for prefill. */
#define ELUTQ_TARGET "avx2,fma,f16c"
#include "vec16_avx2.h"

#define ELUTQ_F16_TILE 2
#include "float_kernels.h"
#include "gemv_avx2.h"
#include "kernel_sets.h"

const struct elutq_kernels elutq_kernels_avx2 = {.name = "avx2", .gemv = gemv, .gemm_tables = gemm_tables, ELUTQ_FLOAT_KERNELS};
