#include "model.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hlq_block.h"
#include "kernel_sets.h"
#include "loader.h"

/* ---- tensors ---- */

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
    const bool even = (matrix->kind & ELUTQ_KIND_EVEN) != 0, centers = (matrix->kind & ELUTQ_KIND_CENTERS) != 0;
    if (matrix->kind > (ELUTQ_KIND_BYTES | ELUTQ_KIND_EVEN | ELUTQ_KIND_CENTERS) || (centers && !even))
        return false;
    if (matrix->exponent > (matrix->kind & ELUTQ_KIND_BYTES ? ELUTQ_MAX_EXPONENT : 0))
        return false;
    return even && !centers ? matrix->center >= INT8_MIN && matrix->center <= INT8_MAX : matrix->center == 0;
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

/* A tensor of the model; NULL when the file lacks it. */
static const struct elutq_tensor *find_tensor(struct elutq_loader *loader, const char *name) {
    const struct elutq_tensor *tensor = elutq_gguf_tensor(&loader->model->gguf, name);
    if (tensor != NULL)
        loader->used[tensor - loader->model->gguf.tensors] = true;
    return tensor;
}

static bool load_matrix(struct elutq_loader *loader, const char *name, uint32_t n_rows, uint32_t n_columns,
                        struct elutq_matrix *matrix) {
    const struct elutq_tensor *tensor = find_tensor(loader, name);
    *matrix = (struct elutq_matrix){.n_rows = n_rows, .n_columns = n_columns};
    if (tensor == NULL)
        return elutq_load_fail(loader, "is missing", name);
    matrix->data = tensor->data;
    if (tensor->type == ELUTQ_GGML_TYPE_F16) {
        matrix->bits = 16;
        if (tensor->n_dims != 2 || tensor->dims[0] != n_columns || tensor->dims[1] != n_rows)
            return elutq_load_fail(loader, "does not have the shape the metadata gives it", name);
        return true;
    }
    if (tensor->type != ELUTQ_GGML_TYPE_I8)
        return elutq_load_fail(loader, "is neither an HLQ nor an fp16 matrix", name);
    if (!hlq_entry(loader, name, matrix))
        return false;
    uint64_t n_blocks = (uint64_t)elutq_matrix_tiles(matrix) * elutq_matrix_groups(matrix);
    if (tensor->dims[0] != elutq_matrix_block_bytes(matrix) || tensor->dims[1] != n_blocks ||
        tensor->n_bytes != tensor->dims[0] * n_blocks)
        return elutq_load_fail(loader, "does not have the number of bytes that its shape, bits and group size need", name);
    return true;
}

/* A vector of floats; NULL and no error when it is optional and absent. */
static const float *load_vector(struct elutq_loader *loader, const char *name, uint32_t n, bool required) {
    const struct elutq_tensor *tensor = find_tensor(loader, name);
    if (tensor == NULL) {
        if (required)
            elutq_load_fail(loader, "is missing", name);
        return NULL;
    }
    if (tensor->type != ELUTQ_GGML_TYPE_F32 || tensor->n_dims != 1 || tensor->dims[0] != n) {
        elutq_load_fail(loader, "is not a float vector of the length the model needs", name);
        return NULL;
    }
    const float *values = (const float *)tensor->data;
    for (uint32_t i = 0; i < n; i++)
        if (!isfinite(values[i])) {
            elutq_load_fail(loader, "holds a value that is not a finite number", name);
            return NULL;
        }
    return values;
}

static const float *load_layer_vector(struct elutq_loader *loader, uint32_t layer, const char *name, uint32_t n,
                                      bool required) {
    char full_name[ELUTQ_KEY_BYTES];
    snprintf(full_name, sizeof full_name, "blk.%u.%s", layer, name);
    return load_vector(loader, full_name, n, required);
}

static void load_linear(struct elutq_loader *loader, uint32_t layer, const char *name, uint32_t n_rows, uint32_t n_columns,
                        struct elutq_linear *linear) {
    char full_name[ELUTQ_KEY_BYTES];
    snprintf(full_name, sizeof full_name, "blk.%u.%s.weight", layer, name);
    load_matrix(loader, full_name, n_rows, n_columns, &linear->weight);
    snprintf(full_name, sizeof full_name, "blk.%u.%s.bias", layer, name);
    linear->bias = load_vector(loader, full_name, n_rows, false);
}

