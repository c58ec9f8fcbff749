/*
 * Whether a file whose time changed holds what it held: touch, a backup tool or a sync that found nothing to do change the
 * time alone.
 */
#ifndef ELUTQ_CONTENTS_H
#define ELUTQ_CONTENTS_H

#include "os/os.h"

/*
 * A number for what an open file holds in its first n_bytes: all of it up to 16 MB, of a larger one the first n_head_bytes
 * and pages spread evenly over the rest, so that no more is read than an eye blink allows. Other contents give another
 * number but for a chance of 2^-64, where those pages show them. False: it cannot be read; elutq_last_failure says why.
 */
bool elutq_contents_digest(elutq_file file, size_t n_bytes, size_t n_head_bytes, uint64_t *digest);

#endif
