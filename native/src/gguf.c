#include "gguf.h"

#include <stdlib.h>
#include <string.h>

#include "compiler.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "GGUF is read in place, little-endian");

enum gguf_type {
    GGUF_U8, GGUF_I8, GGUF_U16, GGUF_I16, GGUF_U32, GGUF_I32, GGUF_F32, GGUF_BOOL, GGUF_STRING, GGUF_ARRAY,
    GGUF_U64, GGUF_I64, GGUF_F64, GGUF_N_TYPES
};

static const uint8_t SCALAR_BYTES[GGUF_N_TYPES] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

#define HEADER_BYTES 24

struct cursor {
    const uint8_t *at, *end;
};

static bool skip(struct cursor *cursor, uint64_t n_bytes) {
    if (n_bytes > (uint64_t)(cursor->end - cursor->at))
        return false;
    cursor->at += n_bytes;
    return true;
}

static bool read_bytes(struct cursor *cursor, void *value, size_t n_bytes) {
    const uint8_t *from = cursor->at;
    if (!skip(cursor, n_bytes))
        return false;
    memcpy(value, from, n_bytes);
    return true;
}

static bool read_text(struct cursor *cursor, struct elutq_text *text) {
    uint64_t n_bytes;
    if (!read_bytes(cursor, &n_bytes, sizeof n_bytes) || n_bytes > ELUTQ_MAX_STRING_BYTES)
        return false;
    text->bytes = (const char *)cursor->at;
    text->n_bytes = n_bytes;
    return skip(cursor, n_bytes);
}

bool elutq_text_is_printable(struct elutq_text text) {
    for (size_t i = 0; i < text.n_bytes; i++)
        if (text.bytes[i] < ' ' || text.bytes[i] > '~')
            return false;
    return true;
}

static bool read_array(struct cursor *cursor, struct elutq_metadata *entry) {
    if (!read_bytes(cursor, &entry->element_type, sizeof entry->element_type) ||
        !read_bytes(cursor, &entry->n_elements, sizeof entry->n_elements) || entry->element_type >= GGUF_N_TYPES ||
        entry->element_type == GGUF_ARRAY || entry->n_elements > ELUTQ_MAX_ARRAY_LENGTH)
        return false;
    entry->value = cursor->at;
    if (entry->element_type != GGUF_STRING)
        return skip(cursor, entry->n_elements * SCALAR_BYTES[entry->element_type]);
    for (uint64_t i = 0; i < entry->n_elements; i++) {
        struct elutq_text ignored;
        if (!read_text(cursor, &ignored))
            return false;
    }
    return true;
}

static bool read_metadata(struct cursor *cursor, struct elutq_metadata *entry) {
    if (!read_text(cursor, &entry->key) || entry->key.n_bytes > ELUTQ_MAX_NAME_BYTES || !elutq_text_is_printable(entry->key) ||
        !read_bytes(cursor, &entry->type, sizeof entry->type) || entry->type >= GGUF_N_TYPES)
        return false;
    if (entry->type == GGUF_ARRAY)
        return read_array(cursor, entry);
    entry->value = cursor->at;
    struct elutq_text ignored;
    return entry->type == GGUF_STRING ? read_text(cursor, &ignored) : skip(cursor, SCALAR_BYTES[entry->type]);
}

static int compare_texts(const void *left, const void *right) {
    const struct elutq_text *a = left, *b = right;
    const int order = memcmp(a->bytes, b->bytes, a->n_bytes < b->n_bytes ? a->n_bytes : b->n_bytes);
    return order != 0 ? order : (a->n_bytes > b->n_bytes) - (a->n_bytes < b->n_bytes);
}

/* Sorts the texts and refuses the file when two are equal. */
static int refuse_duplicates(struct elutq_text *texts, uint64_t n_texts, const char *what, const struct elutq_error *error) {
    qsort(texts, n_texts, sizeof *texts, compare_texts);
    for (uint64_t i = 1; i < n_texts; i++)
        if (compare_texts(&texts[i - 1], &texts[i]) == 0)
            return elutq_fail(error, ELUTQ_ERROR_FORMAT, "two %s are called %.*s", what, (int)texts[i].n_bytes, texts[i].bytes);
    return ELUTQ_OK;
}

