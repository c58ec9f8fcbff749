/* Matrices of a model file: what the hlq.tensor arrays say of them, held against the tensors themselves. */
#include "hlq_block.h"
#include "loader.h"

/* The parallel hlq.tensor arrays; those of version 1 are the first four. */
enum { BITS, GROUP_SIZES, ROWS, COLUMNS, KINDS, EXPONENTS, CENTERS, N_HLQ_KEYS };

static const char *const HLQ_KEYS[N_HLQ_KEYS] = {
    "hlq.tensor.bits",  "hlq.tensor.group_sizes", "hlq.tensor.rows",    "hlq.tensor.columns",
    "hlq.tensor.kinds", "hlq.tensor.exponents",   "hlq.tensor.centers",
};

/* Finds the arrays and, among their names, a matrix's place in them. */
static bool find_hlq_entry(struct elutq_loader *loader, const char *name, uint32_t values[N_HLQ_KEYS]) {
    const struct elutq_gguf *gguf = &loader->model->gguf;
    const uint8_t *cursor, *columns[N_HLQ_KEYS];
    const int n_keys = loader->version == 1 ? KINDS : N_HLQ_KEYS;
    uint64_t n_names, n_values, i = 0;
    if (!elutq_gguf_string_array(gguf, "hlq.tensor.names", &cursor, &n_names))
        return elutq_load_fail(loader, "is missing from the metadata or has the wrong type", "hlq.tensor.names");
    for (int key = 0; key < n_keys; key++) {
        const bool found = key == CENTERS ? elutq_gguf_i32_array(gguf, HLQ_KEYS[key], &columns[key], &n_values)
                                          : elutq_gguf_u32_array(gguf, HLQ_KEYS[key], &columns[key], &n_values);
        if (!found || n_values != n_names)
            return elutq_load_fail(loader, "is missing, or has not one integer for each of hlq.tensor.names", HLQ_KEYS[key]);
    }
    while (i < n_names && !elutq_text_equals(elutq_gguf_next_string(gguf, &cursor), name))
        i++;
    if (i == n_names)
        return elutq_load_fail(loader, "is not among hlq.tensor.names", name);
    for (int key = 0; key < N_HLQ_KEYS; key++)
        values[key] = key < n_keys ? elutq_read_u32(columns[key] + 4 * i) : 0;
    return true;
}

/* Whether a matrix's kind is one of the six, with an exponent and a center that it can have. */
static bool is_sound_kind(const struct elutq_matrix *matrix) {
    if (!elutq_is_kind(matrix->kind) || matrix->exponent > (matrix->kind & ELUTQ_KIND_BYTES ? ELUTQ_MAX_EXPONENT : 0))
        return false;
    if ((matrix->kind & (ELUTQ_KIND_EVEN | ELUTQ_KIND_CENTERS)) == ELUTQ_KIND_EVEN)
        return matrix->center >= INT8_MIN && matrix->center <= INT8_MAX;
    return matrix->center == 0;
}

/* Fills in what the hlq.tensor arrays say of a matrix, and checks that they tell the shape that is needed. */
static bool hlq_entry(struct elutq_loader *loader, const char *name, struct elutq_matrix *matrix) {
    uint32_t values[N_HLQ_KEYS];
    if (!find_hlq_entry(loader, name, values))
        return false;
    matrix->bits = values[BITS];
    matrix->group_size = values[GROUP_SIZES];
    matrix->kind = values[KINDS];
    matrix->exponent = values[EXPONENTS];
    matrix->center = (int32_t)values[CENTERS];
    if (values[ROWS] != matrix->n_rows || values[COLUMNS] != matrix->n_columns)
        return elutq_load_fail(loader, "does not have the shape the metadata gives it", name);
    if (matrix->bits < ELUTQ_HLQ_MIN_BITS || matrix->bits > ELUTQ_HLQ_MAX_BITS)
        return elutq_load_fail(loader, "has a number of bits that no HLQ matrix has", name);
    const uint32_t largest = loader->version == 1 ? 128 : ELUTQ_HLQ_MAX_GROUP_SIZE;
    if ((matrix->group_size != 32 && matrix->group_size != 64 && matrix->group_size != 128 && matrix->group_size != 256) ||
        matrix->group_size > largest || matrix->n_columns % matrix->group_size != 0)
        return elutq_load_fail(
            loader, "has a group size that is not 32, 64, 128 or in version 2 256, or that does not divide its columns", name);
    return is_sound_kind(matrix) || elutq_load_fail(loader, "has a kind, exponent or center that no HLQ matrix has", name);
}

const struct elutq_tensor *elutq_find_tensor(struct elutq_loader *loader, const char *name) {
    const struct elutq_tensor *tensor = elutq_gguf_tensor(&loader->model->gguf, name);
    if (tensor != NULL)
        loader->used[tensor - loader->model->gguf.tensors] = true;
    return tensor;
}

bool elutq_load_matrix(struct elutq_loader *loader, const char *name, uint32_t n_experts, uint32_t n_rows,
                       uint32_t n_columns, struct elutq_matrix *matrix) {
    const struct elutq_tensor *tensor = elutq_find_tensor(loader, name);
    const uint32_t n_stored = n_experts == 0 ? 1 : n_experts;
    *matrix = (struct elutq_matrix){.n_rows = n_rows, .n_columns = n_columns};
    if (tensor == NULL)
        return elutq_load_fail(loader, "is missing", name);
    matrix->data = tensor->data;
    if (tensor->type == ELUTQ_GGML_TYPE_F16) {
        matrix->bits = 16;
        if (tensor->n_dims != (n_experts == 0 ? 2 : 3) || tensor->dims[0] != n_columns || tensor->dims[1] != n_rows ||
            tensor->dims[2] != n_stored)
            return elutq_load_fail(loader, "does not have the shape the metadata gives it", name);
        return true;
    }
    if (tensor->type != ELUTQ_GGML_TYPE_I8)
        return elutq_load_fail(loader, "is neither an HLQ nor an fp16 matrix", name);
    if (!hlq_entry(loader, name, matrix))
        return false;
    uint64_t n_blocks = (uint64_t)elutq_matrix_tiles(matrix) * elutq_matrix_groups(matrix);
    if (tensor->dims[0] != elutq_matrix_block_bytes(matrix) || tensor->dims[1] != n_blocks || tensor->dims[2] != n_stored ||
        tensor->n_bytes != elutq_matrix_bytes(matrix) * n_stored)
        return elutq_load_fail(loader, "does not have the number of bytes that its shape, bits and group size need", name);
    return true;
}

bool elutq_hlq_arrays_fit(const struct elutq_gguf *gguf) {
    const uint8_t *names;
    uint64_t n_names = 0, n_matrices = 0;
    for (uint64_t i = 0; i < gguf->n_tensors; i++)
        n_matrices += gguf->tensors[i].type == ELUTQ_GGML_TYPE_I8;
    return (elutq_gguf_string_array(gguf, "hlq.tensor.names", &names, &n_names) || n_matrices == 0) && n_names == n_matrices;
}
