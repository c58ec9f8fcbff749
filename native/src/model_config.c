/* The configuration of a model: what the metadata of its file say, checked key by key. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "loader.h"

bool elutq_load_fail(struct elutq_loader *loader, const char *what, const char *name) {
    if (loader->status == ELUTQ_OK)
        loader->status = elutq_fail(loader->error, ELUTQ_ERROR_FORMAT, "%s %s", name, what);
    return false;
}

/*
 * Its name is the prefix of the keys and nothing more: what a model computes, its keys and tensors say. So a key that is
 * not known here is refused, for it may change that.
 */
static void find_architecture(struct elutq_loader *loader) {
    struct elutq_text name = {"", 0};
    elutq_gguf_string(&loader->model->gguf, "general.architecture", &name);
    if (name.n_bytes > 0 && name.n_bytes < ELUTQ_ARCHITECTURE_BYTES && elutq_text_is_printable(name))
        memcpy(loader->architecture, name.bytes, name.n_bytes);
    else
        elutq_load_fail(loader, "is missing, or no name of an architecture", "general.architecture");
}

static const char *const CONFIG_KEYS[] = {
    "vocab_size",
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.freq_base_swa",
    "rope.layers",
    "rope.scaling.attn_factor",
    "rope.scaling.original_context_length",
    "hidden_activation",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "expert_count",
    "expert_used_count",
    "expert_feed_forward_length",
    "expert_shared_feed_forward_length",
    "expert_weights_norm",
};

static void refuse_unknown_keys(struct elutq_loader *loader) {
    const struct elutq_gguf *gguf = &loader->model->gguf;
    const size_t n_prefix = strlen(loader->architecture);
    for (uint64_t i = 0; i < gguf->n_metadata && loader->status == ELUTQ_OK; i++) {
        const struct elutq_text key = gguf->metadata[i].key;
        if (key.n_bytes <= n_prefix || memcmp(key.bytes, loader->architecture, n_prefix) != 0 || key.bytes[n_prefix] != '.')
            continue;
        const struct elutq_text suffix = {key.bytes + n_prefix + 1, key.n_bytes - n_prefix - 1};
        size_t known = 0;
        while (known < sizeof CONFIG_KEYS / sizeof CONFIG_KEYS[0] && !elutq_text_equals(suffix, CONFIG_KEYS[known]))
            known++;
        if (known == sizeof CONFIG_KEYS / sizeof CONFIG_KEYS[0])
            loader->status = elutq_fail(loader->error, ELUTQ_ERROR_FORMAT,
                                        "%.*s is not known here: a newer elutq may run this model",
                                        elutq_text_is_printable(key) && key.n_bytes < 200 ? (int)key.n_bytes : 0, key.bytes);
    }
}

static void config_u32(struct elutq_loader *loader, const char *suffix, uint32_t maximum, uint32_t *value) {
    char key[ELUTQ_KEY_BYTES];
    snprintf(key, sizeof key, "%s.%s", loader->architecture, suffix);
    if (!elutq_gguf_u32(&loader->model->gguf, key, value))
        elutq_load_fail(loader, "is missing from the metadata or has the wrong type", key);
    else if (*value < 1 || *value > maximum)
        elutq_load_fail(loader, "is out of range", key);
}

static void config_f32(struct elutq_loader *loader, const char *suffix, float *value) {
    char key[ELUTQ_KEY_BYTES];
    snprintf(key, sizeof key, "%s.%s", loader->architecture, suffix);
    if (!elutq_gguf_f32(&loader->model->gguf, key, value))
        elutq_load_fail(loader, "is missing from the metadata or has the wrong type", key);
    else if (!isfinite(*value) || *value <= 0)
        elutq_load_fail(loader, "is out of range", key);
}

static bool has_config(const struct elutq_loader *loader, const char *suffix) {
    char key[ELUTQ_KEY_BYTES];
    snprintf(key, sizeof key, "%s.%s", loader->architecture, suffix);
    return elutq_gguf_metadata(&loader->model->gguf, key) != NULL;
}

