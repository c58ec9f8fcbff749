/*
 * elutq: runs LLaMA-family models stored as HLQ bit-planes (formats/SPEC.md) on a CPU.
 *
 * A model is a read-only mapping of one file; a sequence is one text over it, its keys and values; an engine has the threads
 * and the scratch that evaluate tokens of many sequences in one pass.
 *
 * Thread safety: a model may be used by any number of engines and sequences in any threads at once. An engine, a sequence or
 * a pool is used by one thread at a time (an engine runs threads of its own inside): a call that finds another one under way
 * in it returns ELUTQ_ERROR_IN_USE and does nothing. Nothing here prints or exits, and only elutq_survive_lost_pages keeps
 * anything outside of what the caller holds.
 *
 * Processes: threads do not survive fork(). In the child, models and sequences may be used and closed, engines and pools be
 * created; what was created before and has threads of its own, or was in a call when the process forked, returns
 * ELUTQ_ERROR_FORKED, but can be destroyed. A sequence that was in a call is as after one that failed.
 *
 * Functions that can fail return ELUTQ_OK or another elutq_status and, where they take `error`, write one
 * NUL-terminated line that says what is wrong (`error` may be NULL when `error_bytes` is 0).
 */
#ifndef ELUTQ_H
#define ELUTQ_H

#include <stddef.h>
#include <stdint.h>

enum elutq_status {
    ELUTQ_OK = 0,
    ELUTQ_ERROR_IO = 1,       /* the file cannot be opened, read or mapped, or changed while in use */
    ELUTQ_ERROR_FORMAT = 2,   /* the file is damaged, or is not a model this library runs */
    ELUTQ_ERROR_ARGUMENT = 3, /* the caller asked for something impossible */
    ELUTQ_ERROR_MEMORY = 4,   /* an allocation or a thread could not be had */
    ELUTQ_ERROR_CONTEXT = 5,  /* more tokens than the sequence's context holds */
    ELUTQ_ERROR_CANCELLED = 6, /* elutq_engine_cancel or _retire was called */
    ELUTQ_ERROR_IN_USE = 7,    /* another thread is in a call on the same engine, sequence or pool */
    ELUTQ_ERROR_FORKED = 8,    /* the process was forked after the threads were started, and has none of them */
    ELUTQ_ERROR_OVERWRITTEN = 9 /* keys and values that would be needed have given way to later ones */
};

typedef struct elutq_pool elutq_pool;
typedef struct elutq_model elutq_model;
typedef struct elutq_sequence elutq_sequence;
typedef struct elutq_engine elutq_engine;

/* ---- threads ---- */

/* Number of physical cores this process may use: affinity mask, SMT siblings and cgroup CPU quota respected; >= 1. */
unsigned elutq_default_threads(void);

/* Creates a persistent pool of n_threads (1 to 256), the caller's thread included. The caller owns *pool. */
int elutq_pool_create(unsigned n_threads, elutq_pool **pool);

/* Stops the threads and frees the pool; NULL is allowed. While a task runs: ELUTQ_ERROR_IN_USE, and it stays. */
int elutq_pool_destroy(elutq_pool *pool);

/* ---- model ---- */

struct elutq_model_info {
    uint32_t vocab_size;
    uint32_t context_length; /* tokens the model was trained for */
    uint32_t hidden_size;
    uint32_t n_layers;
    uint32_t n_heads;
    uint32_t n_kv_heads;
    uint32_t head_dim;
    uint32_t sliding_window;   /* tokens that a position attends to, itself included, in layers that have a window */
    uint32_t n_sliding_layers; /* how many layers have one; the others attend to all tokens */
    uint64_t file_bytes;
    uint64_t bytes_per_token;    /* weights read from the file to decode one token: an embedding row, the head, and of all
                                    blocks what it uses, of experts those that it is sent to */
    const char *isa;             /* kernels chosen: "scalar", "avx2", "avx512", ...; static storage */
};

/*
 * Maps and validates the file at `path`. `isa` names the kernels to use, NULL means the best this CPU has; an unknown or
 * unsupported name is ELUTQ_ERROR_ARGUMENT. The caller owns *model.
 */
int elutq_model_open(const char *path, const char *isa, elutq_model **model, char *error, size_t error_bytes);

/*
 * Gives the model up; NULL is allowed. Its engines and sequences go on: the file is unmapped when
 * the last of them is destroyed.
 */
void elutq_model_close(elutq_model *model);

void elutq_model_describe(const elutq_model *model, struct elutq_model_info *info);

