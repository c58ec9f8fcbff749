/*
 * One forward pass, in the model's own order. All threads of the pool run every function here; between two barriers they
 * share its items. An item's arithmetic does not depend on which thread runs it, so neither do the results.
 */
#include <math.h>
#include <string.h>
#include <time.h>

#include "hlq_block.h"
#include "session.h"

struct pass {
    struct elutq_session *session;
    const int32_t *tokens;
    uint32_t n_tokens;
    float *logits;
    uint32_t n_logits;
    uint64_t last_mark; /* when the last operation ended, in ns; thread 0 only */
};

/*
 * The next item of a stage, as elutq_pool_take hands them out. A cancelled pass takes no more: its threads meet at the
 * barriers that are left, and what they computed counts for nothing. An item is a millisecond or two on a slow core.
 */
static bool take(const struct pass *pass, unsigned thread, unsigned n_items, unsigned *item) {
    return !atomic_load_explicit(&pass->session->cancelled, memory_order_relaxed) &&
           elutq_pool_take(pass->session->pool, thread, n_items, item);
}

static uint64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Books the time since the last mark under an operation. */
static void mark(struct pass *pass, unsigned thread, enum elutq_operation operation) {
    struct elutq_profile *profile = pass->session->profile;
    if (thread != 0 || profile == NULL)
        return;
    uint64_t now = nanoseconds();
    profile->nanoseconds[operation] += now - pass->last_mark;
    pass->last_mark = now;
}

/* ---- inputs of linear layers ---- */

/* Where the input of linear layers comes from: columns first .. end - 1 of a token's row. */
struct source {
    enum { FROM_NORM, FROM_ATTENTION, FROM_SWIGLU } kind;
    const float *norm;    /* FROM_NORM: its weight */
    uint32_t first_token; /* the input's token 0 is this one of the batch */
    uint32_t n_tokens;
};

static void read_source(const struct pass *pass, const struct source *source, uint32_t token, uint32_t first, uint32_t end,
                        float *x) {
    const struct elutq_session *session = pass->session;
    const struct elutq_config *config = &session->model->config;
    const struct elutq_kernels *kernels = session->model->kernels;
    const size_t row = source->first_token + token;
    if (source->kind == FROM_NORM) {
        const float *hidden = session->hidden + row * config->hidden_size;
        float scale = kernels->rms_scale(hidden, config->hidden_size, config->rms_norm_eps);
        kernels->scale_by(hidden + first, scale, source->norm + first, end - first, x + first);
    } else if (source->kind == FROM_ATTENTION) {
        size_t width = (size_t)config->n_heads * config->head_dim;
        memcpy(x + first, session->attended + row * width + first, (end - first) * sizeof *x);
    } else {
        size_t start = row * config->intermediate_size + first;
        kernels->swiglu(session->gate + start, session->up + start, end - first, x + first);
    }
}

/* The forms of an input that some matrices take; bit i stands for groups of 32 << i. */
struct forms {
    unsigned tables, levels;
};

/* Columns are dealt to threads in units that every group size divides. */
#define COLUMN_UNIT 256

/* Reads the source into session->input in these forms. A batch is shared out by token, a single token by columns. */
static void prepare_input(struct pass *pass, unsigned thread, const struct source *source, uint32_t n_columns,
                          struct forms forms) {
    struct elutq_session *session = pass->session;
    struct elutq_input *input = &session->input;
    const struct elutq_kernels *kernels = session->model->kernels;
    const uint32_t n_threads = elutq_pool_threads(session->pool), n_tokens = source->n_tokens;
    const uint32_t n_parts = n_tokens == 1 ? n_threads : 1;
    const uint32_t n_units = (n_columns + COLUMN_UNIT - 1) / COLUMN_UNIT;
    unsigned item;
    if (thread == 0)
        input->n_columns = n_columns;
    while (take(pass, thread, n_tokens * n_parts, &item)) {
        const uint32_t token = item / n_parts, part = item % n_parts;
        const uint32_t first = n_units * part / n_parts * COLUMN_UNIT;
        uint32_t end = n_units * (part + 1) / n_parts * COLUMN_UNIT;
        end = end < n_columns ? end : n_columns;
        float *x = input->x + (size_t)token * n_columns;
        if (first < end)
            read_source(pass, source, token, first, end, x);
        for (uint32_t i = 0; i < ELUTQ_GROUP_SIZES && first < end; i++) {
            const uint32_t group_size = 32u << i;
            if (forms.levels >> i & 1)
                kernels->build_levels(x, n_columns, group_size, token, &input->levels[i]);
            if (forms.tables >> i & 1)
                kernels->build_tables(x, group_size, first / group_size, end / group_size, &input->tables[i][token]);
        }
    }
    elutq_pool_barrier(session->pool);
}

