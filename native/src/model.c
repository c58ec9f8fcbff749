/* Opening a model file, and what it tells of the model in it. */
#include "model.h"

#include <stdlib.h>

#include "hlq_block.h"
#include "kernel_sets.h"
#include "loader.h"

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
        elutq_load_tensors(&loader);
    if (loader.status == ELUTQ_OK)
        elutq_refuse_unknown_tensors(&loader);
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

unsigned elutq_layer_matrices(const struct elutq_model *model, uint32_t i,
                              struct elutq_stored_matrix stored[ELUTQ_LAYER_MATRICES]) {
    const struct elutq_layer *layer = &model->layers[i];
    const struct elutq_config *config = &model->config;
    const struct elutq_linear *linears[] = {&layer->q, &layer->k, &layer->v, &layer->o, &layer->gate, &layer->up, &layer->down};
    const struct elutq_linear *stacks[] = {&layer->expert_gate, &layer->expert_up, &layer->expert_down};
    unsigned n = 0;
    for (size_t j = 0; j < sizeof linears / sizeof linears[0]; j++)
        if (linears[j]->weight.data != NULL)
            stored[n++] = (struct elutq_stored_matrix){&linears[j]->weight, false, 1, 1};
    for (size_t j = 0; j < sizeof stacks / sizeof stacks[0] && layer->router != NULL; j++)
        stored[n++] =
            (struct elutq_stored_matrix){&stacks[j]->weight, true, config->n_experts, config->n_experts_used};
    return n;
}

uint64_t elutq_router_bytes(const struct elutq_model *model, uint32_t i) {
    const struct elutq_config *config = &model->config;
    return model->layers[i].router == NULL ? 0 : (uint64_t)config->n_experts * config->hidden_size * sizeof(float);
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
        .sliding_window = config->sliding_window,
        .n_sliding_layers = config->n_sliding_layers,
        .file_bytes = model->gguf.mapping.n_bytes,
        .isa = model->kernels->name,
    };
    info->bytes_per_token =
        elutq_matrix_bytes(&model->head.weight) + elutq_matrix_bytes(&model->embedding) / config->vocab_size;
    for (uint32_t i = 0; i < config->n_layers; i++) {
        struct elutq_stored_matrix stored[ELUTQ_LAYER_MATRICES];
        const unsigned n = elutq_layer_matrices(model, i, stored);
        info->bytes_per_token += elutq_router_bytes(model, i);
        for (unsigned j = 0; j < n; j++)
            info->bytes_per_token += stored[j].n_read * elutq_matrix_bytes(stored[j].matrix);
    }
}
