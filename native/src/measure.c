/* What the memory allows: reading the weights of one token without computing anything. */
#include "hlq_block.h"
#include "engine.h"

_Static_assert(sizeof((struct elutq_profile *)0)->nanoseconds / sizeof(uint64_t) == ELUTQ_N_OPERATIONS,
               "one counter an operation");

void elutq_engine_profile(elutq_engine *engine, struct elutq_profile *profile) {
    engine->profile = profile;
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

static float read_matrix(const struct elutq_engine *engine, unsigned thread, const struct elutq_matrix *matrix) {
    float read = 0;
    unsigned chunk;
    while (elutq_pool_take(engine->pool, thread, elutq_matrix_chunks(matrix), &chunk)) {
        size_t n_floats = chunk_bytes(matrix, chunk) / sizeof(float) / 64 * 64;
        read += engine->model->kernels->read_floats((const float *)chunk_start(matrix, chunk), n_floats);
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
        const struct elutq_layer *layer = &engine->model->layers[i];
        const struct elutq_linear *linears[] = {&layer->q,    &layer->k,  &layer->v,   &layer->o,
                                                &layer->gate, &layer->up, &layer->down};
        for (size_t j = 0; j < sizeof linears / sizeof linears[0]; j++)
            read += read_matrix(engine, thread, &linears[j]->weight);
    }
    reading->read[thread] = read + read_matrix(engine, thread, &engine->model->head.weight);
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
