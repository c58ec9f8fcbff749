/*
 * The kernels behind the runtime, one `struct elutq_kernels` per instruction set. Public so that tests and benchmarks can
 * hold each against the scalar one and against float64; programs use elutq.h.
 *
 * The scalar kernels define the result. Every other set gives the same bits, and a token gets the same from a batch as alone,
 * as long as no product leaves the range of a float: past it one may give an infinity where another does not yet.
 *
 * Thread safety: all functions are pure; they touch only what their arguments point to. No argument may overlap an
 * output unless said so.
 */
#ifndef ELUTQ_KERNELS_H
#define ELUTQ_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "elutq.h"

/* Most rows that a kernel computes together: one superblock of an HLQ matrix, or as many rows of an fp16 one. */
#define ELUTQ_CHUNK_ROWS 256

/* Floats from one token's chunk of results to the next's: a little more than a chunk, to spread them over cache sets. */
#define ELUTQ_CHUNK_STRIDE 272

/* Keys of one part of attention, and the floats from one query's scores in scratch to the next's. */
#define ELUTQ_ATTEND_KEYS 256
#define ELUTQ_ATTEND_STRIDE 272

/* Tokens of one elutq_levels block. */
#define ELUTQ_LEVELS_TOKENS 8

struct elutq_matrix {
    const uint8_t *data; /* HLQ blocks (elutq_format.h), aligned as those behind the first are, or fp16[n_rows][n_columns],
                            as fp16 is: a tensor is 64-byte aligned, the second expert in it may not be; not owned */
    uint32_t n_rows;
    uint32_t n_columns;
    uint32_t bits;       /* 1 to 4: HLQ; 16: fp16 */
    uint32_t group_size; /* HLQ: 32, 64, 128 or 256, divides n_columns */
    uint32_t kind;       /* HLQ: ELUTQ_KIND_..., 0: free16 */
    uint32_t exponent;   /* ELUTQ_KIND_BYTES: of two, 0 to ELUTQ_MAX_EXPONENT; other kinds: 0 */
    int32_t center;      /* ELUTQ_KIND_EVEN without CENTERS: of all groups and rows, in quarters of their half scale h_1 */
};

/* Rows that a kernel computes together: tiles of 32, one to eight of them, all of one superblock (elutq_format.h). */
struct elutq_part {
    uint32_t tile; /* the first */
    uint32_t n_tiles;
};

/* The multipliers of a group's cells add up to no more, so that sums of multiplied entries fit 16 bits. */
#define ELUTQ_MULTIPLIERS 258

/*
 * Lookup tables of one token's activations x[n_columns]. For cell i (columns 4i .. 4i+3) entry[i][b] is the sum of +-x over
 * the cell, + where bit of b is set, divided by the group's scale times the cell's multiplier and rounded to int8.
 */
struct elutq_tables {
    int8_t *entries;      /* [n_columns / 4][16], 64-byte aligned, -127 .. 127 */
    uint8_t *multipliers; /* [n_columns / 4], 1 .. 127 */
    float *scales;        /* [n_columns / group_size] */
    float *sums;     /* [n_columns / group_size] float sums of the activations */
};

/*
 * Activations of a batch as whole numbers value + 256 * high, for kernels that expand bit-planes to 8-bit levels and
 * multiply: blocks of ELUTQ_LEVELS_TOKENS tokens; n_blocks = ceil(n_tokens / 8). In the place of tokens past the last may be
 * what others have left there: it may be read, and changes no result. Few cells hold anything high.
 */
struct elutq_levels {
    int8_t *values; /* [n_blocks][n_columns / 4][8][4] */
    int8_t *high;   /* [n_blocks][n_columns / 4][8][4] */
    uint64_t *high_cells; /* [n_blocks][n_columns / group_size][8] bit i: the group's cell i holds something high */
    float *scales;  /* [n_blocks][n_columns / group_size][8] */
    float *sums;    /* [n_blocks][n_columns / group_size][8] float sums of the activations */
    int32_t *biases; /* [n_blocks][n_columns / group_size][8] -128 * sum of the group's numbers */
};