/* Every key and every tensor's name may be there once. */
static int check_names(const struct elutq_gguf *gguf, const struct elutq_error *error) {
    const uint64_t largest = gguf->n_metadata > gguf->n_tensors ? gguf->n_metadata : gguf->n_tensors;
    struct elutq_text *texts = calloc(largest + 1, sizeof *texts);
    if (texts == NULL)
        return elutq_fail(error, ELUTQ_ERROR_MEMORY, "out of memory for the names in the file");
    for (uint64_t i = 0; i < gguf->n_metadata; i++)
        texts[i] = gguf->metadata[i].key;
    int status = refuse_duplicates(texts, gguf->n_metadata, "metadata entries", error);
    for (uint64_t i = 0; i < gguf->n_tensors; i++)
        texts[i] = gguf->tensors[i].name;
    if (status == ELUTQ_OK)
        status = refuse_duplicates(texts, gguf->n_tensors, "tensors", error);
    free(texts);
    return status;
}

static int tensor_bytes(struct elutq_tensor *tensor, const struct elutq_error *error) {
    const int n_name = (int)tensor->name.n_bytes;
    switch (tensor->type) {
    case ELUTQ_GGML_TYPE_F32:
        tensor->n_bytes = 4;
        break;
    case ELUTQ_GGML_TYPE_F16:
        tensor->n_bytes = 2;
        break;
    case ELUTQ_GGML_TYPE_I8:
        tensor->n_bytes = 1;
        break;
    default:
        return elutq_fail(error, ELUTQ_ERROR_FORMAT,
                          "tensor %.*s has ggml type %u, which elutq does not run; quantize the checkpoint with elutq quantize",
                          n_name, tensor->name.bytes, tensor->type);
    }
    for (uint32_t i = 0; i < ELUTQ_MAX_DIMENSIONS; i++)
        if (tensor->dims[i] == 0 || ELUTQ_PRODUCT_OVERFLOWS(tensor->n_bytes, tensor->dims[i], &tensor->n_bytes))
            return elutq_fail(error, ELUTQ_ERROR_FORMAT, "tensor %.*s has impossible dimensions", n_name, tensor->name.bytes);
    return ELUTQ_OK;
}

static bool read_tensor_info(struct cursor *cursor, struct elutq_tensor *tensor, uint64_t *offset) {
    if (!read_text(cursor, &tensor->name) || tensor->name.n_bytes > ELUTQ_MAX_NAME_BYTES ||
        !elutq_text_is_printable(tensor->name) || !read_bytes(cursor, &tensor->n_dims, sizeof tensor->n_dims) ||
        tensor->n_dims < 1 || tensor->n_dims > ELUTQ_MAX_DIMENSIONS)
        return false;
    for (uint32_t i = 0; i < ELUTQ_MAX_DIMENSIONS; i++)
        tensor->dims[i] = 1;
    return read_bytes(cursor, tensor->dims, tensor->n_dims * sizeof tensor->dims[0]) &&
           read_bytes(cursor, &tensor->type, sizeof tensor->type) && read_bytes(cursor, offset, sizeof *offset);
}

/* Data of tensors must follow each other: each begins at or after the end of the one before it in the list. */
static int read_tensors(struct elutq_gguf *gguf, struct cursor *cursor, const struct elutq_error *error) {
    uint64_t *offsets = calloc(gguf->n_tensors + 1, sizeof *offsets);
    if (offsets == NULL)
        return elutq_fail(error, ELUTQ_ERROR_MEMORY, "out of memory for the tensor list");
    int status = ELUTQ_OK;
    for (uint64_t i = 0; i < gguf->n_tensors && status == ELUTQ_OK; i++) {
        if (!read_tensor_info(cursor, &gguf->tensors[i], &offsets[i]))
            status = elutq_fail(error, ELUTQ_ERROR_FORMAT, "the tensor list is damaged or cut short at tensor %llu",
                                (unsigned long long)i);
        else
            status = tensor_bytes(&gguf->tensors[i], error);
    }
    const uint64_t n_bytes = gguf->mapping.n_bytes;
    uint64_t header_bytes = (uint64_t)(cursor->at - gguf->mapping.data), previous_end = 0;
    uint64_t base = (header_bytes + ELUTQ_GGUF_ALIGNMENT - 1) / ELUTQ_GGUF_ALIGNMENT * ELUTQ_GGUF_ALIGNMENT;
    for (uint64_t i = 0; i < gguf->n_tensors && status == ELUTQ_OK; i++) {
        struct elutq_tensor *tensor = &gguf->tensors[i];
        const int n_name = (int)tensor->name.n_bytes;
        if (base > n_bytes || offsets[i] > n_bytes - base || tensor->n_bytes > n_bytes - base - offsets[i])
            status = elutq_fail(error, ELUTQ_ERROR_FORMAT,
                                "tensor %.*s lies past the end of the file; it is cut short, copy or download it again", n_name,
                                tensor->name.bytes);
        else if (offsets[i] % ELUTQ_GGUF_ALIGNMENT != 0)
            status = elutq_fail(error, ELUTQ_ERROR_FORMAT, "tensor %.*s does not begin at a multiple of %d bytes", n_name,
                                tensor->name.bytes, ELUTQ_GGUF_ALIGNMENT);
        else if (offsets[i] < previous_end)
            status = elutq_fail(error, ELUTQ_ERROR_FORMAT, "tensor %.*s begins before the end of the one before it", n_name,
                                tensor->name.bytes);
        if (status != ELUTQ_OK)
            break;
        tensor->data = gguf->mapping.data + base + offsets[i];
        previous_end = offsets[i] + tensor->n_bytes;
    }
    free(offsets);
    return status;
}

