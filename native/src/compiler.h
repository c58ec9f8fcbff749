/*
 * What C11 has no word for and compilers have, in one place: GCC from 9 on, and Clang from 12 on, Apple's and those for
 * Windows among them. No other file says __attribute__, __builtin or asm, or has a pragma.
 */
#ifndef ELUTQ_COMPILER_H
#define ELUTQ_COMPILER_H

#if !defined(__GNUC__) && !defined(__clang__)
#error "elutq is compiled by GCC or Clang; for Windows by MinGW's, clang-cl or zig cc"
#endif

#include <stdint.h>

/* ---- functions ---- */

#define ELUTQ_ALWAYS_INLINE inline __attribute__((always_inline))
#define ELUTQ_NEVER_INLINE __attribute__((noinline))
#define ELUTQ_MAYBE_UNUSED __attribute__((unused))
#define ELUTQ_MUST_USE __attribute__((warn_unused_result))

/* With the instructions of these features, whatever the rest of the file is compiled for. */
#define ELUTQ_WITH(features) __attribute__((target(features)))

/*
 * Compiled once for each of these, the best chosen when the library is loaded; once where nothing chooses. What chooses runs
 * before sanitizers are ready.
 */
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define ELUTQ_CLONES(...) __attribute__((target_clones(__VA_ARGS__)))
#else
#define ELUTQ_CLONES(...)
#endif

/* Arguments from number `first` on are those of the format, which is argument number `format`. */
#define ELUTQ_FORMAT(format_at, first) __attribute__((format(printf, format_at, first)))

/* ---- loops ---- */

#define ELUTQ_PRAGMA(words) _Pragma(#words)

/* Before a loop: so many rounds in one. */
#define ELUTQ_UNROLL(n) ELUTQ_PRAGMA(GCC unroll n)

/* ---- expressions ---- */

/* Asks for the cache line of an address to be read: 3 into L1, 2 into L2. Any address will do. */
#define ELUTQ_PREFETCH(address, locality) __builtin_prefetch(address, 0, locality)

/* The number of the lowest bit set, of 64; one is. */
#define ELUTQ_LOWEST_BIT(word) ((uint32_t)__builtin_ctzll(word))

/* Whether a * b does not fit into *product, which is then cut off. */
#define ELUTQ_PRODUCT_OVERFLOWS(a, b, product) __builtin_mul_overflow(a, b, product)

/* ---- processors ---- */

#if defined(__x86_64__)

/* Whether the processor is of a family that compilers know by name; "no" where the library behind it is not set up. */
#define ELUTQ_CPU_IS(name) __builtin_cpu_is(name)

#define ELUTQ_RELAX() __builtin_ia32_pause()

/* Has a vector computed up to here: what follows is not regrouped with what came before. */
#define ELUTQ_SETTLE(vector) __asm__("" : "+v"(vector))

/* Where a pointer comes from is forgotten: what lies behind it is loaded where it is used, not kept from before. */
#define ELUTQ_FORGET(pointer) __asm__("" : "+r"(pointer))

/* acc + the dot products of four unsigned with four signed bytes in each 32-bit lane, of vectors of 64 bytes. */
#define ELUTQ_ADD_DOT_BYTES(acc, unsigned_bytes, signed_bytes)                                                                 \
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(unsigned_bytes), "v"(signed_bytes))

/* Which parts of the registers the operating system saves. Only where CPUID says OSXSAVE. */
static inline uint64_t elutq_xcr0(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

#elif defined(__aarch64__)
#define ELUTQ_RELAX() __asm__ volatile("isb" ::: "memory")
#else
#define ELUTQ_RELAX() ((void)0)
#endif

#endif
