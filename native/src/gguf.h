/*
 * A validated, read-only view of a GGUF v3 file: every offset, count and length is checked when it is opened, so that what
 * the functions here return can be used without further checks.
 */
#ifndef ELUTQ_GGUF_H
#define ELUTQ_GGUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "elutq_format.h"
#include "error.h"
#include "mapping.h"

struct elutq_text {
    const char *bytes; /* into the mapping, not NUL-terminated */
    size_t n_bytes;
};

struct elutq_metadata {
    struct elutq_text key;
    uint32_t type;
    uint32_t element_type; /* of an array */
    uint64_t n_elements;   /* of an array */
    const uint8_t *value;  /* first byte after the type (and, in an array, after the count) */
};

struct elutq_tensor {
    struct elutq_text name;
    uint32_t type;
    uint32_t n_dims;
    uint64_t dims[ELUTQ_MAX_DIMENSIONS]; /* fastest first; 1 past n_dims */
    uint64_t n_bytes;
    const uint8_t *data; /* into the mapping, aligned to general.alignment */
};

struct elutq_gguf {
    struct elutq_mapping mapping;
    uint64_t n_metadata, n_tensors;
    struct elutq_metadata *metadata; /* [n_metadata], owned */
    struct elutq_tensor *tensors;    /* [n_tensors], owned, in file order */
};

/* Maps and validates `path`; on error *gguf holds nothing. */
int elutq_gguf_open(const char *path, struct elutq_gguf *gguf, const struct elutq_error *error);
void elutq_gguf_close(struct elutq_gguf *gguf);

/* Whether it may go into a message as it is: printable ASCII, nothing that a terminal would act on. */
bool elutq_text_is_printable(struct elutq_text text);

bool elutq_text_equals(struct elutq_text text, const char *string);

/* NULL where there is none. */
const struct elutq_metadata *elutq_gguf_metadata(const struct elutq_gguf *gguf, const char *key);
const struct elutq_tensor *elutq_gguf_tensor(const struct elutq_gguf *gguf, const char *name);

/* A value of exactly that type; false when the key is absent or of another type. */
bool elutq_gguf_u32(const struct elutq_gguf *gguf, const char *key, uint32_t *value);
bool elutq_gguf_f32(const struct elutq_gguf *gguf, const char *key, float *value);
bool elutq_gguf_bool(const struct elutq_gguf *gguf, const char *key, bool *value);
bool elutq_gguf_string(const struct elutq_gguf *gguf, const char *key, struct elutq_text *value);

/* An array of UINT32: *values is unaligned, read it with elutq_read_u32. False when absent or of another type. */
bool elutq_gguf_u32_array(const struct elutq_gguf *gguf, const char *key, const uint8_t **values, uint64_t *n_values);
/* The same of INT32. */
bool elutq_gguf_i32_array(const struct elutq_gguf *gguf, const char *key, const uint8_t **values, uint64_t *n_values);
/* The same of BOOL: a byte each. */
bool elutq_gguf_bool_array(const struct elutq_gguf *gguf, const char *key, const uint8_t **values, uint64_t *n_values);
uint32_t elutq_read_u32(const uint8_t *bytes);

/* An array of strings: each elutq_gguf_next_string(gguf, cursor), at most n_values times, returns the next. */
bool elutq_gguf_string_array(const struct elutq_gguf *gguf, const char *key, const uint8_t **cursor, uint64_t *n_values);
struct elutq_text elutq_gguf_next_string(const struct elutq_gguf *gguf, const uint8_t **cursor);

#endif
