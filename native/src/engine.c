#include "engine.h"

#include <math.h>
#include <stdlib.h>

#include "aligned.h"

/* theta^(-2i / rope_dim), in float as the checkpoints' own code has it, divided where RoPE is scaled. */
static void fill_frequencies(const struct elutq_config *config, float theta, const float *divisors, float *frequencies) {
    for (uint32_t i = 0; i < config->rope_dim / 2; i++) {
        frequencies[i] = 1.0f / powf(theta, (float)(2 * i) / (float)config->rope_dim);
        if (divisors != NULL)
            frequencies[i] /= divisors[i];
    }
}

static void fill_all_frequencies(struct elutq_engine *engine) {
    const struct elutq_model *model = engine->model;
    const struct elutq_config *config = &model->config;
    const uint32_t half = config->rope_dim / 2;
    const float local = config->local_rope_theta != 0 ? config->local_rope_theta : config->rope_theta;
    const float *divisors = model->rope_long_divisors != NULL ? model->rope_long_divisors : model->rope_divisors;
    fill_frequencies(config, config->rope_theta, model->rope_divisors, engine->frequencies + ELUTQ_ROPE * half);
    fill_frequencies(config, local, NULL, engine->frequencies + ELUTQ_LOCAL_ROPE * half);
    fill_frequencies(config, config->rope_theta, divisors, engine->frequencies + ELUTQ_N_ROPES * half);
}

int elutq_engine_create(elutq_model *model, uint32_t n_sequences, unsigned n_threads, elutq_engine **out, char *error,
                        size_t error_bytes) {
    const struct elutq_error report = {error, error_bytes};
    *out = NULL;
    if (n_sequences < 1 || n_sequences > ELUTQ_MAX_SEQUENCES)
        return elutq_fail(&report, ELUTQ_ERROR_ARGUMENT, "%u sequences is not between 1 and %d", n_sequences,
                          ELUTQ_MAX_SEQUENCES);
    if (n_threads < 1 || n_threads > ELUTQ_MAX_THREADS)
        return elutq_fail(&report, ELUTQ_ERROR_ARGUMENT, "%u threads is not between 1 and %d", n_threads, ELUTQ_MAX_THREADS);
    struct elutq_engine *engine = calloc(1, sizeof *engine);
    if (engine == NULL)
        return elutq_fail(&report, ELUTQ_ERROR_MEMORY, "out of memory");
    atomic_fetch_add(&model->n_owners, 1);
    engine->model = model;
    engine->max_rows = ELUTQ_PIECE_TOKENS + n_sequences - 1;
    if (!elutq_allocate_scratch(engine, n_threads)) {
        elutq_engine_destroy(engine);
        return elutq_fail(&report, ELUTQ_ERROR_MEMORY, "out of memory for %u sequences and %u threads; ask for fewer",
                          n_sequences, n_threads);
    }
    fill_all_frequencies(engine);
    int status = elutq_pool_create(n_threads, &engine->pool);
    if (status != ELUTQ_OK) {
        elutq_engine_destroy(engine);
        return elutq_fail(&report, status, "cannot start %u threads", n_threads);
    }
    engine->n_decode_threads = n_threads;
    *out = engine;
    return ELUTQ_OK;
}

int elutq_engine_use_for_decode(elutq_engine *engine, unsigned n_threads) {
    if (n_threads < 1 || n_threads > elutq_pool_threads(engine->pool))
        return ELUTQ_ERROR_ARGUMENT;
    if (!elutq_begin_call(&engine->in_use))
        return ELUTQ_ERROR_IN_USE;
    engine->n_decode_threads = n_threads;
    return elutq_end_call(&engine->in_use, ELUTQ_OK);
}

int elutq_engine_destroy(elutq_engine *engine) {
    if (engine == NULL)
        return ELUTQ_OK;
    if (!elutq_begin_call(&engine->in_use))
        return ELUTQ_ERROR_IN_USE;
    elutq_pool_destroy(engine->pool);
    for (unsigned i = 0; i < engine->n_allocations; i++)
        elutq_free_aligned(engine->allocations[i]);
    elutq_free_aligned(engine->parts);
    elutq_model_close(engine->model);
    free(engine);
    return ELUTQ_OK;
}

void elutq_engine_cancel(elutq_engine *engine) {
    int running = ELUTQ_RUNS;
    atomic_compare_exchange_strong(&engine->cancelled, &running, ELUTQ_CANCELLED);
}

void elutq_engine_retire(elutq_engine *engine) {
    atomic_store(&engine->cancelled, ELUTQ_RETIRED);
}

void elutq_engine_go_on(elutq_engine *engine) {
    int cancelled = ELUTQ_CANCELLED;
    atomic_compare_exchange_strong(&engine->cancelled, &cancelled, ELUTQ_RUNS);
}
