/* Functions compiled for vectors of several widths; the one for this processor is chosen when the library is loaded. */
#ifndef ELUTQ_QUANTIZE_WIDE_H
#define ELUTQ_QUANTIZE_WIDE_H

/* Nothing is contracted or reordered, so every width gives the same bits. Resolvers run before sanitizers are ready. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define WIDE
#endif

/* What a wide function calls is to be compiled with it. */
#define WITHIN static inline __attribute__((always_inline))

#endif
