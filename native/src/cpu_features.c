/*
 * What this processor has, and its operating system lets programs use. The processor is asked directly, because the
 * compilers' own probe (__builtin_cpu_supports) answers "no" to everything where the library behind it is not set up, as
 * with zig cc: then every machine would run the scalar kernels, and nobody would be told.
 */
#include "kernel_sets.h"

#if defined(__x86_64__)

#include <cpuid.h>
#include <stdint.h>

#include "compiler.h"

struct registers {
    unsigned a, b, c, d;
};

/* A leaf of CPUID; zeros where the processor has none of that number. */
static struct registers cpuid(unsigned leaf, unsigned subleaf) {
    struct registers found = {0, 0, 0, 0};
    if (__get_cpuid_count(leaf, subleaf, &found.a, &found.b, &found.c, &found.d) == 0)
        return (struct registers){0, 0, 0, 0};
    return found;
}

static bool has_bits(uint64_t value, uint64_t bits) {
    return (value & bits) == bits;
}

/* Parts of the registers that the operating system saves when it switches threads: XCR0. */
#define STATE_AVX 0x06u    /* XMM, upper halves of YMM */
#define STATE_AVX512 0xE6u /* the same, mask registers, upper halves of ZMM, ZMM16 to 31 */

static bool saves(uint64_t state) {
    if (!has_bits(cpuid(1, 0).c, 1u << 27)) /* OSXSAVE: XGETBV may be used */
        return false;
#if defined(__APPLE__)
    if (state == STATE_AVX512)
        state = STATE_AVX; /* macOS begins to save the others at their first use, and shows them in XCR0 from then on */
#endif
    return has_bits(elutq_xcr0(), state);
}

bool elutq_cpu_has_avx2(void) {
    const unsigned avx = 1u << 28, fma = 1u << 12, f16c = 1u << 29, avx2 = 1u << 5;
    return has_bits(cpuid(1, 0).c, avx | fma | f16c) && has_bits(cpuid(7, 0).b, avx2) && saves(STATE_AVX);
}

#ifdef ELUTQ_HAS_AVXVNNI
bool elutq_cpu_has_avxvnni(void) {
    return elutq_cpu_has_avx2() && has_bits(cpuid(7, 1).a, 1u << 4);
}
#endif

bool elutq_cpu_has_avx512bw(void) {
    const unsigned f = 1u << 16, dq = 1u << 17, bw = 1u << 30, vl = 1u << 31;
    return elutq_cpu_has_avx2() && has_bits(cpuid(7, 0).b, f | dq | bw | vl) && saves(STATE_AVX512);
}

bool elutq_cpu_has_avx512vnni(void) {
    return elutq_cpu_has_avx512bw() && has_bits(cpuid(7, 0).c, 1u << 11);
}

bool elutq_cpu_has_avx512(void) {
    return elutq_cpu_has_avx512vnni() && has_bits(cpuid(7, 0).c, 1u << 1); /* VBMI */
}

#ifdef ELUTQ_HAS_AVX512BF16
bool elutq_cpu_has_avx512bf16(void) {
    return elutq_cpu_has_avx512bw() && has_bits(cpuid(7, 1).a, 1u << 5);
}
#endif

#elif defined(__aarch64__)

#include "os/os.h"

#ifdef ELUTQ_HAS_DOTPROD
bool elutq_cpu_has_dotprod(void) {
#if defined(__ARM_FEATURE_DOTPROD)
    return true; /* what the compiler was told the whole build has */
#else
    return elutq_system_has_dotprod();
#endif
}
#endif

#ifdef ELUTQ_HAS_I8MM
bool elutq_cpu_has_i8mm(void) {
#if defined(__ARM_FEATURE_MATMUL_INT8)
    return true;
#else
    return elutq_system_has_i8mm();
#endif
}
#endif

#endif