static int parse(struct elutq_gguf *gguf, const struct elutq_error *error) {
    struct cursor cursor = {gguf->mapping.data, gguf->mapping.data + gguf->mapping.n_bytes};
    uint32_t magic, version;
    if (!read_bytes(&cursor, &magic, sizeof magic) || magic != ELUTQ_GGUF_MAGIC)
        return elutq_fail(error, ELUTQ_ERROR_FORMAT, "not a GGUF file (wrong magic); make one with elutq quantize");
    if (!read_bytes(&cursor, &version, sizeof version) || version != ELUTQ_GGUF_VERSION)
        return elutq_fail(error, ELUTQ_ERROR_FORMAT, "not GGUF version 3");
    if (!read_bytes(&cursor, &gguf->n_tensors, 8) || !read_bytes(&cursor, &gguf->n_metadata, 8))
        return elutq_fail(error, ELUTQ_ERROR_FORMAT, "the file is cut short in its header");
    if (gguf->n_tensors > ELUTQ_MAX_TENSORS || gguf->n_metadata > ELUTQ_MAX_METADATA_ENTRIES)
        return elutq_fail(error, ELUTQ_ERROR_FORMAT, "impossible number of tensors or metadata entries");
    gguf->metadata = calloc(gguf->n_metadata + 1, sizeof *gguf->metadata);
    gguf->tensors = calloc(gguf->n_tensors + 1, sizeof *gguf->tensors);
    if (gguf->metadata == NULL || gguf->tensors == NULL)
        return elutq_fail(error, ELUTQ_ERROR_MEMORY, "out of memory for the file's header");
    for (uint64_t i = 0; i < gguf->n_metadata; i++)
        if (!read_metadata(&cursor, &gguf->metadata[i]))
            return elutq_fail(error, ELUTQ_ERROR_FORMAT, "the metadata is damaged or cut short at entry %llu",
                              (unsigned long long)i);
    uint32_t alignment;
    if (!elutq_gguf_u32(gguf, "general.alignment", &alignment) || alignment != ELUTQ_GGUF_ALIGNMENT)
        return elutq_fail(error, ELUTQ_ERROR_FORMAT, "general.alignment is not %d; this file was not written by elutq",
                          ELUTQ_GGUF_ALIGNMENT);
    const int status = read_tensors(gguf, &cursor, error);
    return status != ELUTQ_OK ? status : check_names(gguf, error);
}

/* What is before the first tensor's data. */
static size_t header_bytes(const struct elutq_gguf *gguf) {
    return gguf->n_tensors > 0 ? (size_t)(gguf->tensors[0].data - gguf->mapping.data) : gguf->mapping.n_bytes;
}

int elutq_gguf_open(const char *path, struct elutq_gguf *gguf, const struct elutq_error *error) {
    *gguf = (struct elutq_gguf){.mapping = ELUTQ_NO_MAPPING};
    int status = elutq_mapping_open(path, HEADER_BYTES, &gguf->mapping, error);
    if (status == ELUTQ_OK)
        status = parse(gguf, error);
    if (status == ELUTQ_OK)
        status = elutq_mapping_remember(&gguf->mapping, header_bytes(gguf), error);
    if (gguf->mapping.data != NULL) { /* what was read counts only if the file could be read */
        const int change = elutq_mapping_check(&gguf->mapping, error);
        status = change != ELUTQ_OK ? change : status;
    }
    if (status != ELUTQ_OK)
        elutq_gguf_close(gguf);
    return status;
}

