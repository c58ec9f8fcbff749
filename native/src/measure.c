/* What the memory allows: reading the weights of one token without computing anything. */
#include "hlq_block.h"
#include "engine.h"

_Static_assert(sizeof((struct elutq_profile *)0)->nanoseconds / sizeof(uint64_t) == ELUTQ_N_OPERATIONS,
               "one counter an operation");

int elutq_engine_profile(elutq_engine *engine, struct elutq_profile *profile) {
    if (!elutq_begin_call(&engine->in_use))
        return ELUTQ_ERROR_IN_USE;
    engine->profile = profile;
    return elutq_end_call(&engine->in_use, ELUTQ_OK);
}

struct reading {
    struct elutq_engine *engine;
    float read[ELUTQ_MAX_THREADS];
};

static size_t chunk_bytes(const struct elutq_matrix *matrix, uint32_t chunk) {
    if (matrix->bits == 16) {
        uint32_t left = matrix->n_rows - chunk * ELUTQ_CHUNK_ROWS;
        return (size_t)(left < ELUTQ_CHUNK_ROWS ? left : ELUTQ_CHUNK_ROWS) * matrix->n_columns * sizeof(uint16_t);
    }
    return (size_t)elutq_chunk_tiles(matrix, chunk) * elutq_matrix_groups(matrix) * elutq_matrix_block_bytes(matrix);
}

static const uint8_t *chunk_start(const struct elutq_matrix *matrix, uint32_t chunk) {
    if (matrix->bits == 16)
        return matrix->data + (size_t)chunk * ELUTQ_CHUNK_ROWS * matrix->n_columns * sizeof(uint16_t);
    return elutq_chunk_data(matrix, chunk);
}

/* As many as a token uses of matrices that lie one behind the other, evenly spaced: a text's are here and there too. */
static float read_matrices(const struct elutq_engine *engine, unsigned thread, const struct elutq_stored_matrix *stored) {
    float read = 0;
    unsigned item;
    const uint32_t n_chunks = elutq_matrix_chunks(stored->matrix), apart = stored->n_stored / stored->n_read;
    while (elutq_pool_take(engine->pool, thread, stored->n_read * n_chunks, &item)) {
        const struct elutq_matrix matrix = elutq_matrix_behind(stored->matrix, item / n_chunks * apart);
        const size_t n_floats = chunk_bytes(&matrix, item % n_chunks) / sizeof(float) / 64 * 64;
        const uintptr_t start = (uintptr_t)chunk_start(&matrix, item % n_chunks); /* of an fp16 expert between two floats */
        read += engine->model->kernels->read_floats((const float *)(start / sizeof(float) * sizeof(float)), n_floats);
    }
    elutq_pool_barrier(engine->pool, thread);
    return read;
}

/* Bytes of a router that a thread reads at a time. */
#define ROUTER_BYTES 65536

static float read_router(const struct elutq_engine *engine, unsigned thread, uint32_t layer) {
    const uint64_t n_bytes = elutq_router_bytes(engine->model, layer);
    const float *router = engine->model->layers[layer].router;
    float read = 0;
    unsigned item;
    if (router == NULL)
        return 0;
    while (elutq_pool_take(engine->pool, thread, (unsigned)((n_bytes + ROUTER_BYTES - 1) / ROUTER_BYTES), &item)) {
        const uint64_t first = (uint64_t)item * ROUTER_BYTES, left = n_bytes - first;
        const size_t n_floats = (left < ROUTER_BYTES ? left : ROUTER_BYTES) / sizeof(float) / 64 * 64;
        read += engine->model->kernels->read_floats(router + first / sizeof(float), n_floats);
    }
    elutq_pool_barrier(engine->pool, thread);
    return read;
}

static void read_weights(void *context, unsigned thread, unsigned n_threads) {
    (void)n_threads;
    struct reading *reading = context;
    const struct elutq_engine *engine = reading->engine;
    float read = 0;
    for (uint32_t i = 0; i < engine->model->config.n_layers; i++) {
        struct elutq_stored_matrix stored[ELUTQ_LAYER_MATRICES];
        const unsigned n = elutq_layer_matrices(engine->model, i, stored);
        read += read_router(engine, thread, i);
        for (unsigned j = 0; j < n; j++)
            read += read_matrices(engine, thread, &stored[j]);
    }
    const struct elutq_stored_matrix head = {&engine->model->head.weight, false, 1, 1};
    reading->read[thread] = read + read_matrices(engine, thread, &head);
}

int elutq_engine_read_weights(elutq_engine *engine, float *read) {
    struct reading reading = {.engine = engine};
    *read = 0;
    if (!elutq_begin_call(&engine->in_use))
        return ELUTQ_ERROR_IN_USE;
    const int status = elutq_pool_run(engine->pool, read_weights, &reading);
    for (unsigned thread = 0; thread < elutq_pool_threads(engine->pool); thread++)
        *read += reading.read[thread];
    return elutq_end_call(&engine->in_use, status);
}
