/* The kernel sets, each defined in the file of its instruction set, and the CPU features that each needs. */
#ifndef ELUTQ_KERNEL_SETS_H
#define ELUTQ_KERNEL_SETS_H

#include <stdbool.h>

#include "elutq_kernels.h"

extern const struct elutq_kernels elutq_kernels_scalar;

#if defined(__x86_64__)
extern const struct elutq_kernels elutq_kernels_avx2;
/* Compilers know AVX-VNNI from these versions on; older ones build without that set. */
#if (defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11)
#define ELUTQ_HAS_AVXVNNI
extern const struct elutq_kernels elutq_kernels_avxvnni;
bool elutq_cpu_has_avxvnni(void); /* AVX2, FMA, F16C, AVX-VNNI */
#endif
extern const struct elutq_kernels elutq_kernels_avx512bw;
extern const struct elutq_kernels elutq_kernels_avx512vnni;
extern const struct elutq_kernels elutq_kernels_avx512;
bool elutq_cpu_has_avx2(void);     /* AVX2, FMA, F16C */
bool elutq_cpu_has_avx512bw(void);   /* AVX-512 F, BW, DQ, VL */
bool elutq_cpu_has_avx512vnni(void); /* the same with VNNI */
bool elutq_cpu_has_avx512(void);     /* the same with VNNI and VBMI */
#if (defined(__clang__) && __clang_major__ >= 9) || (!defined(__clang__) && __GNUC__ >= 10)
#define ELUTQ_HAS_AVX512BF16
bool elutq_cpu_has_avx512bf16(void); /* AVX-512 F, BW, DQ, VL, BF16 */
#endif
#elif defined(__aarch64__)
extern const struct elutq_kernels elutq_kernels_neon; /* what every AArch64 CPU has */
/*
 * Compilers that give one function more instructions than the build has: GCC from 8 and 10 on, Clang from 16. Older ones
 * build without that set, unless the whole build has its instructions.
 */
#if defined(__clang__)
#define ELUTQ_FUNCTIONS_GO_BEYOND(gcc) (__clang_major__ >= 16)
#else
#define ELUTQ_FUNCTIONS_GO_BEYOND(gcc) (__GNUC__ >= (gcc))
#endif
#if defined(__ARM_FEATURE_DOTPROD) || ELUTQ_FUNCTIONS_GO_BEYOND(8)
#define ELUTQ_HAS_DOTPROD
extern const struct elutq_kernels elutq_kernels_neon_dotprod; /* with SDOT */
bool elutq_cpu_has_dotprod(void);
#endif
#if defined(__ARM_FEATURE_MATMUL_INT8) || ELUTQ_FUNCTIONS_GO_BEYOND(10)
#define ELUTQ_HAS_I8MM
extern const struct elutq_kernels elutq_kernels_neon_i8mm; /* with SMMLA */
bool elutq_cpu_has_i8mm(void);
#endif
#endif

#endif
