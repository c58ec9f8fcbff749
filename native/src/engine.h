/*
 * An engine: the threads that run a model's passes, and the scratch of one pass. A pass takes pieces of many sequences
 * (sequence.h); what is computed for a piece does not depend on what it is computed beside.
 */
#ifndef ELUTQ_ENGINE_H
#define ELUTQ_ENGINE_H

#include "in_use.h"
#include "sequence.h"
#include "threads.h"

/* Tokens that attend together, so that a key or value is converted to float once for all of them. */
#define ELUTQ_ATTEND_TOKENS 4

#define ELUTQ_MAX_SEQUENCES 4096

/* Group sizes 32, 64, 128 and 256 have their own tables; index with elutq_group_index. */
#define ELUTQ_GROUP_SIZES 4

static inline uint32_t elutq_group_index(uint32_t group_size) {
    return group_size == 32 ? 0 : group_size == 64 ? 1 : group_size == 128 ? 2 : 3;
}

/*
 * The input of linear layers, in each form that their weights need. Rows whose piece is large enough are multiplied as
 * levels, the others' tables are looked up (struct elutq_batch).
 */
struct elutq_input {
    uint32_t n_columns;
    float *x;                                        /* [max_rows][n_columns] */
    struct elutq_tables *tables[ELUTQ_GROUP_SIZES];  /* [max_rows], NULL where no matrix takes them */
    struct elutq_levels levels[ELUTQ_GROUP_SIZES];   /* members NULL where no matrix takes them */
};

/* Tokens that one pass appends to a sequence. */
struct elutq_piece {
    elutq_sequence *sequence;
    const int32_t *tokens; /* [n_tokens], 1 to ELUTQ_PIECE_TOKENS */
    uint32_t n_tokens;
    uint32_t n_logits; /* of its last tokens, at most n_tokens */
    float *logits;     /* [n_logits][vocab_size] */
    float *hidden;     /* [n_tokens][hidden_size], or NULL */
    uint32_t position; /* of its first token */
    uint32_t first_row;
    uint32_t n_parts;    /* of its keys, where threads share them; else 0 */
    uint32_t first_slot; /* [n_kv_heads][n_parts] of engine->parts */
};

/* A token in a pass: its row of every buffer below. */
struct elutq_row {
    const struct elutq_piece *piece;
    uint32_t token; /* of the piece */
};

/*
 * Rows that are multiplied together, those of large pieces first. A matrix of so many bits takes the first n_levels[bits] as
 * levels and looks the tables of the rest up: a row's form is its piece's size alone.
 */
struct elutq_batch {
    uint32_t n_rows;
    uint32_t n_levels[5];
};

/* How much an expert has to say of a row. */
struct elutq_choice {
    uint32_t expert;
    uint32_t slot;
    float weight;
};

/* A row beside others that use the same expert. */
struct elutq_slot {
    uint32_t row;
    uint32_t batch; /* ELUTQ_NO_BATCH: nothing is here */
};
#define ELUTQ_NO_BATCH UINT32_MAX

/* The rows that use an expert, in their order. */
struct elutq_expert_batch {
    uint32_t expert;
    uint32_t first_slot; /* a multiple of ELUTQ_LEVELS_TOKENS */
    struct elutq_batch rows;
};

/* Which experts rows use in a layer, and what these read and write; NULLs where no layer has experts. */
struct elutq_routing {
    struct elutq_batch all;              /* rows of the pass, in the forms that experts take them */
    float *probabilities;                /* [max_rows][n_experts] */
    struct elutq_choice *choices;        /* [max_rows][n_experts_used] likeliest first */
    float *shared_weights;               /* [max_rows] of the shared expert */
    atomic_uint n_routed;                /* rows that have chosen; the last one's thread lays out the slots */
    uint32_t n_slots, n_batches;
    struct elutq_slot *slots;            /* [n_slots] */
    struct elutq_expert_batch *batches;  /* [n_batches] of the experts that are used, in their order */
    uint32_t *batch_of;                  /* [n_experts] rows, then the batch of an expert that has some */
    struct elutq_tables *gathered[ELUTQ_GROUP_SIZES]; /* [n_slots] their rows' tables, which they share */
    struct elutq_input input;            /* of slots */
    float *gate, *up;                    /* [n_slots][expert_size] */
    float *wide;                         /* [n_slots][hidden_size] what an fp16 gate and up read; then what experts give */
    float *shared;                       /* [max_rows][hidden_size] what the shared expert gives */
};

