/* Who is in a call on an object that one thread may use at a time. */
#ifndef ELUTQ_IN_USE_H
#define ELUTQ_IN_USE_H

#include <stdatomic.h>
#include <stdbool.h>

/* Whether no other call is under way in the object that has this flag; if so, this one is until elutq_end_call. */
static inline bool elutq_begin_call(atomic_bool *in_use) {
    return !atomic_exchange(in_use, true);
}

static inline int elutq_end_call(atomic_bool *in_use, int status) {
    atomic_store(in_use, false);
    return status;
}

#endif