/*
 * The file stays mapped while a model is open. Renaming or deleting it does no harm, nor does a new time (touch); when it is
 * cut short or written to, elutq_engine_eval returns ELUTQ_ERROR_IO, because it looks at the file's size and time before
 * and after each pass, and where the time changed at what it holds: everything in a file of up to 16 MB, the metadata and
 * 128 places in a larger one. What happens to a pass under way when pages vanish beneath it, or to one that meets a disk
 * that cannot be read, is SIGBUS, which kills the process, unless this function was called: it installs a handler, for the
 * whole process and once, that puts zeros in the place of such pages of open models, so that the pass ends and returns
 * ELUTQ_ERROR_IO. Any other SIGBUS goes to the handler that was there before. At most 64 models are looked after at a time.
 * A program that installs a SIGBUS handler of its own does so before this call. Under Windows all of this is said of the
 * exception EXCEPTION_IN_PAGE_ERROR and of a vectored handler, and the zeros stand in the place of the whole model.
 */
int elutq_survive_lost_pages(void);

/* ---- sequence ---- */

/* How a sequence keeps keys and values. */
enum elutq_cache_type {
    ELUTQ_CACHE_F16 = 0, /* fp16 */
    ELUTQ_CACHE_Q8 = 1   /* int8, with one scale for each head and token */
};

/* Bytes of one token's keys and values in all layers, each layer the same. */
uint64_t elutq_model_kv_bytes(const elutq_model *model, enum elutq_cache_type cache_type);

/*
 * A layer that has a window keeps the keys and values of so many tokens beyond it: by so many, counted from the furthest
 * position that it has come to, a sequence can be taken back.
 * No less than ELUTQ_PIECE_TOKENS, which a pass that fails may have overwritten.
 */
#define ELUTQ_REWIND_TOKENS 512

/*
 * Bytes of a sequence's keys and values: of all context_size tokens, in layers that have a window of no more than the window
 * and ELUTQ_REWIND_TOKENS.
 */
uint64_t elutq_model_cache_bytes(const elutq_model *model, uint32_t context_size, enum elutq_cache_type cache_type);

/* context_size: tokens that it can hold, 1 to the model's context_length. The caller owns *sequence. */
int elutq_sequence_create(elutq_model *model, uint32_t context_size, enum elutq_cache_type cache_type,
                          elutq_sequence **sequence, char *error, size_t error_bytes);

/* Frees a sequence; NULL is allowed. While another thread is in a call on it or evaluates it: ELUTQ_ERROR_IN_USE; it stays. */
int elutq_sequence_destroy(elutq_sequence *sequence);

/* Number of tokens in the context. */
uint32_t elutq_sequence_position(const elutq_sequence *sequence);

/* The first position whose keys and values all layers hold: 0 until layers that have a window give the oldest up. */
uint32_t elutq_sequence_oldest(const elutq_sequence *sequence);

/*
 * The first position, but for 0, that a sequence can be taken back to and go on from: ELUTQ_REWIND_TOKENS before the furthest
 * that passes have come, or earlier.
 */
uint32_t elutq_sequence_earliest(const elutq_sequence *sequence);

/*
 * Forgets the tokens from `position` on; ELUTQ_ERROR_ARGUMENT when it is past the current position, ELUTQ_ERROR_OVERWRITTEN
 * when it is before elutq_sequence_earliest and not 0.
 */
int elutq_sequence_rewind(elutq_sequence *sequence, uint32_t position);

/*
 * Copies the keys and values of n_tokens positions from `first` on, all of them in the context, into `state`, rows as
 * elutq_cache_kernels has them: [n_layers][keys, values][n_kv_heads][rows], rows of all n_tokens, in layers that have a window
 * of those from elutq_sequence_oldest on. ELUTQ_ERROR_ARGUMENT when the context does not hold them, or n_bytes, the size of
 * `state`, is not what they take; `state` is left as it was.
 */
int elutq_sequence_export(elutq_sequence *sequence, uint32_t first, uint32_t n_tokens, uint8_t *state, size_t n_bytes);

/*
 * Appends to the context n_tokens whose keys and values are known, as elutq_sequence_export gave them for the same model and
 * type of cache at the same positions, n_recent rows of them in layers that have a window: of the last ones, 0 to n_tokens.
 * Nothing is appended on ELUTQ_ERROR_ARGUMENT, ELUTQ_ERROR_CONTEXT, or ELUTQ_ERROR_FORMAT: a value is not finite. That a
 * state belongs to the model and to the tokens before it is for the caller to know; whether enough of it is there to go on,
 * elutq_sequence_earliest says.
 */
int elutq_sequence_import(elutq_sequence *sequence, const uint8_t *state, uint32_t n_tokens, uint32_t n_recent);

/* ---- engine ---- */

/*
 * n_sequences: how many decode in one pass beside the piece of a prompt, 1 to 4096; more can be evaluated, in more passes.
 * n_threads: 1 to 256. The caller owns *engine.
 */
int elutq_engine_create(elutq_model *model, uint32_t n_sequences, unsigned n_threads, elutq_engine **engine, char *error,
                        size_t error_bytes);

