/* Who is in a call on an object that one thread may use at a time. */
#ifndef ELUTQ_IN_USE_H
#define ELUTQ_IN_USE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "os/os.h"

/* The process that is in a call, 0 where none is. In a forked one calls of its parent have no thread that could end them. */
typedef _Atomic int64_t elutq_in_use;

/* Whether no other call is under way in the object that has this flag; if so, this one is until elutq_end_call. */
static inline bool elutq_begin_call(elutq_in_use *in_use) {
    const int64_t own = elutq_process();
    int64_t other = 0;
    while (!atomic_compare_exchange_weak(in_use, &other, own))
        if (other == own)
            return false;
    return true;
}

static inline int elutq_end_call(elutq_in_use *in_use, int status) {
    atomic_store(in_use, 0);
    return status;
}

#endif
