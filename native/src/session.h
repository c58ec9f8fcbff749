/* A session: the KV cache, the scratch of one forward pass, and the pool that runs it. Used by one thread at a time. */
#ifndef ELUTQ_SESSION_H
#define ELUTQ_SESSION_H

#include <stdatomic.h>

#include "cache_row.h"
#include "model.h"
#include "threads.h"

/* Tokens of one forward pass: enough that a batch is bound by arithmetic, few enough that its scratch stays small. */
#define ELUTQ_BATCH_TOKENS 128

/* Tokens that attend together, so that a key or value is converted to float once for all of them. */
#define ELUTQ_ATTEND_TOKENS 4

/* Group sizes 32, 64, 128 and 256 have their own tables; index with elutq_group_index. */
#define ELUTQ_GROUP_SIZES 4

static inline uint32_t elutq_group_index(uint32_t group_size) {
    return group_size == 32 ? 0 : group_size == 64 ? 1 : group_size == 128 ? 2 : 3;
}

/* Whether n_tokens are multiplied with an HLQ matrix as levels; otherwise their tables are looked up. */
static inline bool elutq_takes_levels(const struct elutq_kernels *kernels, const struct elutq_matrix *weight,
                                      uint32_t n_tokens) {
    const uint32_t from = kernels->levels_from[weight->bits];
    return from != 0 && n_tokens >= from;
}

/* The input of linear layers, in each form that their weights need. */
struct elutq_input {
    uint32_t n_columns;
    float *x;                                        /* [batch][n_columns] */
    struct elutq_tables *tables[ELUTQ_GROUP_SIZES];  /* for as many tokens as are looked up, NULL where none are */
    struct elutq_levels levels[ELUTQ_GROUP_SIZES];   /* members NULL where no matrix takes them */
};

#define ELUTQ_MAX_ALLOCATIONS 64

struct elutq_session {
    struct elutq_model *model; /* shared, and kept open */
    elutq_pool *pool;
    uint32_t context_size;
    enum elutq_cache_type cache_type;
    uint32_t position;
    uint32_t batch_tokens; /* tokens a pass takes, at most ELUTQ_BATCH_TOKENS */
    atomic_bool cancelled;
    atomic_bool in_use; /* a call is under way */
    struct elutq_profile *profile; /* NULL: not measured; the caller's */

    uint8_t *keys, *values; /* rows of the cache [n_layers][n_kv_heads][context_size] */
    float *frequencies;     /* [head_dim / 2] radians a position */
    float *key_balance;     /* key_balance.h; NULL where keys are not rounded to int8 */

    float *hidden;          /* [batch][hidden_size] the residual stream */
    float *q, *k, *v;       /* [batch][n_heads or n_kv_heads][head_dim] */
    float *attended;        /* [batch][n_heads][head_dim] */
    float *gate, *up;       /* [batch][intermediate_size] */
    float *cosines, *sines; /* [batch][head_dim / 2] */
    struct elutq_input input;
    float *chunks; /* [n_threads][batch][ELUTQ_CHUNK_STRIDE] */
    float *scores; /* [n_threads][ELUTQ_ATTEND_TOKENS][n_heads / n_kv_heads][ELUTQ_ATTEND_STRIDE] */
    float *heads;  /* [n_threads][queries, results][ELUTQ_ATTEND_TOKENS][n_heads / n_kv_heads][head_dim] */

    void *allocations[ELUTQ_MAX_ALLOCATIONS];
    unsigned n_allocations;
};

/* Bytes from the beginning of the keys, or of the values, to a head's row of a position; later positions' follow it. */
static inline size_t elutq_cache_offset(const struct elutq_session *session, uint32_t layer, uint32_t kv_head,
                                        uint32_t position) {
    const struct elutq_config *config = &session->model->config;
    const size_t row = ((size_t)layer * config->n_kv_heads + kv_head) * session->context_size + position;
    return row * elutq_cache_row_bytes(session->cache_type, config->head_dim);
}

/* Whether no other call is under way in the session; if so, this one is until elutq_end_call. */
static inline bool elutq_begin_call(struct elutq_session *session) {
    return !atomic_exchange(&session->in_use, true);
}

static inline int elutq_end_call(struct elutq_session *session, int status) {
    atomic_store(&session->in_use, false);
    return status;
}

/*
 * Runs n_tokens (1 to batch_tokens) at session->position through the model and writes logits[n_logits][vocab_size] of the
 * last n_logits of them. ELUTQ_ERROR_CANCELLED, ELUTQ_ERROR_IN_USE or ELUTQ_ERROR_FORKED when there are none. Does not move
 * the position.
 */
int elutq_forward(struct elutq_session *session, const int32_t *tokens, uint32_t n_tokens, float *logits,
                   uint32_t n_logits);

#endif