static void load_numbers(struct elutq_loader *loader) {
    struct elutq_config *config = &loader->model->config;
    uint32_t value_length = 0;
    config_u32(loader, "vocab_size", ELUTQ_MAX_VOCABULARY, &config->vocab_size);
    config_u32(loader, "context_length", ELUTQ_MAX_CONTEXT, &config->context_length);
    config_u32(loader, "embedding_length", ELUTQ_MAX_WIDTH, &config->hidden_size);
    config_u32(loader, "block_count", ELUTQ_MAX_LAYERS, &config->n_layers);
    config_u32(loader, "feed_forward_length", ELUTQ_MAX_WIDTH, &config->intermediate_size);
    config_u32(loader, "attention.head_count", ELUTQ_MAX_HEADS, &config->n_heads);
    config_u32(loader, "attention.head_count_kv", ELUTQ_MAX_HEADS, &config->n_kv_heads);
    config_u32(loader, "attention.key_length", ELUTQ_MAX_HEAD_DIM, &config->head_dim);
    config_u32(loader, "attention.value_length", ELUTQ_MAX_HEAD_DIM, &value_length);
    config_u32(loader, "rope.dimension_count", ELUTQ_MAX_HEAD_DIM, &config->rope_dim);
    config_f32(loader, "attention.layer_norm_rms_epsilon", &config->rms_norm_eps);
    config_f32(loader, "rope.freq_base", &config->rope_theta);
    if (has_config(loader, "attention.sliding_window"))
        config_u32(loader, "attention.sliding_window", ELUTQ_MAX_CONTEXT, &config->sliding_window);
    if (has_config(loader, "rope.freq_base_swa"))
        config_f32(loader, "rope.freq_base_swa", &config->local_rope_theta);
    if (has_config(loader, "attn_logit_softcapping"))
        config_f32(loader, "attn_logit_softcapping", &config->attention_softcap);
    if (has_config(loader, "final_logit_softcapping"))
        config_f32(loader, "final_logit_softcapping", &config->logit_softcap);
    config->rope_factor = 1;
    if (has_config(loader, "rope.scaling.attn_factor"))
        config_f32(loader, "rope.scaling.attn_factor", &config->rope_factor);
    if (has_config(loader, "rope.scaling.original_context_length"))
        config_u32(loader, "rope.scaling.original_context_length", ELUTQ_MAX_CONTEXT, &config->rope_context);
    if (loader->status != ELUTQ_OK)
        return;
    if (config->n_heads % config->n_kv_heads != 0)
        elutq_load_fail(loader, "is not divisible by attention.head_count_kv", "attention.head_count");
    else if (config->head_dim % 2 != 0 || value_length != config->head_dim)
        elutq_load_fail(loader, "must be even and equal attention.value_length", "attention.key_length");
    else if (config->rope_dim % 2 != 0 || config->rope_dim > config->head_dim)
        elutq_load_fail(loader, "must be even and no more than attention.key_length", "rope.dimension_count");
}

/* Of experts all numbers are there, or none. */
static void load_experts(struct elutq_loader *loader) {
    struct elutq_config *config = &loader->model->config;
    char key[ELUTQ_KEY_BYTES];
    const bool has_norm = has_config(loader, "expert_weights_norm");
    const bool has_shared = has_config(loader, "expert_shared_feed_forward_length");
    if (!has_norm && !has_shared && !has_config(loader, "expert_count") && !has_config(loader, "expert_used_count") &&
        !has_config(loader, "expert_feed_forward_length"))
        return;
    config_u32(loader, "expert_count", ELUTQ_MAX_EXPERTS, &config->n_experts);
    config_u32(loader, "expert_used_count", ELUTQ_MAX_EXPERTS, &config->n_experts_used);
    config_u32(loader, "expert_feed_forward_length", ELUTQ_MAX_WIDTH, &config->expert_size);
    if (has_shared)
        config_u32(loader, "expert_shared_feed_forward_length", ELUTQ_MAX_WIDTH, &config->shared_expert_size);
    if (config->n_experts_used > config->n_experts)
        elutq_load_fail(loader, "is more than expert_count", "expert_used_count");
    snprintf(key, sizeof key, "%s.expert_weights_norm", loader->architecture);
    if (has_norm && !elutq_gguf_bool(&loader->model->gguf, key, &config->normalize_expert_weights))
        elutq_load_fail(loader, "is not of type BOOL", key);
}

static void load_activation(struct elutq_loader *loader) {
    char key[ELUTQ_KEY_BYTES];
    struct elutq_text name;
    snprintf(key, sizeof key, "%s.hidden_activation", loader->architecture);
    if (elutq_gguf_metadata(&loader->model->gguf, key) == NULL)
        return;
    loader->model->config.gelu = elutq_gguf_string(&loader->model->gguf, key, &name) &&
                                 elutq_text_equals(name, "gelu_pytorch_tanh");
    if (!loader->model->config.gelu)
        elutq_load_fail(loader, "names an activation that is not known here: a newer elutq may run this model", key);
}

/* Flags of all layers; NULL when there are none. */
static const uint8_t *layer_flags(struct elutq_loader *loader, const char *suffix) {
    char key[ELUTQ_KEY_BYTES];
    const uint8_t *flags;
    uint64_t n_flags;
    snprintf(key, sizeof key, "%s.%s", loader->architecture, suffix);
    if (!has_config(loader, suffix))
        return NULL;
    if (elutq_gguf_bool_array(&loader->model->gguf, key, &flags, &n_flags) && n_flags == loader->model->config.n_layers)
        return flags;
    elutq_load_fail(loader, "is not an array of BOOL, one for each layer", key);
    return NULL;
}

/* Which layers have a window, and how their heads turn. */
void elutq_load_layer_kinds(struct elutq_loader *loader) {
    struct elutq_config *config = &loader->model->config;
    const uint8_t *slide = layer_flags(loader, "attention.sliding_window_pattern");
    const uint8_t *turn = layer_flags(loader, "rope.layers");
    for (uint32_t i = 0; i < config->n_layers; i++) {
        struct elutq_layer *layer = &loader->model->layers[i];
        layer->window = slide == NULL || slide[i] != 0 ? config->sliding_window : 0;
        layer->n_sliding_before = config->n_sliding_layers;
        config->n_sliding_layers += layer->window != 0;
        layer->rope = layer->window != 0 && config->local_rope_theta != 0 ? ELUTQ_LOCAL_ROPE : ELUTQ_ROPE;
        if (turn != NULL && turn[i] == 0)
            layer->rope = ELUTQ_NO_ROPE;
    }
}

void elutq_load_config(struct elutq_loader *loader) {
    void (*const steps[])(struct elutq_loader *) = {find_architecture, refuse_unknown_keys, load_numbers, load_experts,
                                                      load_activation};
    for (size_t i = 0; i < sizeof steps / sizeof steps[0] && loader->status == ELUTQ_OK; i++)
        steps[i](loader);
}