#define ELUTQ_MAX_ALLOCATIONS 128

/* ELUTQ_CANCELLED is over with the call that it ends, ELUTQ_RETIRED never. */
enum elutq_cancelled { ELUTQ_RUNS, ELUTQ_CANCELLED, ELUTQ_RETIRED };

struct elutq_engine {
    struct elutq_model *model; /* shared, and kept open */
    elutq_pool *pool;
    unsigned n_decode_threads; /* that run passes of less than ELUTQ_MANY_ROWS rows */
    uint32_t max_rows;     /* of a pass */
    atomic_int cancelled; /* enum elutq_cancelled: whether the pass under way is to end */
    elutq_in_use in_use;   /* a call is under way */
    struct elutq_profile *profile; /* NULL: not measured; the caller's */

    struct elutq_piece *pieces;    /* [max_rows] of the pass under way, large ones first */
    struct elutq_row *rows;        /* [max_rows] */
    uint32_t *logit_rows;          /* [max_rows] rows whose logits are wanted */
    float **logits;                /* [max_rows] where they go */
    struct elutq_batch all, wanted;
    bool wants_hidden; /* some piece does */

    float *frequencies;     /* [ELUTQ_N_ROPES + 1][rope_dim / 2] radians a position; the last: of long sequences */
    float *hidden;          /* [max_rows][hidden_size] the residual stream */
    float *q, *k, *v;       /* [max_rows][n_heads or n_kv_heads][head_dim] */
    float *attended;        /* [max_rows][n_heads][head_dim] */
    float *gate, *up;       /* [max_rows][width of the MLP, or of the shared expert] */
    float *written;         /* [max_rows][hidden_size] what a branch adds to the stream, where that is normed first */
    float *cosines, *sines; /* [ELUTQ_N_ROPES][max_rows][rope_dim / 2] */
    struct elutq_input input;
    struct elutq_routing routing;
    float *chunks; /* [n_threads][max_rows][ELUTQ_CHUNK_STRIDE] */
    float *scores; /* [n_threads][ELUTQ_ATTEND_TOKENS][n_heads / n_kv_heads][ELUTQ_ATTEND_STRIDE] */
    float *heads;  /* [n_threads][queries, results, those of a part][ELUTQ_ATTEND_TOKENS][n_heads / n_kv_heads][head_dim] */
    struct elutq_weighing *weighings; /* [n_threads][results, those of a part][ELUTQ_ATTEND_TOKENS][n_heads / n_kv_heads] */
    float *parts;                     /* [n_slots] what a head attends to in a part (attend.c), for as many as were needed */
    uint32_t n_slots;

    void *allocations[ELUTQ_MAX_ALLOCATIONS];
    unsigned n_allocations;
};

/*
 * Rows of a piece that share an expert, if all experts are used alike. A row's form is its piece's size alone, here too: not
 * how many rows happen to be beside it.
 */
static inline uint32_t elutq_rows_an_expert(const struct elutq_config *config, uint32_t n_tokens) {
    return n_tokens * config->n_experts_used / config->n_experts;
}

/* Begins a call: what cancelled the last one does not count any more. */
void elutq_engine_go_on(struct elutq_engine *engine);

/* Gives a new engine its buffers; false when there is no memory for them. */
bool elutq_allocate_scratch(struct elutq_engine *engine, unsigned n_threads);

#endif