/* What the scores of one query came to over some keys: the largest, and the sum of exp(score - largest). */
struct elutq_weighing {
    float largest, total;
};

/*
 * The keys of one head that tokens attend to, and their values: n_keys of the rows of a ring, from row `first` on. What comes
 * after the last row is the first one.
 */
struct elutq_ring {
    const void *keys, *values; /* n_rows rows each, one behind the other */
    uint32_t n_rows, first;    /* first < n_rows */
    uint32_t n_keys;           /* at most n_rows; finite */
};

/*
 * Keys and values of one head, in one type of cache. A row is the key or value of one position: ELUTQ_CACHE_F16,
 * fp16[head_dim]; ELUTQ_CACHE_Q8, int8[head_dim] and then the float that they are multiples of. Rows need no alignment
 * but that of fp16.
 */
struct elutq_cache_kernels {
    /* Rounds x[head_dim] to a row. */
    void (*store)(const float *x, uint32_t head_dim, void *row);

    /*
     * Causal attention of n_tokens consecutive tokens, each with n_queries query heads, over one key-value head, as far as
     * part `part` of the keys goes, those from ELUTQ_ATTEND_KEYS * part on: y = sum exp(score - largest) * value, where
     * score = scale * query . key, or softcap * tanh(that / softcap) where softcap is not 0. The last token sees all n_keys
     * keys, each one before it one key less.
     * queries, y: [n_tokens][n_queries][head_dim]; weighings: [n_tokens][n_queries]; ring->n_keys >= n_tokens; scores:
     * scratch [n_tokens][n_queries][ELUTQ_ATTEND_STRIDE]. Where in the ring the keys lie changes no bit.
     */
    void (*attend)(const float *queries, uint32_t n_tokens, uint32_t n_queries, const struct elutq_ring *ring, uint32_t part,
                   uint32_t head_dim, float scale, float softcap, float *scores, struct elutq_weighing *weighings, float *y);
};

struct elutq_kernels {
    const char *name;

    /* Builds the tables of groups first_group .. end_group - 1 from x[n_columns]. */
    void (*build_tables)(const float *x, uint32_t group_size, uint32_t first_group, uint32_t end_group,
                         struct elutq_tables *tables);

    /* A part of an HLQ matrix times one token: y[32 * n_tiles]. */
    void (*gemv)(const struct elutq_matrix *matrix, const struct elutq_tables *tables, struct elutq_part part, float *y);

    /* A part times a batch, tables[n_tokens]: y[n_tokens][ELUTQ_CHUNK_STRIDE]. Gives each token what gemv gives it. */
    void (*gemm_tables)(const struct elutq_matrix *matrix, const struct elutq_tables *tables, uint32_t n_tokens,
                        struct elutq_part part, float *y);

    /*
     * Quantizes groups first_group .. end_group - 1 of token `token` (0 .. n_tokens - 1) of a batch into `levels`. NULL with
     * gemm_levels where an ISA has none.
     */
    void (*build_levels)(const float *x, uint32_t n_columns, uint32_t group_size, uint32_t token, uint32_t first_group,
                         uint32_t end_group, struct elutq_levels *levels);

    /* A part times a batch of int8 activations: y[n_tokens][ELUTQ_CHUNK_STRIDE]. */
    void (*gemm_levels)(const struct elutq_matrix *matrix, const struct elutq_levels *levels, uint32_t n_tokens,
                        struct elutq_part part, float *y);

    /* Tokens of a batch from which gemm_levels is faster than gemm_tables, by bits; 0: at no number of them. */
    uint32_t levels_from[5];

    /*
     * A part of an fp16 matrix times x[n_tokens][x_stride]: y[n_tokens][ELUTQ_CHUNK_STRIDE]; rows past the matrix's last are
     * left alone.
     */
    void (*gemm_f16)(const struct elutq_matrix *matrix, const float *x, size_t x_stride, uint32_t n_tokens,
                     struct elutq_part part, float *y);

