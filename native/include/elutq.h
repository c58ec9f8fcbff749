/*
 * elutq: runs LLaMA-family models stored as HLQ bit-planes (formats/SPEC.md) on a CPU.
 *
 * A model is a read-only mapping of one file; a session is one conversation over it: KV cache, scratch and threads.
 *
 * Thread safety: a model may be used by any number of sessions in any threads at once. A session or a pool is used by
 * one thread at a time (it runs threads of its own inside): a call that finds another one under way in it returns
 * ELUTQ_ERROR_IN_USE and does nothing. Nothing here prints or exits, and only elutq_survive_lost_pages keeps anything
 * outside of what the caller holds.
 *
 * Processes: threads do not survive fork(). In the child, models may be used and closed, sessions and pools be created;
 * what was created before and has threads of its own returns ELUTQ_ERROR_FORKED, but can be destroyed.
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
    ELUTQ_ERROR_CONTEXT = 5,  /* more tokens than the session's context holds */
    ELUTQ_ERROR_CANCELLED = 6, /* elutq_session_cancel was called */
    ELUTQ_ERROR_IN_USE = 7,    /* another thread is in a call on the same session or pool */
    ELUTQ_ERROR_FORKED = 8     /* the process was forked after the threads were started, and has none of them */
};

typedef struct elutq_pool elutq_pool;
typedef struct elutq_model elutq_model;
typedef struct elutq_session elutq_session;

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
    uint64_t file_bytes;
    uint64_t bytes_per_token;    /* weights read from the file to decode one token (embedding row, whole head, all blocks) */
    const char *isa;             /* kernels chosen: "scalar", "avx2", "avx512", ...; static storage */
};

/*
 * Maps and validates the file at `path`. `isa` names the kernels to use, NULL means the best this CPU has; an unknown or
 * unsupported name is ELUTQ_ERROR_ARGUMENT. The caller owns *model.
 */
int elutq_model_open(const char *path, const char *isa, elutq_model **model, char *error, size_t error_bytes);

/* Gives the model up; NULL is allowed. Its sessions go on: the file is unmapped when the last of them is destroyed. */
void elutq_model_close(elutq_model *model);

void elutq_model_describe(const elutq_model *model, struct elutq_model_info *info);

/*
 * The file stays mapped while a model is open. Renaming or deleting it does no harm, nor does a new time (touch); when it is
 * cut short or written to, elutq_session_eval returns ELUTQ_ERROR_IO, because it looks at the file's size and time before
 * and after each pass, and where the time changed at what it holds: everything in a file of up to 16 MB, the metadata and
 * 128 places in a larger one. What happens to a pass under way when pages vanish beneath it, or to one that meets a disk
 * that cannot be read, is SIGBUS, which kills the process, unless this function was called: it installs a handler, for the
 * whole process and once, that puts zeros in the place of such pages of open models, so that the pass ends and returns
 * ELUTQ_ERROR_IO. Any other SIGBUS goes to the handler that was there before. At most 64 models are looked after at a time.
 * A program that installs a SIGBUS handler of its own does so before this call.
 */
int elutq_survive_lost_pages(void);

/* ---- session ---- */

/* How a session keeps keys and values. */
enum elutq_cache_type {
    ELUTQ_CACHE_F16 = 0, /* fp16 */
    ELUTQ_CACHE_Q8 = 1   /* int8, with one scale for each head and token */
};

/* Bytes of one token's keys and values in all layers. */
uint64_t elutq_model_kv_bytes(const elutq_model *model, enum elutq_cache_type cache_type);

/*
 * context_size: tokens the KV cache holds, 1 to the model's context_length. n_threads: 1 to 256.
 * The caller owns *session.
 */
int elutq_session_create(elutq_model *model, uint32_t context_size, enum elutq_cache_type cache_type, unsigned n_threads,
                         elutq_session **session, char *error, size_t error_bytes);

/* Frees a session; NULL is allowed. While another thread is in a call on it: ELUTQ_ERROR_IN_USE, and it stays. */
int elutq_session_destroy(elutq_session *session);

/*
 * Appends tokens[n_tokens] to the context and computes logits of the last n_logits positions (0 to n_tokens) into
 * logits[n_logits][vocab_size], owned by the caller. On error the position is unchanged. Results do not depend on the
 * number of threads.
 */
int elutq_session_eval(elutq_session *session, const int32_t *tokens, size_t n_tokens, float *logits, size_t n_logits,
                       char *error, size_t error_bytes);

/* Number of tokens in the context. */
uint32_t elutq_session_position(const elutq_session *session);

/* Forgets the tokens from `position` on; ELUTQ_ERROR_ARGUMENT when it is past the current position. */
int elutq_session_rewind(elutq_session *session, uint32_t position);

/*
 * Copies the keys and values of n_tokens positions from `first` on, all of them in the context, into `state`, rows as
 * elutq_cache_kernels has them: [n_layers][keys, values][n_kv_heads][n_tokens], n_tokens * elutq_model_kv_bytes bytes of the
 * caller's. ELUTQ_ERROR_ARGUMENT when the context does not hold them.
 */
int elutq_session_export(elutq_session *session, uint32_t first, uint32_t n_tokens, uint8_t *state);

/*
 * Appends to the context n_tokens whose keys and values are known, as elutq_session_export gave them for the same model and
 * type of cache at the same positions. Nothing is appended on ELUTQ_ERROR_CONTEXT, or on ELUTQ_ERROR_FORMAT: a value is not
 * finite. That a state belongs to the model and to the tokens before it is for the caller to know.
 */
int elutq_session_import(elutq_session *session, const uint8_t *state, uint32_t n_tokens);

/* ---- measuring ---- */

/* Where the time of forward passes goes, seen from the calling thread, its waits for the others included. */
enum elutq_operation {
    ELUTQ_EMBED,      /* embedding rows */
    ELUTQ_PREPARE,    /* norms, activations, and the tables or int8 values made of them */
    ELUTQ_QKV,        /* query, key and value products */
    ELUTQ_POSITION,   /* RoPE, and storing keys and values */
    ELUTQ_ATTEND,     /* scores, softmax and weighted sums over the KV cache */
    ELUTQ_ATTN_OUTPUT,
    ELUTQ_GATE_UP,
    ELUTQ_DOWN,
    ELUTQ_HEAD,
    ELUTQ_N_OPERATIONS
};

struct elutq_profile {
    uint64_t nanoseconds[9]; /* [ELUTQ_N_OPERATIONS] */
    uint64_t n_passes;
};

/* Adds the times of later passes to *profile, which must outlive them or be taken off with NULL. Owned by the caller. */
void elutq_session_profile(elutq_session *session, struct elutq_profile *profile);

/*
 * Reads every byte of the file that decoding one token reads (info.bytes_per_token but for the embedding row), in the same
 * order and shared among the same threads, and does nothing with it: what the memory allows. *read is something of what it
 * read, so that no compiler leaves the reading out.
 */
int elutq_session_read_weights(elutq_session *session, float *read);

/* ---- cancelling ---- */

/* Makes a running or the next elutq_session_eval return ELUTQ_ERROR_CANCELLED. Safe in any thread and in a signal handler. */
void elutq_session_cancel(elutq_session *session);

#endif
