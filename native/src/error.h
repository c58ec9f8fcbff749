/* One line of text for the caller, beside a status. */
#ifndef ELUTQ_ERROR_H
#define ELUTQ_ERROR_H

#include <stddef.h>

#include "compiler.h"
#include "elutq.h"

struct elutq_error {
    char *text; /* the caller's buffer, may be NULL when n_bytes is 0; not owned */
    size_t n_bytes;
};

/* Formats the message, truncated to the buffer, and returns `status`. */
ELUTQ_FORMAT(3, 4) int elutq_fail(const struct elutq_error *error, int status, const char *format, ...);

#endif
