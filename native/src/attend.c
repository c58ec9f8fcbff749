/* Attention over the keys and values of each piece's sequence. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "aligned.h"
#include "pass.h"

/* Copies the query heads of one KV head between [row][n_heads][head_dim] and [row][n_queries][head_dim]. */
static void copy_heads(const struct elutq_config *config, const float *from, size_t from_stride, uint32_t n_rows, float *to,
                       size_t to_stride) {
    const size_t width = (size_t)(config->n_heads / config->n_kv_heads) * config->head_dim;
    for (uint32_t row = 0; row < n_rows; row++)
        memcpy(to + row * to_stride, from + row * from_stride, width * sizeof *to);
}

/* Whether tokens of a piece no longer see the first: then each starts at another key. window: a layer's. */
static bool slides(const struct elutq_piece *piece, uint32_t window) {
    return window != 0 && piece->position + piece->n_tokens > window;
}

/* Tokens of a piece that attend together, and how many times that makes. */
static uint32_t attend_block(const struct elutq_piece *piece, uint32_t window) {
    return slides(piece, window) ? 1 : ELUTQ_ATTEND_TOKENS;
}

static uint32_t attend_blocks(const struct elutq_piece *piece, uint32_t window) {
    return (piece->n_tokens + attend_block(piece, window) - 1) / attend_block(piece, window);
}

/* What some tokens of a piece, of one block, see in one KV head. */
struct view {
    uint32_t first, n_keys; /* positions */
    uint32_t token, n_tokens;
};

static struct view view_of(const struct elutq_piece *piece, uint32_t block, uint32_t window) {
    const uint32_t token = block * attend_block(piece, window), left = piece->n_tokens - token;
    const uint32_t n_tokens = left < attend_block(piece, window) ? left : attend_block(piece, window);
    const uint32_t end = piece->position + token + n_tokens;
    const uint32_t first = slides(piece, window) && end > window ? end - window : 0;
    return (struct view){first, end - first, token, n_tokens};
}

static uint32_t count_parts(uint32_t n_keys) {
    return (n_keys + ELUTQ_ATTEND_KEYS - 1) / ELUTQ_ATTEND_KEYS;
}

/* A thread's scratch. */
struct attend_scratch {
    float *scores, *queries, *results, *part_results;
    struct elutq_weighing *weighings, *part_weighings;
};

static struct attend_scratch scratch_of(const struct elutq_engine *engine, unsigned thread) {
    const struct elutq_config *config = &engine->model->config;
    const size_t n_rows = (size_t)ELUTQ_ATTEND_TOKENS * (config->n_heads / config->n_kv_heads);
    const size_t size = n_rows * config->head_dim;
    float *heads = engine->heads + 3 * thread * size;
    struct elutq_weighing *weighings = engine->weighings + 2 * thread * n_rows;
    float *scores = engine->scores + thread * n_rows * ELUTQ_ATTEND_STRIDE;
    return (struct attend_scratch){scores, heads, heads + size, heads + 2 * size, weighings, weighings + n_rows};
}

/* One part of what a view's tokens attend to. */
static void attend_part(const struct elutq_engine *engine, const struct elutq_piece *piece, const struct view *view, uint32_t i,
                        uint32_t kv_head, uint32_t part, const float *queries, float *scores,
                        struct elutq_weighing *weighings, float *y) {
    const struct elutq_config *config = &engine->model->config;
    const struct elutq_sequence *sequence = piece->sequence;
    const struct elutq_cache_kernels *cache = &engine->model->kernels->cache[sequence->cache_type];
    const size_t head = elutq_cache_offset(sequence, i, kv_head, 0);
    const struct elutq_ring ring = {sequence->keys + head, sequence->values + head, elutq_cache_rows(sequence, i),
                                    elutq_cache_row(sequence, i, view->first), view->n_keys};
    cache->attend(queries, view->n_tokens, config->n_heads / config->n_kv_heads, &ring, part, config->head_dim,
                  1.0f / sqrtf((float)config->head_dim), config->attention_softcap, scores, weighings, y);
}

