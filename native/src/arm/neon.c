/* NEON of base AArch64 (Cortex-A53, A72 and later): table look-ups with TBL, sums in 16 bits. */
#if defined(__aarch64__)

#include "vec16_neon.h"

#define ELUTQ_F16_TILE 2
#include "float_kernels.h"
#include "hlq_block.h"
#include "kernel_sets.h"
#include "gemv_neon.h"

const struct elutq_kernels elutq_kernels_neon = {.name = "neon", .gemv = gemv, .gemm_tables = gemv_each, ELUTQ_FLOAT_KERNELS};

#endif
