/* What the stages of a pass share. All of its threads run every stage; between two barriers they share its items. */
#ifndef ELUTQ_PASS_H
#define ELUTQ_PASS_H

#include "forward.h"

struct elutq_pass {
    struct elutq_engine *engine;
    unsigned n_threads; /* that run it, the first ones of the pool */
    uint32_t n_pieces;
    struct elutq_layers layers;
    uint64_t last_mark; /* when the last operation ended, in ns; thread 0 only */
};

/*
 * The next item of a stage, as elutq_pool_take hands them out. A cancelled pass takes no more: its threads meet at the
 * barriers that are left, and what they computed counts for nothing. An item is a millisecond or two on a slow core.
 */
static inline bool elutq_take(const struct elutq_pass *pass, unsigned thread, unsigned n_items, unsigned *item) {
    return !atomic_load_explicit(&pass->engine->cancelled, memory_order_relaxed) &&
           elutq_pool_take(pass->engine->pool, thread, n_items, item);
}

/* Where the input of linear layers comes from. */
struct elutq_source {
    enum { ELUTQ_FROM_NORM, ELUTQ_FROM_ATTENTION, ELUTQ_FROM_GATE } kind;
    const float *norm;    /* ELUTQ_FROM_NORM: its weight; NULL: the residual stream as it is */
    const uint32_t *rows; /* [n_rows] the rows of the pass that it takes; NULL: all in their order */
};

/* y[row] = or += weight x + bias. */
struct elutq_product {
    const struct elutq_linear *linear;
    float *y; /* [n_rows][y_stride] */
    size_t y_stride;
    bool accumulate;
    float *const *ys; /* [n_rows], in the place of y where that is NULL */
};

/* One stage: reads a source into engine->input, in the forms that these products take. */
void elutq_prepare_input(const struct elutq_pass *pass, unsigned thread, const struct elutq_source *source,
                         const struct elutq_batch *batch, uint32_t n_columns, const struct elutq_product *products,
                         unsigned n_products);

/* Of the matrices with one group size: one takes rows below `levels` as levels, one those from `tables` on as tables. */
struct elutq_forms {
    uint32_t levels, tables;
};

void elutq_find_forms(const struct elutq_batch *batch, const struct elutq_product *products, unsigned n_products,
                      struct elutq_forms forms[ELUTQ_GROUP_SIZES]);

/* Columns first .. end - 1 of row `row`, x[n_columns], in those forms that the row is taken in. */
void elutq_round_row(const struct elutq_kernels *kernels, const struct elutq_forms forms[ELUTQ_GROUP_SIZES],
                     struct elutq_input *input, const float *x, uint32_t n_columns, uint32_t row, uint32_t first,
                     uint32_t end);

/* Multiplies an input by tiles of a matrix, from `tile` on n_tiles or as many as there are. */
void elutq_multiply_tiles(const struct elutq_engine *engine, unsigned thread, const struct elutq_input *input,
                          const struct elutq_batch *batch, const struct elutq_product *product, uint32_t tile,
                          uint32_t n_tiles);

/* One stage: multiplies engine->input by several matrices. */
void elutq_multiply(const struct elutq_pass *pass, unsigned thread, const struct elutq_batch *batch,
                    const struct elutq_product *products, unsigned n_products);

/*
 * The stages of layer i's experts: routes the rows of the pass, groups them by their experts, so that the weights of each are
 * read once, and adds to the stream what these give, times how likely each is, and routing->shared where an expert is shared;
 * with a norm after the branch, writes it aside.
 */
void elutq_run_experts(struct elutq_pass *pass, unsigned thread, uint32_t i);

/* Books the time since the last mark under an operation. */
void elutq_mark(struct elutq_pass *pass, unsigned thread, enum elutq_operation operation);

/*
 * One or two stages of layer i: softmax(q k^T / sqrt(head_dim)) v over the positions that a token may see. Items: a piece, a KV
 * head and a few tokens, head by head, so that a head's keys and values come from memory once for all tokens of the piece; of
 * a piece whose keys are shared, a KV head and a part of the keys, which a second stage joins. The bits are the same.
 */
void elutq_attend(const struct elutq_pass *pass, unsigned thread, uint32_t i);

/*
 * Before a pass: has the threads share the keys of single tokens where heads alone would leave the busiest thread more than 1.1
 * times what the average one has.
 */
void elutq_share_keys(struct elutq_engine *engine, uint32_t n_pieces, unsigned n_threads);

#endif
