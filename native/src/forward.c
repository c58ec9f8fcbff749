/*
 * One forward pass, in the model's own order. An item's arithmetic depends neither on the thread that runs it nor on the
 * other pieces of the pass, so neither do the results.
 */
#include "forward.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "pass.h"

void elutq_mark(struct elutq_pass *pass, unsigned thread, enum elutq_operation operation) {
    struct elutq_profile *profile = pass->engine->profile;
    if (thread != 0 || profile == NULL)
        return;
    uint64_t now = elutq_nanoseconds();
    profile->nanoseconds[operation] += now - pass->last_mark;
    pass->last_mark = now;
}

/* ---- stages that know of sequences ---- */

static void embed(const struct elutq_pass *pass, unsigned thread) {
    struct elutq_engine *engine = pass->engine;
    const uint32_t hidden_size = engine->model->config.hidden_size;
    unsigned item;
    while (elutq_take(pass, thread, engine->all.n_rows, &item)) {
        const struct elutq_row *row = &engine->rows[item];
        elutq_matrix_row(&engine->model->embedding, (uint32_t)row->piece->tokens[row->token],
                         engine->hidden + (size_t)item * hidden_size);
    }
    elutq_pool_barrier(engine->pool, thread);
}

/* x[n] in place. */
static void norm(const struct elutq_engine *engine, const float *weight, uint32_t n, float *x) {
    const struct elutq_kernels *kernels = engine->model->kernels;
    kernels->scale_by(x, kernels->rms_scale(x, n, engine->model->config.rms_norm_eps), weight, n, x);
}

/* Norms queries and keys that are normed whole. Items: row. */
static void norm_projections(const struct elutq_pass *pass, unsigned thread, const struct elutq_layer *layer) {
    struct elutq_engine *engine = pass->engine;
    const struct elutq_config *config = &engine->model->config;
    const uint32_t q_size = config->n_heads * config->head_dim, kv_size = config->n_kv_heads * config->head_dim;
    unsigned item;
    while (elutq_take(pass, thread, engine->all.n_rows, &item)) {
        norm(engine, layer->q_norm, q_size, engine->q + (size_t)item * q_size);
        norm(engine, layer->k_norm, kv_size, engine->k + (size_t)item * kv_size);
    }
    elutq_pool_barrier(engine->pool, thread);
}

/* Norms what a branch has written, and adds it to the residual stream. Items: row. */
static void add_normed(const struct elutq_pass *pass, unsigned thread, const float *weight) {
    struct elutq_engine *engine = pass->engine;
    const uint32_t hidden_size = engine->model->config.hidden_size;
    unsigned item;
    while (elutq_take(pass, thread, engine->all.n_rows, &item)) {
        float *written = engine->written + (size_t)item * hidden_size;
        norm(engine, weight, hidden_size, written);
        engine->model->kernels->add(written, hidden_size, engine->hidden + (size_t)item * hidden_size);
    }
    elutq_pool_barrier(engine->pool, thread);
}

/* Norms and rotates a head's query or key, and multiplies it by its factors where there are any. */
static void position_head(const struct elutq_engine *engine, size_t row, enum elutq_rope rope, const float *weight,
                          const float *factors, float *head) {
    const struct elutq_config *config = &engine->model->config;
    const struct elutq_kernels *kernels = engine->model->kernels;
    const size_t at = ((size_t)rope * engine->max_rows + row) * (config->rope_dim / 2);
    if (weight != NULL)
        norm(engine, weight, config->head_dim, head);
    if (rope != ELUTQ_NO_ROPE)
        kernels->rope(head, engine->cosines + at, engine->sines + at, config->rope_dim);
    if (factors != NULL)
        kernels->scale_by(head, 1.0f, factors, config->head_dim, head);
}

