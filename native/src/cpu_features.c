#include "kernel_sets.h"

#if defined(__x86_64__)

#include <cpuid.h>

/* The compiler's probe includes the operating system's support for the wider registers; Clang's does not know F16C. */

static bool has_f16c(void) {
    unsigned eax, ebx, ecx = 0, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

bool elutq_cpu_has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

#ifdef ELUTQ_HAS_AVXVNNI
bool elutq_cpu_has_avxvnni(void) {
    unsigned eax = 0, ebx, ecx, edx;
    return elutq_cpu_has_avx2() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax >> 4 & 1) != 0;
}
#endif

bool elutq_cpu_has_avx512bw(void) {
    return elutq_cpu_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool elutq_cpu_has_avx512vnni(void) {
    return elutq_cpu_has_avx512bw() && __builtin_cpu_supports("avx512vnni");
}

bool elutq_cpu_has_avx512(void) {
    return elutq_cpu_has_avx512vnni() && __builtin_cpu_supports("avx512vbmi");
}

#elif defined(__aarch64__)

#if defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#ifdef ELUTQ_HAS_DOTPROD
bool elutq_cpu_has_dotprod(void) {
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__ARM_FEATURE_DOTPROD) || defined(__APPLE__)
    return true; /* what the compiler was told; every Apple CPU of this architecture has it */
#else
    return false;
#endif
}
#endif

#ifdef ELUTQ_HAS_I8MM
bool elutq_cpu_has_i8mm(void) {
#if defined(__linux__)
    return (getauxval(AT_HWCAP2) >> 13 & 1) != 0; /* HWCAP2_I8MM, which headers before Linux 5.10 have no name for */
#elif defined(__ARM_FEATURE_MATMUL_INT8)
    return true;
#elif defined(__APPLE__)
    int has = 0;
    size_t n_bytes = sizeof has;
    return sysctlbyname("hw.optional.arm.FEAT_I8MM", &has, &n_bytes, NULL, 0) == 0 && has != 0;
#else
    return false;
#endif
}
#endif

#endif