void elutq_gguf_close(struct elutq_gguf *gguf) {
    elutq_mapping_close(&gguf->mapping);
    free(gguf->metadata);
    free(gguf->tensors);
    *gguf = (struct elutq_gguf){.mapping = ELUTQ_NO_MAPPING};
}

bool elutq_text_equals(struct elutq_text text, const char *string) {
    return text.n_bytes == strlen(string) && memcmp(text.bytes, string, text.n_bytes) == 0;
}

const struct elutq_metadata *elutq_gguf_metadata(const struct elutq_gguf *gguf, const char *key) {
    for (uint64_t i = 0; i < gguf->n_metadata; i++)
        if (elutq_text_equals(gguf->metadata[i].key, key))
            return &gguf->metadata[i];
    return NULL;
}

const struct elutq_tensor *elutq_gguf_tensor(const struct elutq_gguf *gguf, const char *name) {
    for (uint64_t i = 0; i < gguf->n_tensors; i++)
        if (elutq_text_equals(gguf->tensors[i].name, name))
            return &gguf->tensors[i];
    return NULL;
}

bool elutq_gguf_u32(const struct elutq_gguf *gguf, const char *key, uint32_t *value) {
    const struct elutq_metadata *entry = elutq_gguf_metadata(gguf, key);
    if (entry == NULL || entry->type != GGUF_U32)
        return false;
    *value = elutq_read_u32(entry->value);
    return true;
}

bool elutq_gguf_f32(const struct elutq_gguf *gguf, const char *key, float *value) {
    const struct elutq_metadata *entry = elutq_gguf_metadata(gguf, key);
    if (entry == NULL || entry->type != GGUF_F32)
        return false;
    memcpy(value, entry->value, sizeof *value);
    return true;
}

bool elutq_gguf_bool(const struct elutq_gguf *gguf, const char *key, bool *value) {
    const struct elutq_metadata *entry = elutq_gguf_metadata(gguf, key);
    if (entry == NULL || entry->type != GGUF_BOOL)
        return false;
    *value = *entry->value != 0;
    return true;
}

bool elutq_gguf_string(const struct elutq_gguf *gguf, const char *key, struct elutq_text *value) {
    const struct elutq_metadata *entry = elutq_gguf_metadata(gguf, key);
    if (entry == NULL || entry->type != GGUF_STRING)
        return false;
    const uint8_t *cursor = entry->value;
    *value = elutq_gguf_next_string(gguf, &cursor);
    return true;
}

static bool find_array(const struct elutq_gguf *gguf, const char *key, uint32_t element_type, const uint8_t **values,
                       uint64_t *n_values) {
    const struct elutq_metadata *entry = elutq_gguf_metadata(gguf, key);
    if (entry == NULL || entry->type != GGUF_ARRAY || entry->element_type != element_type)
        return false;
    *values = entry->value;
    *n_values = entry->n_elements;
    return true;
}

bool elutq_gguf_u32_array(const struct elutq_gguf *gguf, const char *key, const uint8_t **values, uint64_t *n_values) {
    return find_array(gguf, key, GGUF_U32, values, n_values);
}

bool elutq_gguf_i32_array(const struct elutq_gguf *gguf, const char *key, const uint8_t **values, uint64_t *n_values) {
    return find_array(gguf, key, GGUF_I32, values, n_values);
}

bool elutq_gguf_bool_array(const struct elutq_gguf *gguf, const char *key, const uint8_t **values, uint64_t *n_values) {
    return find_array(gguf, key, GGUF_BOOL, values, n_values);
}

bool elutq_gguf_string_array(const struct elutq_gguf *gguf, const char *key, const uint8_t **cursor, uint64_t *n_values) {
    return find_array(gguf, key, GGUF_STRING, cursor, n_values);
}

uint32_t elutq_read_u32(const uint8_t *bytes) {
    uint32_t value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

/* Lengths were checked when the file was opened; they are again, because another process may have written to it since. */
struct elutq_text elutq_gguf_next_string(const struct elutq_gguf *gguf, const uint8_t **at) {
    struct cursor cursor = {*at, gguf->mapping.data + gguf->mapping.n_bytes};
    struct elutq_text text;
    if (!read_text(&cursor, &text))
        return (struct elutq_text){"", 0};
    *at = cursor.at;
    return text;
}