/* Norms and rotates queries and keys, and appends keys and values to their sequences. Items: row and KV head. */
static void position_and_store(const struct elutq_pass *pass, unsigned thread, uint32_t i) {
    struct elutq_engine *engine = pass->engine;
    const struct elutq_config *config = &engine->model->config;
    const struct elutq_layer *layer = &engine->model->layers[i];
    const uint32_t head_dim = config->head_dim, n_queries = config->n_heads / config->n_kv_heads;
    const float *q_norm = config->norm_spans_heads ? NULL : layer->q_norm;
    const float *k_norm = config->norm_spans_heads ? NULL : layer->k_norm;
    unsigned item;
    while (elutq_take(pass, thread, engine->all.n_rows * config->n_kv_heads, &item)) {
        const uint32_t row = item / config->n_kv_heads, kv_head = item % config->n_kv_heads;
        const struct elutq_piece *piece = engine->rows[row].piece;
        const struct elutq_sequence *sequence = piece->sequence;
        const struct elutq_cache_kernels *cache = &engine->model->kernels->cache[sequence->cache_type];
        const float *for_queries = NULL, *for_keys = NULL;
        if (sequence->key_balance != NULL) {
            for_queries = sequence->key_balance + 2 * ((size_t)i * config->n_kv_heads + kv_head) * head_dim;
            for_keys = for_queries + head_dim;
        }
        for (uint32_t q = 0; q < n_queries; q++)
            position_head(engine, row, layer->rope, q_norm, for_queries,
                          engine->q + ((size_t)item * n_queries + q) * head_dim);
        position_head(engine, row, layer->rope, k_norm, for_keys, engine->k + (size_t)item * head_dim);
        const uint32_t position = piece->position + engine->rows[row].token;
        const size_t at = elutq_cache_offset(sequence, i, kv_head, elutq_cache_row(sequence, i, position));
        cache->store(engine->k + (size_t)item * head_dim, head_dim, sequence->keys + at);
        cache->store(engine->v + (size_t)item * head_dim, head_dim, sequence->values + at);
    }
    elutq_pool_barrier(engine->pool, thread);
}

/* ---- the model ---- */

/* How the linear that ends a branch writes: onto the residual stream, or aside where what it adds is normed first. */
static struct elutq_product writer(const struct elutq_engine *engine, const struct elutq_linear *linear, const float *norm) {
    const size_t stride = engine->model->config.hidden_size;
    return (struct elutq_product){linear, norm != NULL ? engine->written : engine->hidden, stride, norm == NULL, NULL};
}

static void attention_block(struct elutq_pass *pass, unsigned thread, uint32_t i) {
    struct elutq_engine *engine = pass->engine;
    const struct elutq_config *config = &engine->model->config;
    const struct elutq_batch *all = &engine->all;
    const struct elutq_layer *layer = &engine->model->layers[i];
    const size_t q_size = (size_t)config->n_heads * config->head_dim, kv_size = (size_t)config->n_kv_heads * config->head_dim;
    const struct elutq_product project[] = {
        {&layer->q, engine->q, q_size, false, NULL},
        {&layer->k, engine->k, kv_size, false, NULL},
        {&layer->v, engine->v, kv_size, false, NULL},
    };
    const struct elutq_product output = writer(engine, &layer->o, layer->attn_post_norm);
    const struct elutq_source normed = {ELUTQ_FROM_NORM, layer->attn_norm, NULL};
    const struct elutq_source attended = {ELUTQ_FROM_ATTENTION, NULL, NULL};
    elutq_prepare_input(pass, thread, &normed, all, config->hidden_size, project, 3);
    elutq_mark(pass, thread, ELUTQ_PREPARE);
    elutq_multiply(pass, thread, all, project, 3);
    elutq_mark(pass, thread, ELUTQ_QKV);
    if (config->norm_spans_heads && layer->q_norm != NULL && layer->k_norm != NULL)
        norm_projections(pass, thread, layer);
    position_and_store(pass, thread, i);
    elutq_mark(pass, thread, ELUTQ_POSITION);
    elutq_attend(pass, thread, i);
    elutq_mark(pass, thread, ELUTQ_ATTEND);
    elutq_prepare_input(pass, thread, &attended, all, (uint32_t)q_size, &output, 1);
    elutq_mark(pass, thread, ELUTQ_PREPARE);
    elutq_multiply(pass, thread, all, &output, 1);
    if (layer->attn_post_norm != NULL)
        add_normed(pass, thread, layer->attn_post_norm);
    elutq_mark(pass, thread, ELUTQ_ATTN_OUTPUT);
}