/* ---- products ---- */

/* y[token][row] = or += weight x + bias. */
struct product {
    const struct elutq_linear *linear;
    float *y;
    size_t y_stride;
    bool accumulate;
};

static struct forms forms_of(const struct elutq_session *session, const struct product *products, unsigned n_products,
                             uint32_t n_tokens) {
    struct forms forms = {0, 0};
    for (unsigned i = 0; i < n_products; i++) {
        const struct elutq_matrix *weight = &products[i].linear->weight;
        if (weight->bits == 16)
            continue;
        const unsigned bit = 1u << elutq_group_index(weight->group_size);
        if (elutq_takes_levels(session->model->kernels, weight, n_tokens))
            forms.levels |= bit;
        else
            forms.tables |= bit;
    }
    return forms;
}

static void multiply_chunk(const struct elutq_session *session, const struct elutq_matrix *weight, uint32_t n_tokens,
                           uint32_t chunk, float *y) {
    const struct elutq_kernels *kernels = session->model->kernels;
    const struct elutq_input *input = &session->input;
    if (weight->bits == 16) {
        kernels->gemm_f16(weight, input->x, input->n_columns, n_tokens, chunk, y);
        return;
    }
    const uint32_t index = elutq_group_index(weight->group_size);
    if (elutq_takes_levels(kernels, weight, n_tokens))
        kernels->gemm_levels(weight, &input->levels[index], n_tokens, chunk, y);
    else if (n_tokens == 1)
        kernels->gemv(weight, input->tables[index], chunk, y);
    else
        kernels->gemm_tables(weight, input->tables[index], n_tokens, chunk, y);
}

/* Multiplies session->input by several matrices; the threads share their chunks. */
static void multiply(struct pass *pass, unsigned thread, uint32_t n_tokens, const struct product *products,
                     unsigned n_products) {
    struct elutq_session *session = pass->session;
    const struct elutq_kernels *kernels = session->model->kernels;
    float *scratch = session->chunks + (size_t)thread * session->batch_tokens * ELUTQ_CHUNK_STRIDE;
    unsigned n_items = 0, item;
    for (unsigned i = 0; i < n_products; i++)
        n_items += elutq_matrix_chunks(&products[i].linear->weight);
    while (take(pass, thread, n_items, &item)) {
        const struct product *product = products;
        while (item >= elutq_matrix_chunks(&product->linear->weight))
            item -= elutq_matrix_chunks(&product++->linear->weight);
        const struct elutq_matrix *weight = &product->linear->weight;
        const uint32_t first = item * ELUTQ_CHUNK_ROWS, left = weight->n_rows - first;
        const uint32_t n_rows = left < ELUTQ_CHUNK_ROWS ? left : ELUTQ_CHUNK_ROWS;
        multiply_chunk(session, weight, n_tokens, item, scratch);
        for (uint32_t token = 0; token < n_tokens; token++) {
            float *result = scratch + (size_t)token * ELUTQ_CHUNK_STRIDE;
            float *y = product->y + token * product->y_stride + first;
            if (product->linear->bias != NULL)
                kernels->add(product->linear->bias + first, n_rows, result);
            if (product->accumulate)
                kernels->add(result, n_rows, y);
            else
                memcpy(y, result, n_rows * sizeof *y);
        }
    }
    elutq_pool_barrier(session->pool);
}

/* ---- the model ---- */

static void embed(struct pass *pass, unsigned thread) {
    struct elutq_session *session = pass->session;
    const uint32_t hidden_size = session->model->config.hidden_size;
    unsigned token;
    while (take(pass, thread, pass->n_tokens, &token))
        elutq_matrix_row(&session->model->embedding, (uint32_t)pass->tokens[token],
                         session->hidden + (size_t)token * hidden_size);
    elutq_pool_barrier(session->pool);
}

/* Norms and rotates a head's query or key, and multiplies it by its factors where there are any. */
static void position_head(const struct pass *pass, uint32_t token, const float *norm, const float *factors, float *head) {
    const struct elutq_session *session = pass->session;
    const struct elutq_config *config = &session->model->config;
    const struct elutq_kernels *kernels = session->model->kernels;
    const size_t half = config->head_dim / 2;
    if (norm != NULL)
        kernels->scale_by(head, kernels->rms_scale(head, config->head_dim, config->rms_norm_eps), norm, config->head_dim, head);
    kernels->rope(head, session->cosines + token * half, session->sines + token * half, config->head_dim);
    if (factors != NULL)
        kernels->scale_by(head, 1.0f, factors, config->head_dim, head);
}

