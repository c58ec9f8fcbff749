/*
 * Asking for a stream from memory ahead of its use.
 *
 * Hardware prefetchers follow a stream to the end of its 4 KB page and have to find it again in the next. A plain read hides
 * that, a core that computes meanwhile does not (docs/kernels.md has what was measured). So while a page is read the
 * beginning of the next is asked for, into L2: as many lines as go by until the hardware follows. Intel's, and AMD's from
 * Zen 5 on, does not follow fast enough: there every line is asked for, into L1, some KB ahead, and best one at a time, as its
 * predecessor is used: a burst of requests fills the buffers that wait for lines, and loads behind it have none.
 */
#ifndef ELUTQ_STREAM_H
#define ELUTQ_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ELUTQ_PAGE_BYTES 4096
#define ELUTQ_PAGE_LINES 20
#define ELUTQ_LINE_BYTES 64
#define ELUTQ_LINES_AHEAD 48

/* Set to 1 by a check that wants the way which this processor does not take. */
#ifndef ELUTQ_ASK_THE_OTHER_WAY
#define ELUTQ_ASK_THE_OTHER_WAY 0
#endif

/* Whether this processor is to be asked for every line: all but Zen 1 to 4. */
#if defined(__x86_64__)
#define ELUTQ_ASK_BY_LINE                                                                                                      \
    ((!ELUTQ_CPU_IS("amdfam17h") && !ELUTQ_CPU_IS("amdfam19h")) != ELUTQ_ASK_THE_OTHER_WAY)
#else
#define ELUTQ_ASK_BY_LINE ELUTQ_ASK_THE_OTHER_WAY
#endif

/* Each for a piece of a stream, to be called as the piece comes to be used. */

/* Asks for the lines that lie `ahead` bytes behind those of the piece. */
INLINE void ask_by_line(const void *piece, size_t n_bytes, size_t ahead) {
    const char *following = (const char *)((uintptr_t)piece + ahead);
    for (size_t i = 0; i < n_bytes; i += ELUTQ_LINE_BYTES)
        ELUTQ_PREFETCH(following + i, 3);
}

/* How a walk asks: by line so far ahead, which is not 0, or by page. by_line is a constant of the walk. */
struct elutq_asking {
    bool by_line;
    size_t ahead;
};

/* For a piece that add_block uses; a walk by page asks for itself. */
INLINE void ask_for(struct elutq_asking asking, const void *piece, size_t n_bytes) {
    if (asking.by_line)
        ask_by_line(piece, n_bytes, asking.ahead);
}

/* Does something about once a KB. */
INLINE void ask_by_page(const void *piece, size_t n_bytes) {
    if ((uintptr_t)piece % (ELUTQ_PAGE_BYTES / 4) >= n_bytes)
        return;
    const char *page = (const char *)((uintptr_t)piece & ~(uintptr_t)(ELUTQ_PAGE_BYTES - 1)) + ELUTQ_PAGE_BYTES;
    ELUTQ_UNROLL(32)
    for (size_t i = 0; i < ELUTQ_PAGE_LINES; i++)
        ELUTQ_PREFETCH(page + i * ELUTQ_LINE_BYTES, 2);
}

INLINE void ask_ahead(const void *piece, size_t n_bytes) {
    if (ELUTQ_ASK_BY_LINE)
        ask_by_line(piece, n_bytes, ELUTQ_LINES_AHEAD * ELUTQ_LINE_BYTES);
    else
        ask_by_page(piece, n_bytes);
}

#endif
