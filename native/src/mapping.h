/*
 * A file mapped read-only for as long as a model is open, and what is done when it does not stay as it was: a file cut
 * short, or a disk that cannot be read, turns loads from the mapping into faults.
 */
#ifndef ELUTQ_MAPPING_H
#define ELUTQ_MAPPING_H

#include "error.h"
#include "os/os.h"

struct elutq_mapping {
    const uint8_t *data; /* NULL: nothing is mapped */
    size_t n_bytes;
    elutq_file file;          /* kept open to look at the file's size and time */
    _Atomic int64_t modified; /* the file's time when it was opened, or last found to hold the same; in ns */
    size_t n_head_bytes;      /* looked at in whole when it changes; the rest in places */
    uint64_t digest;          /* of what it held */
    int slot;                 /* by which lost pages are asked for; -1: they are not known */
};

#define ELUTQ_NO_MAPPING ((struct elutq_mapping){.file = ELUTQ_NO_FILE, .slot = -1})

/* Maps a regular file of at least `smallest` bytes. On error *mapping holds nothing. */
int elutq_mapping_open(const char *path, size_t smallest, struct elutq_mapping *mapping, const struct elutq_error *error);
void elutq_mapping_close(struct elutq_mapping *mapping);

/* Remembers what the file holds; n_head_bytes of it are what is not to change at all. ELUTQ_ERROR_IO when it cannot be read. */
int elutq_mapping_remember(struct elutq_mapping *mapping, size_t n_head_bytes, const struct elutq_error *error);

/*
 * ELUTQ_ERROR_IO when the file was cut short or holds other things than it did (elutq_contents_digest), or when a page of it
 * could not be read. One fstat, unless the file's time changed: cheap enough before and after every call that reads
 * weights. Thread-safe.
 */
int elutq_mapping_check(struct elutq_mapping *mapping, const struct elutq_error *error);

#endif
