/* One text and the engine that evaluates it, for checks that need no more. */
#ifndef ONE_TEXT_H
#define ONE_TEXT_H

#include "elutq.h"

struct text {
    elutq_engine *engine;
    elutq_sequence *sequence;
};

/* Both parts, or neither: then *text is all NULL. */
static inline int text_create(elutq_model *model, uint32_t context_size, enum elutq_cache_type cache_type, unsigned n_threads,
                              struct text *text, char *error, size_t error_bytes) {
    *text = (struct text){NULL, NULL};
    int status = elutq_sequence_create(model, context_size, cache_type, &text->sequence, error, error_bytes);
    if (status == ELUTQ_OK)
        status = elutq_engine_create(model, 1, n_threads, &text->engine, error, error_bytes);
    if (status != ELUTQ_OK) {
        elutq_sequence_destroy(text->sequence);
        text->sequence = NULL;
    }
    return status;
}

static inline int text_eval(const struct text *text, const int32_t *tokens, size_t n_tokens, float *logits, size_t n_logits,
                            char *error, size_t error_bytes) {
    const struct elutq_run run = {text->sequence, tokens, n_tokens, logits, n_logits, NULL};
    return elutq_engine_eval(text->engine, &run, 1, error, error_bytes);
}

/* ELUTQ_OK when both are freed. */
static inline int text_destroy(const struct text *text) {
    const int status = elutq_engine_destroy(text->engine);
    return status != ELUTQ_OK ? status : elutq_sequence_destroy(text->sequence);
}

#endif
