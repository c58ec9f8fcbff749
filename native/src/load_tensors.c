/* The tensors of a model: which ones there must be, by its configuration, and that there are no others. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "loader.h"

/* Floats, [n_rows][n] or, with n_rows 0, a vector [n]; NULL and no error when they are optional and absent. */
static const float *load_floats(struct elutq_loader *loader, const char *name, uint32_t n_rows, uint32_t n, bool required) {
    const struct elutq_tensor *tensor = elutq_find_tensor(loader, name);
    if (tensor == NULL) {
        if (required)
            elutq_load_fail(loader, "is missing", name);
        return NULL;
    }
    const uint64_t n_values = n_rows == 0 ? n : (uint64_t)n_rows * n;
    if (tensor->type != ELUTQ_GGML_TYPE_F32 || tensor->n_dims != (n_rows == 0 ? 1 : 2) || tensor->dims[0] != n ||
        tensor->n_bytes != n_values * sizeof(float)) {
        elutq_load_fail(loader,
                        n_rows == 0 ? "is not a float vector of the length the model needs"
                                    : "is not a float matrix of the shape the model needs",
                        name);
        return NULL;
    }
    const float *values = (const float *)tensor->data;
    for (uint64_t i = 0; i < n_values; i++)
        if (!isfinite(values[i])) {
            elutq_load_fail(loader, "holds a value that is not a finite number", name);
            return NULL;
        }
    return values;
}

static const float *load_vector(struct elutq_loader *loader, const char *name, uint32_t n, bool required) {
    return load_floats(loader, name, 0, n, required);
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
    elutq_load_matrix(loader, full_name, 0, n_rows, n_columns, &linear->weight);
    snprintf(full_name, sizeof full_name, "blk.%u.%s.bias", layer, name);
    linear->bias = load_vector(loader, full_name, n_rows, false);
}

static void load_experts_of(struct elutq_loader *loader, uint32_t layer, const char *name, uint32_t n_rows,
                            uint32_t n_columns, struct elutq_linear *linear) {
    char full_name[ELUTQ_KEY_BYTES];
    snprintf(full_name, sizeof full_name, "blk.%u.%s_exps.weight", layer, name);
    elutq_load_matrix(loader, full_name, loader->model->config.n_experts, n_rows, n_columns, &linear->weight);
}

/* What a layer's router is called. */
static void name_router(uint32_t layer, char name[ELUTQ_KEY_BYTES]) {
    snprintf(name, ELUTQ_KEY_BYTES, "blk.%u.ffn_gate_inp.weight", layer);
}

static void refuse_unused_experts(struct elutq_loader *loader) {
    const struct elutq_config *config = &loader->model->config;
    char name[ELUTQ_KEY_BYTES];
    for (uint32_t i = 0; i < config->n_layers; i++) {
        name_router(i, name);
        if (config->n_experts == 0 || elutq_gguf_tensor(&loader->model->gguf, name) != NULL)
            return;
    }
    elutq_load_fail(loader, "is above 0, but no layer has a router", "expert_count");
}

/* A layer that has a router has experts, and an MLP only where one is shared. */
static void load_mlp(struct elutq_loader *loader, uint32_t i) {
    const struct elutq_config *config = &loader->model->config;
    struct elutq_layer *layer = &loader->model->layers[i];
    const uint32_t hidden = config->hidden_size, inner = config->intermediate_size, shared = config->shared_expert_size;
    char name[ELUTQ_KEY_BYTES];
    name_router(i, name);
    if (config->n_experts > 0)
        layer->router = load_floats(loader, name, config->n_experts, hidden, false);
    if (layer->router == NULL) {
        load_linear(loader, i, "ffn_gate", inner, hidden, &layer->gate);
        load_linear(loader, i, "ffn_up", inner, hidden, &layer->up);
        load_linear(loader, i, "ffn_down", hidden, inner, &layer->down);
        return;
    }
    load_experts_of(loader, i, "ffn_gate", config->expert_size, hidden, &layer->expert_gate);
    load_experts_of(loader, i, "ffn_up", config->expert_size, hidden, &layer->expert_up);
    load_experts_of(loader, i, "ffn_down", hidden, config->expert_size, &layer->expert_down);
    if (shared == 0)
        return;
    layer->shared_gate = load_layer_vector(loader, i, "ffn_gate_inp_shexp.weight", hidden, true);
    load_linear(loader, i, "ffn_gate_shexp", shared, hidden, &layer->gate);
    load_linear(loader, i, "ffn_up_shexp", shared, hidden, &layer->up);
    load_linear(loader, i, "ffn_down_shexp", hidden, shared, &layer->down);
}

