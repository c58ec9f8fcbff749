/*
 * A file mapped read-only for as long as a model is open, and what is done when it does not stay as it was: a file cut
 * short, or a disk that cannot be read, turns loads from the mapping into SIGBUS.
 */
#ifndef ELUTQ_MAPPING_H
#define ELUTQ_MAPPING_H

#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#include "error.h"

struct elutq_mapping {
    const uint8_t *data; /* NULL: nothing is mapped */
    size_t n_bytes;
    int file;                 /* kept open to look at the file's size and time; -1: none */
    struct timespec modified; /* when the file was opened */
    int slot;                 /* where the SIGBUS handler finds the mapping; -1: it does not */
};

#define ELUTQ_NO_MAPPING ((struct elutq_mapping){.file = -1, .slot = -1})

/* Maps a regular file of at least `smallest` bytes. On error *mapping holds nothing. */
int elutq_mapping_open(const char *path, size_t smallest, struct elutq_mapping *mapping, const struct elutq_error *error);
void elutq_mapping_close(struct elutq_mapping *mapping);

/*
 * ELUTQ_ERROR_IO when the file was cut short or written to after it was opened, or when a page of it could not be read.
 * One fstat: cheap enough before and after every call that reads weights. Thread-safe.
 */
int elutq_mapping_check(const struct elutq_mapping *mapping, const struct elutq_error *error);

#endif