static void load_layer(struct elutq_loader *loader, uint32_t i) {
    const struct elutq_config *config = &loader->model->config;
    struct elutq_layer *layer = &loader->model->layers[i];
    const uint32_t hidden = config->hidden_size, inner = config->intermediate_size;
    const uint32_t q_rows = config->n_heads * config->head_dim, kv_rows = config->n_kv_heads * config->head_dim;
    layer->attn_post_norm = load_layer_vector(loader, i, "post_attention_norm.weight", hidden, false);
    layer->ffn_post_norm = load_layer_vector(loader, i, "post_ffw_norm.weight", hidden, false);
    layer->attn_norm = load_layer_vector(loader, i, "attn_norm.weight", hidden, layer->attn_post_norm == NULL);
    layer->ffn_norm = load_layer_vector(loader, i, "ffn_norm.weight", hidden, layer->ffn_post_norm == NULL);
    const bool spans = config->norm_spans_heads;
    layer->q_norm = load_layer_vector(loader, i, "attn_q_norm.weight", spans ? q_rows : config->head_dim, false);
    layer->k_norm = load_layer_vector(loader, i, "attn_k_norm.weight", spans ? kv_rows : config->head_dim, false);
    load_linear(loader, i, "attn_q", q_rows, hidden, &layer->q);
    load_linear(loader, i, "attn_k", kv_rows, hidden, &layer->k);
    load_linear(loader, i, "attn_v", kv_rows, hidden, &layer->v);
    load_linear(loader, i, "attn_output", hidden, q_rows, &layer->o);
    load_linear(loader, i, "ffn_gate", inner, hidden, &layer->gate);
    load_linear(loader, i, "ffn_up", inner, hidden, &layer->up);
    load_linear(loader, i, "ffn_down", hidden, inner, &layer->down);
}

static const float *load_divisors(struct elutq_loader *loader, const char *name, bool required) {
    const uint32_t n = loader->model->config.rope_dim / 2;
    const float *divisors = load_vector(loader, name, n, required);
    for (uint32_t i = 0; divisors != NULL && i < n; i++)
        if (!(divisors[i] > 0))
            elutq_load_fail(loader, "holds a divisor that is not positive", name);
    return divisors;
}

static void load_rope_divisors(struct elutq_loader *loader) {
    struct elutq_model *model = loader->model;
    if (model->config.rope_context == 0) {
        model->rope_divisors = load_divisors(loader, "rope_freqs.weight", false);
        return;
    }
    model->rope_divisors = load_divisors(loader, "rope_factors_short.weight", true);
    model->rope_long_divisors = load_divisors(loader, "rope_factors_long.weight", true);
}

/* Whether the norm of the first block's queries is as wide as all of its heads. */
static bool find_wide_norm(const struct elutq_loader *loader) {
    const struct elutq_tensor *norm = elutq_gguf_tensor(&loader->model->gguf, "blk.0.attn_q_norm.weight");
    return norm != NULL && loader->model->config.n_heads > 1 && norm->dims[0] != loader->model->config.head_dim;
}

/* The hlq.tensor arrays describe the HLQ tensors and nothing else, so that looking one up takes no longer than it must. */
static bool hlq_arrays_fit(const struct elutq_gguf *gguf) {
    const uint8_t *names;
    uint64_t n_names = 0, n_matrices = 0;
    for (uint64_t i = 0; i < gguf->n_tensors; i++)
        n_matrices += gguf->tensors[i].type == ELUTQ_GGML_TYPE_I8;
    return (elutq_gguf_string_array(gguf, "hlq.tensor.names", &names, &n_names) || n_matrices == 0) && n_names == n_matrices;
}

static void load_tensors(struct elutq_loader *loader) {
    struct elutq_model *model = loader->model;
    const struct elutq_config *config = &model->config;
    if (!elutq_gguf_u32(&model->gguf, "hlq.version", &loader->version) || loader->version < 1 ||
        loader->version > ELUTQ_HLQ_VERSION) {
        elutq_load_fail(
            loader, "is missing or not 1 or 2; this file was written by another version of elutq, or by another tool",
            "hlq.version");
        return;
    }
    if (!hlq_arrays_fit(&model->gguf)) {
        elutq_load_fail(loader, "does not name as many tensors as there are HLQ matrices", "hlq.tensor.names");
        return;
    }
    loader->used = calloc(model->gguf.n_tensors + 1, sizeof *loader->used);
    model->layers = calloc(config->n_layers, sizeof *model->layers);
    if (loader->used == NULL || model->layers == NULL) {
        loader->status = elutq_fail(loader->error, ELUTQ_ERROR_MEMORY, "out of memory for %u layers", config->n_layers);
        return;
    }
    load_matrix(loader, "token_embd.weight", config->vocab_size, config->hidden_size, &model->embedding);
    if (elutq_gguf_tensor(&model->gguf, "output.weight") != NULL)
        load_matrix(loader, "output.weight", config->vocab_size, config->hidden_size, &model->head.weight);
    else
        model->head.weight = model->embedding;
    model->output_norm = load_vector(loader, "output_norm.weight", config->hidden_size, true);
    load_rope_divisors(loader);
    elutq_load_layer_kinds(loader);
    model->config.norm_spans_heads = find_wide_norm(loader);
    for (uint32_t i = 0; i < config->n_layers && loader->status == ELUTQ_OK; i++)
        load_layer(loader, i);
}

