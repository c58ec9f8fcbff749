#include "mapping.h"

#include <inttypes.h>

#include "contents.h"

/* "what: why", of a call on a file that has just failed. */
static int fail_system(const struct elutq_error *error, const char *what) {
    char why[ELUTQ_FAILURE_BYTES];
    elutq_last_failure(why, sizeof why);
    return elutq_fail(error, ELUTQ_ERROR_IO, "%s: %s", what, why);
}

int elutq_mapping_open(const char *path, size_t smallest, struct elutq_mapping *mapping, const struct elutq_error *error) {
    *mapping = ELUTQ_NO_MAPPING;
    mapping->file = elutq_file_open(path);
    if (mapping->file == ELUTQ_NO_FILE)
        return fail_system(error, "cannot open");
    struct elutq_file_state state;
    int status = ELUTQ_OK;
    if (!elutq_file_look(mapping->file, &state) || !state.is_regular) {
        status = elutq_fail(error, ELUTQ_ERROR_IO, "not a regular file");
    } else if (state.n_bytes < smallest || state.n_bytes > SIZE_MAX) {
        status = elutq_fail(error, ELUTQ_ERROR_FORMAT, "too short to be a GGUF file (%" PRIu64 " bytes)", state.n_bytes);
    } else {
        mapping->data = elutq_file_map(mapping->file, (size_t)state.n_bytes, &mapping->slot);
        mapping->n_bytes = (size_t)state.n_bytes;
        mapping->modified = state.modified;
        if (mapping->data == NULL)
            status = fail_system(error, "cannot map");
    }
    if (status != ELUTQ_OK)
        elutq_mapping_close(mapping);
    return status;
}

void elutq_mapping_close(struct elutq_mapping *mapping) {
    if (mapping->data != NULL)
        elutq_file_unmap(mapping->data, mapping->n_bytes, mapping->slot);
    if (mapping->file != ELUTQ_NO_FILE)
        elutq_file_close(mapping->file);
    *mapping = ELUTQ_NO_MAPPING;
}

static int cannot_look(const struct elutq_error *error) {
    return fail_system(error, "the model file cannot be looked at any more");
}

int elutq_mapping_remember(struct elutq_mapping *mapping, size_t n_head_bytes, const struct elutq_error *error) {
    struct elutq_file_state state;
    mapping->n_head_bytes = n_head_bytes;
    if (!elutq_contents_digest(mapping->file, mapping->n_bytes, n_head_bytes, &mapping->digest) ||
        !elutq_file_look(mapping->file, &state))
        return cannot_look(error);
    if (state.modified != atomic_load(&mapping->modified))
        return elutq_fail(error, ELUTQ_ERROR_IO, "it was written to while it was opened; open it again");
    return ELUTQ_OK;
}

int elutq_mapping_check(struct elutq_mapping *mapping, const struct elutq_error *error) {
    struct elutq_file_state state;
    if (!elutq_file_look(mapping->file, &state))
        return cannot_look(error);
    if (state.n_bytes < mapping->n_bytes)
        return elutq_fail(error, ELUTQ_ERROR_IO, "the model file was cut short while in use; restore it and open it again");
    if (state.modified != atomic_load_explicit(&mapping->modified, memory_order_relaxed)) {
        uint64_t digest;
        if (!elutq_contents_digest(mapping->file, mapping->n_bytes, mapping->n_head_bytes, &digest))
            return cannot_look(error);
        if (digest != mapping->digest)
            return elutq_fail(error, ELUTQ_ERROR_IO, "the model file was written to while in use; open it again");
        atomic_store(&mapping->modified, state.modified); /* touched: from now on this is its time */
    }
    if (elutq_lost_pages(mapping->slot))
        return elutq_fail(error, ELUTQ_ERROR_IO,
                          "a part of the model file could not be read; check the disk, and that nothing changes the file");
    return ELUTQ_OK;
}