/* Norms and rotates queries and keys, and appends keys and values to the cache. Items: token and KV head. */
static void position_and_store(struct pass *pass, unsigned thread, uint32_t i) {
    struct elutq_session *session = pass->session;
    const struct elutq_config *config = &session->model->config;
    const struct elutq_cache_kernels *cache = &session->model->kernels->cache[session->cache_type];
    const struct elutq_layer *layer = &session->model->layers[i];
    const uint32_t head_dim = config->head_dim, n_queries = config->n_heads / config->n_kv_heads;
    unsigned item;
    while (take(pass, thread, pass->n_tokens * config->n_kv_heads, &item)) {
        const uint32_t token = item / config->n_kv_heads, kv_head = item % config->n_kv_heads;
        const size_t row = (size_t)token * config->n_kv_heads + kv_head;
        const float *for_queries = NULL, *for_keys = NULL;
        if (session->key_balance != NULL) {
            for_queries = session->key_balance + 2 * ((size_t)i * config->n_kv_heads + kv_head) * head_dim;
            for_keys = for_queries + head_dim;
        }
        for (uint32_t q = 0; q < n_queries; q++)
            position_head(pass, token, layer->q_norm, for_queries, session->q + (row * n_queries + q) * head_dim);
        position_head(pass, token, layer->k_norm, for_keys, session->k + row * head_dim);
        const size_t at = elutq_cache_offset(session, i, kv_head, session->position + token);
        cache->store(session->k + row * head_dim, head_dim, session->keys + at);
        cache->store(session->v + row * head_dim, head_dim, session->values + at);
    }
    elutq_pool_barrier(session->pool);
}

/* Copies the query heads of one KV head between [token][n_heads][head_dim] and [token][n_queries][head_dim]. */
static void copy_heads(const struct elutq_config *config, const float *from, size_t from_stride, uint32_t n_tokens,
                       float *to, size_t to_stride) {
    const size_t width = (size_t)(config->n_heads / config->n_kv_heads) * config->head_dim;
    for (uint32_t token = 0; token < n_tokens; token++)
        memcpy(to + token * to_stride, from + token * from_stride, width * sizeof *to);
}

/*
 * softmax(q k^T / sqrt(head_dim)) v over the positions a token may see. Items: a KV head and a few tokens, head by head, so
 * that a head's keys and values come from memory once for all tokens of the batch.
 */
static void attend(struct pass *pass, unsigned thread, uint32_t i) {
    struct elutq_session *session = pass->session;
    const struct elutq_config *config = &session->model->config;
    const struct elutq_cache_kernels *cache = &session->model->kernels->cache[session->cache_type];
    const uint32_t head_dim = config->head_dim, n_queries = config->n_heads / config->n_kv_heads;
    const size_t width = (size_t)n_queries * head_dim, all_heads = (size_t)config->n_heads * head_dim;
    const float scale = 1.0f / sqrtf((float)head_dim);
    const uint32_t window = config->sliding_window;
    /* Tokens whose window has begun to slide each start at another key. */
    const bool slides = window != 0 && session->position + pass->n_tokens > window;
    const uint32_t block = slides ? 1 : ELUTQ_ATTEND_TOKENS, n_blocks = (pass->n_tokens + block - 1) / block;
    float *scores = session->scores + (size_t)thread * ELUTQ_ATTEND_TOKENS * n_queries * ELUTQ_ATTEND_STRIDE;
    float *queries = session->heads + 2 * (size_t)thread * ELUTQ_ATTEND_TOKENS * width;
    float *results = queries + ELUTQ_ATTEND_TOKENS * width;
    unsigned item;
    while (take(pass, thread, n_blocks * config->n_kv_heads, &item)) {
        const uint32_t token = item % n_blocks * block, kv_head = item / n_blocks;
        const uint32_t left = pass->n_tokens - token, n_tokens = left < block ? left : block;
        const uint32_t end = session->position + token + n_tokens;
        const uint32_t first = slides && end > window ? end - window : 0;
        const size_t at = elutq_cache_offset(session, i, kv_head, first);
        const size_t heads = token * all_heads + kv_head * width;
        copy_heads(config, session->q + heads, all_heads, n_tokens, queries, width);
        cache->attend(queries, n_tokens, n_queries, session->keys + at, session->values + at, end - first, head_dim, scale,
                      scores, results);
        copy_heads(config, results, width, n_tokens, session->attended + heads, all_heads);
    }
    elutq_pool_barrier(session->pool);
}