static void refuse_unknown_tensors(struct elutq_loader *loader) {
    const struct elutq_gguf *gguf = &loader->model->gguf;
    for (uint64_t i = 0; i < gguf->n_tensors && loader->status == ELUTQ_OK; i++)
        if (!loader->used[i])
            loader->status = elutq_fail(loader->error, ELUTQ_ERROR_FORMAT,
                                        "tensor %.*s is not part of the model that the metadata describe",
                                        (int)gguf->tensors[i].name.n_bytes, gguf->tensors[i].name.bytes);
}

/* ---- public ---- */

static const struct elutq_kernels *choose_kernels(const char *isa) {
    if (isa != NULL)
        return elutq_kernels_named(isa);
    unsigned i = 0;
    while (!elutq_kernels_supported(elutq_kernels_at(i)))
        i++; /* the last set, scalar, runs everywhere */
    return elutq_kernels_at(i);
}

int elutq_model_open(const char *path, const char *isa, elutq_model **out, char *error, size_t error_bytes) {
    const struct elutq_error report = {error, error_bytes};
    *out = NULL;
    const struct elutq_kernels *kernels = choose_kernels(isa);
    if (kernels == NULL)
        return elutq_fail(&report, ELUTQ_ERROR_ARGUMENT, "kernels \"%.32s\" do not exist here or this CPU cannot run them",
                          isa);
    struct elutq_model *model = calloc(1, sizeof *model);
    if (model == NULL)
        return elutq_fail(&report, ELUTQ_ERROR_MEMORY, "out of memory");
    model->gguf.mapping = ELUTQ_NO_MAPPING;
    model->kernels = kernels;
    atomic_init(&model->n_owners, 1);
    struct elutq_loader loader = {.model = model, .error = &report};
    loader.status = elutq_gguf_open(path, &model->gguf, &report);
    if (loader.status == ELUTQ_OK)
        elutq_load_config(&loader);
    if (loader.status == ELUTQ_OK)
        load_tensors(&loader);
    if (loader.status == ELUTQ_OK)
        refuse_unknown_tensors(&loader);
    free(loader.used);
    if (loader.status != ELUTQ_OK) {
        elutq_model_close(model);
        return loader.status;
    }
    *out = model;
    return ELUTQ_OK;
}

void elutq_model_close(elutq_model *model) {
    if (model == NULL || atomic_fetch_sub(&model->n_owners, 1) > 1)
        return;
    elutq_gguf_close(&model->gguf);
    free(model->layers);
    free(model);
}

static uint64_t matrix_bytes(const struct elutq_matrix *matrix) {
    if (matrix->bits == 16)
        return (uint64_t)matrix->n_rows * matrix->n_columns * sizeof(uint16_t);
    return (uint64_t)elutq_matrix_tiles(matrix) * elutq_matrix_groups(matrix) * elutq_matrix_block_bytes(matrix);
}

void elutq_model_describe(const elutq_model *model, struct elutq_model_info *info) {
    const struct elutq_config *config = &model->config;
    *info = (struct elutq_model_info){
        .vocab_size = config->vocab_size,
        .context_length = config->context_length,
        .hidden_size = config->hidden_size,
        .n_layers = config->n_layers,
        .n_heads = config->n_heads,
        .n_kv_heads = config->n_kv_heads,
        .head_dim = config->head_dim,
        .file_bytes = model->gguf.mapping.n_bytes,
        .isa = model->kernels->name,
    };
    info->bytes_per_token = matrix_bytes(&model->head.weight) + matrix_bytes(&model->embedding) / config->vocab_size;
    for (uint32_t i = 0; i < config->n_layers; i++) {
        const struct elutq_layer *layer = &model->layers[i];
        const struct elutq_linear *linears[] = {&layer->q,    &layer->k,  &layer->v,   &layer->o,
                                                &layer->gate, &layer->up, &layer->down};
        for (size_t j = 0; j < sizeof linears / sizeof linears[0]; j++)
            info->bytes_per_token += matrix_bytes(&linears[j]->weight);
    }
}
