/* Functions compiled for vectors of several widths; the one for this processor is chosen when the library is loaded. */
#ifndef ELUTQ_QUANTIZE_WIDE_H
#define ELUTQ_QUANTIZE_WIDE_H

#include "compiler.h"

/* Nothing is contracted or reordered, so every width gives the same bits. */
#define WIDE ELUTQ_CLONES("avx512f", "avx2", "default")

/* What a wide function calls is to be compiled with it. */
#define WITHIN static ELUTQ_ALWAYS_INLINE

#endif