static void load_layer(struct elutq_loader *loader, uint32_t i) {
    const struct elutq_config *config = &loader->model->config;
    struct elutq_layer *layer = &loader->model->layers[i];
    const uint32_t hidden = config->hidden_size;
    const uint32_t q_rows = config->n_heads * config->head_dim, kv_rows = config->n_kv_heads * config->head_dim;
    layer->attn_post_norm = load_layer_vector(loader, i, "post_attention_norm.weight", hidden, false);
    layer->ffn_post_norm = load_layer_vector(loader, i, "post_ffw_norm.weight", hidden, false);
    layer->attn_norm = load_layer_vector(loader, i, "attn_norm.weight", hidden, layer->attn_post_norm == NULL);
    layer->ffn_norm = load_layer_vector(loader, i, "ffn_norm.weight", hidden, layer->ffn_post_norm == NULL);
    const bool spans = config->norm_spans_heads;
    layer->q_norm = load_layer_vector(loader, i, "attn_q_norm.weight", spans ? q_rows : config->head_dim, false);
    layer->k_norm = load_layer_vector(loader, i, "attn_k_norm.weight", spans ? kv_rows : config->head_dim, false);
    if (loader->status == ELUTQ_OK && spans && (layer->q_norm == NULL) != (layer->k_norm == NULL))
        loader->status = elutq_fail(loader->error, ELUTQ_ERROR_FORMAT,
                                    "blk.%u has one of attn_q_norm.weight and attn_k_norm.weight, where both span all heads: "
                                    "it needs the other, too", i);
    load_linear(loader, i, "attn_q", q_rows, hidden, &layer->q);
    load_linear(loader, i, "attn_k", kv_rows, hidden, &layer->k);
    load_linear(loader, i, "attn_v", kv_rows, hidden, &layer->v);
    load_linear(loader, i, "attn_output", hidden, q_rows, &layer->o);
    load_mlp(loader, i);
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

void elutq_load_tensors(struct elutq_loader *loader) {
    struct elutq_model *model = loader->model;
    const struct elutq_config *config = &model->config;
    if (!elutq_gguf_u32(&model->gguf, "hlq.version", &loader->version) || loader->version < 1 ||
        loader->version > ELUTQ_HLQ_VERSION) {
        elutq_load_fail(
            loader, "is missing or not 1 or 2; this file was written by another version of elutq, or by another tool",
            "hlq.version");
        return;
    }
    if (!elutq_hlq_arrays_fit(&model->gguf)) {
        elutq_load_fail(loader, "does not name as many tensors as there are HLQ matrices", "hlq.tensor.names");
        return;
    }
    loader->used = calloc(model->gguf.n_tensors + 1, sizeof *loader->used);
    model->layers = calloc(config->n_layers, sizeof *model->layers);
    if (loader->used == NULL || model->layers == NULL) {
        loader->status = elutq_fail(loader->error, ELUTQ_ERROR_MEMORY, "out of memory for %u layers", config->n_layers);
        return;
    }
    elutq_load_matrix(loader, "token_embd.weight", 0, config->vocab_size, config->hidden_size, &model->embedding);
    if (elutq_gguf_tensor(&model->gguf, "output.weight") != NULL)
        elutq_load_matrix(loader, "output.weight", 0, config->vocab_size, config->hidden_size, &model->head.weight);
    else
        model->head.weight = model->embedding;
    model->output_norm = load_vector(loader, "output_norm.weight", config->hidden_size, true);
    load_rope_divisors(loader);
    elutq_load_layer_kinds(loader);
    model->config.norm_spans_heads = find_wide_norm(loader);
    refuse_unused_experts(loader);
    for (uint32_t i = 0; i < config->n_layers && loader->status == ELUTQ_OK; i++)
        load_layer(loader, i);
}

void elutq_refuse_unknown_tensors(struct elutq_loader *loader) {
    const struct elutq_gguf *gguf = &loader->model->gguf;
    for (uint64_t i = 0; i < gguf->n_tensors && loader->status == ELUTQ_OK; i++)
        if (!loader->used[i])
            loader->status = elutq_fail(loader->error, ELUTQ_ERROR_FORMAT,
                                        "tensor %.*s is not part of the model that the metadata describe",
                                        (int)gguf->tensors[i].name.n_bytes, gguf->tensors[i].name.bytes);
}