/* One block of a piece's tokens and one KV head, part after part. */
static void attend_block_of(struct elutq_engine *engine, const struct elutq_piece *piece, uint32_t i, uint32_t block,
                            uint32_t kv_head, const struct attend_scratch *scratch) {
    const struct elutq_config *config = &engine->model->config;
    const struct elutq_kernels *kernels = engine->model->kernels;
    const struct view view = view_of(piece, block, engine->model->layers[i].window);
    const uint32_t n_queries = config->n_heads / config->n_kv_heads, n_rows = view.n_tokens * n_queries;
    const size_t width = (size_t)n_queries * config->head_dim, all_heads = (size_t)config->n_heads * config->head_dim;
    const size_t heads = (piece->first_row + view.token) * all_heads + kv_head * width;
    copy_heads(config, engine->q + heads, all_heads, view.n_tokens, scratch->queries, width);
    attend_part(engine, piece, &view, i, kv_head, 0, scratch->queries, scratch->scores, scratch->weighings, scratch->results);
    for (uint32_t part = 1; part < count_parts(view.n_keys); part++) {
        attend_part(engine, piece, &view, i, kv_head, part, scratch->queries, scratch->scores, scratch->part_weighings,
                    scratch->part_results);
        kernels->join_parts(scratch->part_weighings, scratch->part_results, n_rows, config->head_dim, scratch->weighings,
                            scratch->results);
    }
    kernels->finish_parts(scratch->weighings, n_rows, config->head_dim, scratch->results);
    copy_heads(config, scratch->results, width, view.n_tokens, engine->attended + heads, all_heads);
}

/* The parts of a piece whose keys are shared, in a layer with this window: no more than there is room for. */
static uint32_t shared_parts(const struct elutq_piece *piece, uint32_t window) {
    return count_parts(view_of(piece, 0, window).n_keys);
}

static uint32_t attend_items(const struct elutq_engine *engine, const struct elutq_piece *piece, uint32_t window) {
    const uint32_t n_parts = piece->n_parts > 0 ? shared_parts(piece, window) : attend_blocks(piece, window);
    return engine->model->config.n_kv_heads * n_parts;
}

/* What one head of a single token attends to in one part: its results, and behind them their weighings. */
static size_t slot_floats(const struct elutq_config *config) {
    return (size_t)(config->n_heads / config->n_kv_heads) * (config->head_dim + 2);
}

static void attend_item(struct elutq_engine *engine, const struct elutq_piece *piece, uint32_t i, uint32_t item,
                        const struct attend_scratch *scratch) {
    const struct elutq_config *config = &engine->model->config;
    const uint32_t window = engine->model->layers[i].window;
    if (piece->n_parts == 0) {
        attend_block_of(engine, piece, i, item % attend_blocks(piece, window), item / attend_blocks(piece, window), scratch);
        return;
    }
    const struct view view = view_of(piece, 0, window);
    const uint32_t n_parts = count_parts(view.n_keys), part = item % n_parts, kv_head = item / n_parts;
    const size_t width = (size_t)(config->n_heads / config->n_kv_heads) * config->head_dim;
    const size_t heads = (size_t)piece->first_row * config->n_heads * config->head_dim + kv_head * width;
    float *slot = engine->parts + (piece->first_slot + kv_head * piece->n_parts + part) * slot_floats(config);
    attend_part(engine, piece, &view, i, kv_head, part, engine->q + heads, scratch->scores,
                (struct elutq_weighing *)(slot + width), slot);
}

/* Joins the parts of one head of a piece whose keys were shared, in their order. */
static void join_item(struct elutq_engine *engine, const struct elutq_piece *piece, uint32_t window, uint32_t kv_head) {
    const struct elutq_config *config = &engine->model->config;
    const struct elutq_kernels *kernels = engine->model->kernels;
    const uint32_t n_queries = config->n_heads / config->n_kv_heads;
    const size_t width = (size_t)n_queries * config->head_dim, size = slot_floats(config);
    float *slots = engine->parts + (piece->first_slot + kv_head * piece->n_parts) * size;
    struct elutq_weighing *weighings = (struct elutq_weighing *)(slots + width);
    for (uint32_t part = 1; part < shared_parts(piece, window); part++) {
        const float *slot = slots + part * size;
        kernels->join_parts((const struct elutq_weighing *)(slot + width), slot, n_queries, config->head_dim, weighings, slots);
    }
    kernels->finish_parts(weighings, n_queries, config->head_dim, slots);
    memcpy(engine->attended + (size_t)piece->first_row * config->n_heads * config->head_dim + kv_head * width, slots,
           width * sizeof *slots);
}