    /* 1 / sqrt(mean(x^2) + epsilon) over x[n]. */
    float (*rms_scale)(const float *x, uint32_t n, float epsilon);

    /* y[n] = x[n] * scale * weight[n]; y may be x. */
    void (*scale_by)(const float *x, float scale, const float *weight, uint32_t n, float *y);

    /* Rotates x[n], n even, in place, pairs (i, i + n / 2), by cosines[n / 2] and sines[n / 2]. */
    void (*rope)(float *x, const float *cosines, const float *sines, uint32_t n);

    /* y[n] = gate / (1 + exp(-gate)) * up; y may be gate or up. */
    void (*swiglu)(const float *gate, const float *up, uint32_t n, float *y);

    /* y[n] = GELU(gate), by its approximation with tanh, * up; y may be gate or up. */
    void (*geglu)(const float *gate, const float *up, uint32_t n, float *y);

    /* x[n] = cap * tanh(x / cap), cap > 0. */
    void (*soften)(float *x, uint32_t n, float cap);

    /* y[n] += x[n]. */
    void (*add)(const float *x, uint32_t n, float *y);

    /* y[n] += scale * x[n], rounded once. */
    void (*add_scaled)(const float *x, float scale, uint32_t n, float *y);

    /* y[n_rows] = weights[n_rows][n_columns] x[n_columns], summed in sixteen lanes in the order of the columns. */
    void (*multiply_floats)(const float *weights, const float *x, uint32_t n_rows, uint32_t n_columns, float *y);

    /* By elutq_cache_type. */
    struct elutq_cache_kernels cache[2];

    /* Adds what n rows attended to in the next part to what they did in those before: weighings[n], y[n][head_dim]. */
    void (*join_parts)(const struct elutq_weighing *part_weighings, const float *part_y, uint32_t n, uint32_t head_dim,
                       struct elutq_weighing *weighings, float *y);

    /* After the last part: y[n][head_dim] is divided by its totals, so that the weights were a softmax. */
    void (*finish_parts)(const struct elutq_weighing *weighings, uint32_t n, uint32_t head_dim, float *y);

    /* Loads x[n], n a multiple of 64, and does next to nothing with it: measures memory. Returns something of it. */
    float (*read_floats)(const float *x, size_t n);
};

/* All kernel sets this build holds, best first; i from 0, NULL past the last. */
const struct elutq_kernels *elutq_kernels_at(unsigned i);

/* Whether this CPU (and operating system) can run a set. */
int elutq_kernels_supported(const struct elutq_kernels *kernels);

/* The set of that name, NULL where there is none or this CPU cannot run it. */
const struct elutq_kernels *elutq_kernels_named(const char *name);

/*
 * How many tiles of matrices that have n_tiles in all the threads of a pool take at a time: a superblock's eight, whose bytes
 * follow each other, or fewer, where otherwise the busiest thread had more than 1.15 times what the average one has (1.5 for
 * up to four threads).
 */
uint32_t elutq_tiles_per_item(uint32_t n_tiles, unsigned n_threads);

/*
 * Threads that round activations write no cache line of 64 bytes together. One row's tables are cut between columns whose
 * multipliers fill a line; the levels of a batch, where the tokens of a block lie side by side, between groups whose scales,
 * eight tokens', do, the columns of all blocks one behind the other.
 */
#define ELUTQ_TABLES_LINE_COLUMNS 256
#define ELUTQ_LEVELS_LINE_GROUPS 2

/* Where part `part` of n_parts begins when n_columns are cut so; n_columns for what lies behind the last part. */
uint64_t elutq_part_start(uint64_t n_columns, uint32_t line_columns, unsigned n_parts, unsigned part);

/* Dequantizes one row of an HLQ or fp16 matrix: y[n_columns]. */
void elutq_matrix_row(const struct elutq_matrix *matrix, uint32_t row, float *y);

#endif