static void attention_block(struct pass *pass, unsigned thread, uint32_t i) {
    struct elutq_session *session = pass->session;
    const struct elutq_config *config = &session->model->config;
    const struct elutq_layer *layer = &session->model->layers[i];
    const size_t q_size = (size_t)config->n_heads * config->head_dim, kv_size = (size_t)config->n_kv_heads * config->head_dim;
    const struct product project[] = {
        {&layer->q, session->q, q_size, false},
        {&layer->k, session->k, kv_size, false},
        {&layer->v, session->v, kv_size, false},
    };
    const struct product output = {&layer->o, session->hidden, config->hidden_size, true};
    const struct source normed = {FROM_NORM, layer->attn_norm, 0, pass->n_tokens};
    const struct source attended = {FROM_ATTENTION, NULL, 0, pass->n_tokens};
    prepare_input(pass, thread, &normed, config->hidden_size, forms_of(session, project, 3, pass->n_tokens));
    mark(pass, thread, ELUTQ_PREPARE);
    multiply(pass, thread, pass->n_tokens, project, 3);
    mark(pass, thread, ELUTQ_QKV);
    position_and_store(pass, thread, i);
    mark(pass, thread, ELUTQ_POSITION);
    attend(pass, thread, i);
    mark(pass, thread, ELUTQ_ATTEND);
    prepare_input(pass, thread, &attended, (uint32_t)q_size, forms_of(session, &output, 1, pass->n_tokens));
    mark(pass, thread, ELUTQ_PREPARE);
    multiply(pass, thread, pass->n_tokens, &output, 1);
    mark(pass, thread, ELUTQ_ATTN_OUTPUT);
}

static void mlp_block(struct pass *pass, unsigned thread, uint32_t i) {
    struct elutq_session *session = pass->session;
    const struct elutq_config *config = &session->model->config;
    const struct elutq_layer *layer = &session->model->layers[i];
    const struct product expand[] = {
        {&layer->gate, session->gate, config->intermediate_size, false},
        {&layer->up, session->up, config->intermediate_size, false},
    };
    const struct product contract = {&layer->down, session->hidden, config->hidden_size, true};
    const struct source normed = {FROM_NORM, layer->ffn_norm, 0, pass->n_tokens};
    const struct source activated = {FROM_SWIGLU, NULL, 0, pass->n_tokens};
    prepare_input(pass, thread, &normed, config->hidden_size, forms_of(session, expand, 2, pass->n_tokens));
    mark(pass, thread, ELUTQ_PREPARE);
    multiply(pass, thread, pass->n_tokens, expand, 2);
    mark(pass, thread, ELUTQ_GATE_UP);
    prepare_input(pass, thread, &activated, config->intermediate_size, forms_of(session, &contract, 1, pass->n_tokens));
    mark(pass, thread, ELUTQ_PREPARE);
    multiply(pass, thread, pass->n_tokens, &contract, 1);
    mark(pass, thread, ELUTQ_DOWN);
}

static void head(struct pass *pass, unsigned thread) {
    const struct elutq_session *session = pass->session;
    const struct elutq_model *model = session->model;
    const struct product project = {&model->head, pass->logits, model->config.vocab_size, false};
    const struct source normed = {FROM_NORM, model->output_norm, pass->n_tokens - pass->n_logits, pass->n_logits};
    prepare_input(pass, thread, &normed, model->config.hidden_size, forms_of(session, &project, 1, pass->n_logits));
    mark(pass, thread, ELUTQ_PREPARE);
    multiply(pass, thread, pass->n_logits, &project, 1);
    mark(pass, thread, ELUTQ_HEAD);
}

static void run_pass(void *context, unsigned thread, unsigned n_threads) {
    (void)n_threads;
    struct pass *pass = context;
    embed(pass, thread);
    mark(pass, thread, ELUTQ_EMBED);
    for (uint32_t i = 0; i < pass->session->model->config.n_layers; i++) {
        attention_block(pass, thread, i);
        mlp_block(pass, thread, i);
    }
    if (pass->n_logits > 0)
        head(pass, thread);
}

int elutq_forward(struct elutq_session *session, const int32_t *tokens, uint32_t n_tokens, float *logits,
                   uint32_t n_logits) {
    const uint32_t half = session->model->config.head_dim / 2;
    for (uint32_t token = 0; token < n_tokens; token++) {
        for (uint32_t i = 0; i < half; i++) {
            float angle = (float)(session->position + token) * session->frequencies[i];
            session->cosines[token * half + i] = cosf(angle);
            session->sines[token * half + i] = sinf(angle);
        }
    }
    struct pass pass = {.session = session, .tokens = tokens, .n_tokens = n_tokens, .logits = logits, .n_logits = n_logits};
    if (session->profile != NULL) {
        session->profile->n_passes++;
        pass.last_mark = nanoseconds();
    }
    const int status = elutq_pool_run(session->pool, run_pass, &pass);
    return status == ELUTQ_OK && atomic_load(&session->cancelled) ? ELUTQ_ERROR_CANCELLED : status;
}