/* Room for so many slots; there may be none, and then keys are not shared. */
static bool reserve_slots(struct elutq_engine *engine, uint32_t n_slots) {
    if (n_slots <= engine->n_slots)
        return true;
    float *parts = elutq_allocate_aligned(n_slots, slot_floats(&engine->model->config) * sizeof *parts);
    if (parts == NULL)
        return false;
    elutq_free_aligned(engine->parts);
    engine->parts = parts;
    engine->n_slots = n_slots;
    return true;
}

/* The window of the layers that see most. */
static uint32_t widest_window(const struct elutq_model *model) {
    for (uint32_t i = 0; i < model->config.n_layers; i++)
        if (model->layers[i].window == 0)
            return 0;
    return model->config.sliding_window;
}

void elutq_share_keys(struct elutq_engine *engine, uint32_t n_pieces, unsigned n_threads) {
    const uint32_t n_kv_heads = engine->model->config.n_kv_heads;
    const uint32_t window = widest_window(engine->model);
    uint64_t n_blocks = 0, n_slots = 0;
    for (uint32_t i = 0; i < n_pieces; i++) {
        const struct elutq_piece *piece = &engine->pieces[i];
        n_blocks += (uint64_t)attend_blocks(piece, window) * n_kv_heads;
        if (piece->n_tokens == 1)
            n_slots += (uint64_t)count_parts(view_of(piece, 0, window).n_keys) * n_kv_heads;
    }
    const uint64_t most = (n_blocks + n_threads - 1) / n_threads;
    if (most * n_threads * 10 <= n_blocks * 11 || n_slots > UINT32_MAX || !reserve_slots(engine, (uint32_t)n_slots))
        return;
    uint32_t slot = 0;
    for (uint32_t i = 0; i < n_pieces; i++) {
        struct elutq_piece *piece = &engine->pieces[i];
        const uint32_t n_parts = piece->n_tokens == 1 ? count_parts(view_of(piece, 0, window).n_keys) : 1;
        if (n_parts == 1)
            continue;
        piece->n_parts = n_parts;
        piece->first_slot = slot;
        slot += n_parts * n_kv_heads;
    }
}

void elutq_attend(const struct elutq_pass *pass, unsigned thread, uint32_t i) {
    struct elutq_engine *engine = pass->engine;
    const struct attend_scratch scratch = scratch_of(engine, thread);
    const uint32_t window = engine->model->layers[i].window;
    unsigned n_items = 0, n_joined = 0, item;
    for (uint32_t j = 0; j < pass->n_pieces; j++) {
        n_items += attend_items(engine, &engine->pieces[j], window);
        n_joined += engine->pieces[j].n_parts > 0 ? engine->model->config.n_kv_heads : 0;
    }
    while (elutq_take(pass, thread, n_items, &item)) {
        const struct elutq_piece *piece = engine->pieces;
        while (item >= attend_items(engine, piece, window))
            item -= attend_items(engine, piece++, window);
        attend_item(engine, piece, i, item, &scratch);
    }
    elutq_pool_barrier(engine->pool, thread);
    if (n_joined == 0)
        return;
    while (elutq_take(pass, thread, n_joined, &item)) {
        const struct elutq_piece *piece = engine->pieces;
        for (; piece->n_parts == 0 || item >= engine->model->config.n_kv_heads; piece++)
            item -= piece->n_parts > 0 ? engine->model->config.n_kv_heads : 0;
        join_item(engine, piece, window, item % engine->model->config.n_kv_heads);
    }
    elutq_pool_barrier(engine->pool, thread);
}