/* The MLP of a layer, or its shared expert. */
static void mlp(struct elutq_pass *pass, unsigned thread, const struct elutq_layer *layer,
                const struct elutq_product *contract) {
    struct elutq_engine *engine = pass->engine;
    const struct elutq_batch *all = &engine->all;
    const uint32_t size = layer->gate.weight.n_rows;
    const struct elutq_product expand[] = {
        {&layer->gate, engine->gate, size, false, NULL},
        {&layer->up, engine->up, size, false, NULL},
    };
    const struct elutq_source normed = {ELUTQ_FROM_NORM, layer->ffn_norm, NULL};
    const struct elutq_source activated = {ELUTQ_FROM_GATE, NULL, NULL};
    elutq_prepare_input(pass, thread, &normed, all, engine->model->config.hidden_size, expand, 2);
    elutq_mark(pass, thread, ELUTQ_PREPARE);
    elutq_multiply(pass, thread, all, expand, 2);
    elutq_mark(pass, thread, ELUTQ_GATE_UP);
    elutq_prepare_input(pass, thread, &activated, all, size, contract, 1);
    elutq_mark(pass, thread, ELUTQ_PREPARE);
    elutq_multiply(pass, thread, all, contract, 1);
}

static void mlp_block(struct elutq_pass *pass, unsigned thread, uint32_t i) {
    struct elutq_engine *engine = pass->engine;
    const struct elutq_layer *layer = &engine->model->layers[i];
    const uint32_t hidden_size = engine->model->config.hidden_size;
    if (layer->router == NULL) {
        const struct elutq_product contract = writer(engine, &layer->down, layer->ffn_post_norm);
        mlp(pass, thread, layer, &contract);
    } else {
        const struct elutq_product aside = {&layer->down, engine->routing.shared, hidden_size, false, NULL};
        if (layer->shared_gate != NULL)
            mlp(pass, thread, layer, &aside);
        elutq_run_experts(pass, thread, i);
    }
    if (layer->ffn_post_norm != NULL)
        add_normed(pass, thread, layer->ffn_post_norm);
    elutq_mark(pass, thread, ELUTQ_DOWN);
}

/* What the head reads, for those who want it. Items: row. */
static void hand_out_hidden(const struct elutq_pass *pass, unsigned thread) {
    const struct elutq_engine *engine = pass->engine;
    const uint32_t hidden_size = engine->model->config.hidden_size;
    unsigned item;
    while (elutq_take(pass, thread, engine->all.n_rows, &item)) {
        const struct elutq_row *row = &engine->rows[item];
        if (row->piece->hidden == NULL)
            continue;
        float *hidden = row->piece->hidden + (size_t)row->token * hidden_size;
        memcpy(hidden, engine->hidden + (size_t)item * hidden_size, hidden_size * sizeof *hidden);
        norm(engine, engine->model->output_norm, hidden_size, hidden);
    }
    elutq_pool_barrier(engine->pool, thread);
}

/* Items: a row of logits. */
static void soften_logits(const struct elutq_pass *pass, unsigned thread) {
    const struct elutq_engine *engine = pass->engine;
    const struct elutq_config *config = &engine->model->config;
    unsigned item;
    while (elutq_take(pass, thread, engine->wanted.n_rows, &item))
        engine->model->kernels->soften(engine->logits[item], config->vocab_size, config->logit_softcap);
    elutq_pool_barrier(engine->pool, thread);
}

static void head(struct elutq_pass *pass, unsigned thread) {
    const struct elutq_engine *engine = pass->engine;
    const struct elutq_model *model = engine->model;
    const struct elutq_product project = {&model->head, NULL, 0, false, engine->logits};
    const struct elutq_source normed = {ELUTQ_FROM_NORM, model->output_norm, engine->logit_rows};
    elutq_prepare_input(pass, thread, &normed, &engine->wanted, model->config.hidden_size, &project, 1);
    elutq_mark(pass, thread, ELUTQ_PREPARE);
    elutq_multiply(pass, thread, &engine->wanted, &project, 1);
    if (model->config.logit_softcap != 0)
        soften_logits(pass, thread);
    elutq_mark(pass, thread, ELUTQ_HEAD);
}

static void run_pass(void *context, unsigned thread, unsigned n_threads) {
    (void)n_threads;
    struct elutq_pass *pass = context;
    embed(pass, thread);
    elutq_mark(pass, thread, ELUTQ_EMBED);
    for (uint32_t i = pass->layers.first; i < pass->layers.end; i++) {
        attention_block(pass, thread, i);
        mlp_block(pass, thread, i);
    }
    if (pass->engine->wants_hidden)
        hand_out_hidden(pass, thread);
    if (pass->engine->wanted.n_rows > 0)
        head(pass, thread);
}

/* ---- rows ---- */

static int compare_tokens(const void *a, const void *b) {
    const struct elutq_piece *first = a, *second = b;
    return (first->n_tokens < second->n_tokens) - (first->n_tokens > second->n_tokens);
}