/* Passes of so many rows are bound by arithmetic, and take all threads that there are. */
#define ELUTQ_MANY_ROWS 8

/*
 * Has passes of less than ELUTQ_MANY_ROWS rows, which memory bounds, run on the first n_threads of the engine's threads; the
 * others sleep meanwhile. ELUTQ_ERROR_ARGUMENT: the engine has not so many. Changes no result.
 */
int elutq_engine_use_for_decode(elutq_engine *engine, unsigned n_threads);

/* Frees an engine; NULL is allowed. Sequences go on. While another thread is in a call on it: ELUTQ_ERROR_IN_USE; it stays. */
int elutq_engine_destroy(elutq_engine *engine);

/*
 * Tokens that a run contributes to one pass at most: enough that a batch is bound by arithmetic, few enough that its scratch
 * stays small and that others, whose tokens go along, do not wait for long.
 */
#define ELUTQ_PIECE_TOKENS 128

/* Tokens to append to a sequence. */
struct elutq_run {
    elutq_sequence *sequence; /* of the engine's model, each in one run at most */
    const int32_t *tokens;    /* [n_tokens], the caller's */
    size_t n_tokens;          /* 1 or more */
    float *logits;            /* [n_logits][vocab_size] of the last n_logits tokens, the caller's; may be NULL for none */
    size_t n_logits;          /* 0 to n_tokens */
    float *hidden;            /* [n_tokens][hidden_size] what the head reads of each token, the caller's; NULL: not wanted */
};

/*
 * Evaluates runs[n_runs] together. On error no sequence's position has changed; but passes that ended before it may have
 * overwritten what a sequence needs to go on, where layers have a window and a run has more than ELUTQ_REWIND_TOKENS: then its
 * next call returns ELUTQ_ERROR_OVERWRITTEN until it is taken back to 0. What a token computes depends neither on the
 * number of threads nor on the other runs: every run has the same results as alone. It does depend on how its sequence's tokens
 * are cut: passes take ELUTQ_PIECE_TOKENS of a run at a time, and products of many tokens round otherwise than those of few.
 */
int elutq_engine_eval(elutq_engine *engine, const struct elutq_run *runs, size_t n_runs, char *error, size_t error_bytes);

/*
 * Makes the elutq_engine_eval that is under way return ELUTQ_ERROR_CANCELLED, and does nothing when none is. Safe in any thread
 * and in a signal handler.
 */
void elutq_engine_cancel(elutq_engine *engine);

/*
 * The same for good: an elutq_engine_eval or elutq_engine_rehearse that is under way or begins later returns
 * ELUTQ_ERROR_CANCELLED. For an engine that is to be destroyed when the calls that others have begun, or are about to begin,
 * are over.
 */
void elutq_engine_retire(elutq_engine *engine);

/* ---- measuring ---- */

/* Where the time of forward passes goes, seen from the calling thread, its waits for the others included. */
enum elutq_operation {
    ELUTQ_EMBED,      /* embedding rows */
    ELUTQ_PREPARE,    /* norms, activations, and the tables or int8 values made of them */
    ELUTQ_QKV,        /* query, key and value products */
    ELUTQ_POSITION,   /* RoPE, and storing keys and values */
    ELUTQ_ATTEND,     /* scores, softmax and weighted sums over the KV cache */
    ELUTQ_ATTN_OUTPUT,
    ELUTQ_ROUTE,      /* which experts rows use, and grouping the rows by them */
    ELUTQ_GATE_UP,
    ELUTQ_DOWN,
    ELUTQ_HEAD,
    ELUTQ_N_OPERATIONS
};

struct elutq_profile {
    uint64_t nanoseconds[10]; /* [ELUTQ_N_OPERATIONS] */
    uint64_t n_passes;
};

/* Adds the times of later calls to *profile, which must outlive them or be taken off with NULL. Owned by the caller. */
int elutq_engine_profile(elutq_engine *engine, struct elutq_profile *profile);

/*
 * Takes the first token of a text through n_layers layers from first_layer on, and through the head where they end with the
 * last one, and forgets it: *nanoseconds is how long that part of a pass took. For finding out how many threads are best.
 */
int elutq_engine_rehearse(elutq_engine *engine, uint32_t first_layer, uint32_t n_layers, uint64_t *nanoseconds, char *error,
                          size_t error_bytes);

/*
 * Reads the bytes of the file that decoding one token reads (info.bytes_per_token but for the embedding row, and less than
 * 256 at the end of a part), in the same order and shared among all threads of the engine, and does nothing with it: what the
 * memory allows. *read is something of what it read, so that no compiler leaves the reading out.
 */
int elutq_engine_read_weights(elutq_engine *engine, float *read);

#endif
