/* What the memory allows: reading the weights of one token without computing anything. */
#include "hlq_block.h"
#include "session.h"

_Static_assert(sizeof((struct elutq_profile *)0)->nanoseconds / sizeof(uint64_t) == ELUTQ_N_OPERATIONS,
               "one counter an operation");

void elutq_session_profile(elutq_session *session, struct elutq_profile *profile) {
    session->profile = profile;
}

struct reading {
    struct elutq_session *session;
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

static float read_matrix(const struct elutq_session *session, unsigned thread, const struct elutq_matrix *matrix) {
    float read = 0;
    unsigned chunk;
    while (elutq_pool_take(session->pool, thread, elutq_matrix_chunks(matrix), &chunk)) {
        size_t n_floats = chunk_bytes(matrix, chunk) / sizeof(float) / 64 * 64;
        read += session->model->kernels->read_floats((const float *)chunk_start(matrix, chunk), n_floats);
    }
    elutq_pool_barrier(session->pool);
    return read;
}

static void read_weights(void *context, unsigned thread, unsigned n_threads) {
    (void)n_threads;
    struct reading *reading = context;
    const struct elutq_session *session = reading->session;
    float read = 0;
    for (uint32_t i = 0; i < session->model->config.n_layers; i++) {
        const struct elutq_layer *layer = &session->model->layers[i];
        const struct elutq_linear *linears[] = {&layer->q,    &layer->k,  &layer->v,   &layer->o,
                                                &layer->gate, &layer->up, &layer->down};
        for (size_t j = 0; j < sizeof linears / sizeof linears[0]; j++)
            read += read_matrix(session, thread, &linears[j]->weight);
    }
    reading->read[thread] = read + read_matrix(session, thread, &session->model->head.weight);
}

int elutq_session_read_weights(elutq_session *session, float *read) {
    struct reading reading = {.session = session};
    *read = 0;
    if (!elutq_begin_call(session))
        return ELUTQ_ERROR_IN_USE;
    const int status = elutq_pool_run(session->pool, read_weights, &reading);
    for (unsigned thread = 0; thread < elutq_pool_threads(session->pool); thread++)
        *read += reading.read[thread];
    return elutq_end_call(session, status);
}