/* Adds rows of a piece of n_tokens to a batch that has those of larger pieces. */
static void add_rows(const struct elutq_kernels *kernels, struct elutq_batch *batch, uint32_t n_rows, uint32_t n_tokens) {
    batch->n_rows += n_rows;
    for (uint32_t bits = 1; bits <= 4; bits++)
        if (kernels->levels_from[bits] != 0 && n_tokens >= kernels->levels_from[bits])
            batch->n_levels[bits] = batch->n_rows;
}

/* The angles of a row's position, in each way that a layer's heads may turn. */
static void turn(struct elutq_engine *engine, size_t row, const struct elutq_sequence *sequence, uint32_t position) {
    const struct elutq_config *config = &engine->model->config;
    const size_t half = config->rope_dim / 2;
    const bool is_long = config->rope_context != 0 && sequence->context_size > config->rope_context;
    const int n_ropes = config->local_rope_theta != 0 ? ELUTQ_N_ROPES : ELUTQ_ROPE + 1;
    for (int rope = ELUTQ_ROPE; rope < n_ropes; rope++) {
        const float *frequencies = engine->frequencies + (rope == ELUTQ_ROPE && is_long ? ELUTQ_N_ROPES : rope) * half;
        const float factor = rope == ELUTQ_ROPE ? config->rope_factor : 1.0f;
        const size_t at = ((size_t)rope * engine->max_rows + row) * half;
        for (size_t i = 0; i < half; i++) {
            const float angle = (float)position * frequencies[i];
            engine->cosines[at + i] = factor * cosf(angle);
            engine->sines[at + i] = factor * sinf(angle);
        }
    }
}

static void lay_out_rows(struct elutq_engine *engine, uint32_t n_pieces) {
    const struct elutq_config *config = &engine->model->config;
    qsort(engine->pieces, n_pieces, sizeof *engine->pieces, compare_tokens);
    engine->all = engine->routing.all = (struct elutq_batch){0};
    atomic_store_explicit(&engine->routing.n_routed, 0, memory_order_relaxed);
    engine->wants_hidden = false;
    for (uint32_t i = 0; i < n_pieces; i++) {
        struct elutq_piece *piece = &engine->pieces[i];
        piece->first_row = engine->all.n_rows;
        engine->wants_hidden |= piece->hidden != NULL;
        for (uint32_t token = 0; token < piece->n_tokens; token++) {
            engine->rows[piece->first_row + token] = (struct elutq_row){piece, token};
            turn(engine, piece->first_row + token, piece->sequence, piece->position + token);
        }
        add_rows(engine->model->kernels, &engine->all, piece->n_tokens, piece->n_tokens);
        if (config->n_experts > 0)
            add_rows(engine->model->kernels, &engine->routing.all, piece->n_tokens,
                     elutq_rows_an_expert(config, piece->n_tokens));
    }
}

/* Rows whose logits are wanted, in the order of their pieces. */
static void lay_out_logits(struct elutq_engine *engine, uint32_t n_pieces) {
    engine->wanted = (struct elutq_batch){0};
    for (uint32_t i = 0; i < n_pieces; i++) {
        const struct elutq_piece *piece = &engine->pieces[i];
        for (uint32_t j = 0; j < piece->n_logits; j++) {
            engine->logit_rows[engine->wanted.n_rows + j] = piece->first_row + piece->n_tokens - piece->n_logits + j;
            engine->logits[engine->wanted.n_rows + j] = piece->logits + (size_t)j * engine->model->config.vocab_size;
        }
        add_rows(engine->model->kernels, &engine->wanted, piece->n_logits, piece->n_tokens);
    }
}

int elutq_forward(struct elutq_engine *engine, uint32_t n_pieces, struct elutq_layers layers) {
    lay_out_rows(engine, n_pieces);
    lay_out_logits(engine, n_pieces);
    const bool few = engine->all.n_rows < ELUTQ_MANY_ROWS;
    const unsigned n_threads = few ? engine->n_decode_threads : elutq_pool_threads(engine->pool);
    elutq_share_keys(engine, n_pieces, n_threads);
    struct elutq_pass pass = {.engine = engine, .n_threads = n_threads, .n_pieces = n_pieces, .layers = layers};
    if (engine->profile != NULL) {
        engine->profile->n_passes++;
        pass.last_mark = elutq_nanoseconds();
    }
    const int status = elutq_pool_run_few(engine->pool, n_threads, run_pass, &pass);
    return status == ELUTQ_OK && atomic_load(&engine->cancelled) ? ELUTQ_ERROR_CANCELLED : status;
}
