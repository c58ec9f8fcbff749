/*
 * Runs model files through the C interface the way programs do, so that sanitizers and emulators can watch it: every
 * kernel set, numbers of threads, texts side by side and in one pass, rewinding, cancelling, and arguments that must be
 * refused.
 *
 *     runtime_check MODEL...
 *
 * Prints one line a model, with a number for all the bits of its logits with each type of cache, and exits 0; or prints what
 * differs and exits 1. Where the C library's sines and powers round otherwise, the numbers are others.
 */
#include <inttypes.h>
#include <math.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checking.h"
#include "elutq.h"
#include "elutq_kernels.h"
#include "many_windows.h"
#include "one_text.h"
#include "os/os.h"
#include "threads.h"
#include "together.h"

#define N_TOKENS 21
#define N_SIDE_BY_SIDE 3

/* ---- the pool ---- */

#define N_TASKS 8
#define N_ROUNDS 21

struct counting {
    elutq_pool *pool;
    atomic_uint taken[512];
    atomic_uint largest; /* number of a thread that ran */
};

static void count(void *context, unsigned thread, unsigned n_threads) {
    struct counting *counting = context;
    unsigned item, largest = atomic_load(&counting->largest);
    (void)n_threads;
    while (thread > largest && !atomic_compare_exchange_weak(&counting->largest, &largest, thread))
        ;
    for (unsigned round = 0; round < N_ROUNDS; round++) {
        if (round > 0)
            elutq_pool_barrier(counting->pool, thread);
        while (elutq_pool_take(counting->pool, thread, 512, &item))
            atomic_fetch_add_explicit(&counting->taken[item], 1, memory_order_relaxed);
    }
}

/* Every item is handed out once between two barriers, with more threads than cores too; every other task has fewer threads. */
static void check_pool(unsigned n_threads) {
    static struct counting counting;
    memset(&counting, 0, sizeof counting);
    if (!check(elutq_pool_create(n_threads, &counting.pool) == ELUTQ_OK, "pool of %u threads", n_threads))
        return;
    for (unsigned task = 0; task < N_TASKS; task++) {
        const unsigned n_running = task % 2 ? 1 + task / 2 % n_threads : n_threads;
        check(elutq_pool_run_few(counting.pool, n_running, count, &counting) == ELUTQ_OK, "%u threads: a task was refused",
              n_threads);
        check(atomic_exchange(&counting.largest, 0) < n_running, "%u threads: one that was left out ran", n_threads);
    }
    for (unsigned item = 0; item < 512; item++)
        check(atomic_load(&counting.taken[item]) == N_ROUNDS * N_TASKS, "%u threads: item %u was taken %u times", n_threads,
              item, atomic_load(&counting.taken[item]));
    elutq_pool_destroy(counting.pool);
}

/* ---- passes ---- */

struct run {
    elutq_model *model;
    uint32_t vocab_size, hidden_size;
    enum elutq_cache_type cache_type;
    unsigned n_threads, n_for_decode;
    size_t step;   /* tokens a call */
    float *logits; /* [N_TOKENS][vocab_size] */
};

static int32_t token_at(const struct run *run, size_t i) {
    return (int32_t)((7 * i + 3) % run->vocab_size);
}

static void *evaluate(void *argument) {
    const struct run *run = argument;
    char error[256] = "";
    struct text text;
    int32_t tokens[N_TOKENS];
    for (size_t i = 0; i < N_TOKENS; i++)
        tokens[i] = token_at(run, i);
    int status =
        text_create(run->model, N_TOKENS, run->cache_type, run->n_threads, &text, error, sizeof error);
    if (!check(status == ELUTQ_OK, "text: %s", error))
        return NULL;
    check(elutq_engine_use_for_decode(text.engine, run->n_for_decode) == ELUTQ_OK, "%u threads", run->n_for_decode);
    uint64_t nanoseconds = 0; /* what a rehearsal leaves behind changes nothing */
    status = elutq_engine_rehearse(text.engine, 0, 1, &nanoseconds, error, sizeof error);
    check(status == ELUTQ_OK && nanoseconds > 0, "rehearsing: status %d, %s", status, error);
    for (size_t done = 0; done < N_TOKENS && status == ELUTQ_OK; done += run->step) {
        size_t n = N_TOKENS - done < run->step ? N_TOKENS - done : run->step;
        status = text_eval(&text, tokens + done, n, run->logits + done * run->vocab_size, n, error, sizeof error);
    }
    check(status == ELUTQ_OK && elutq_sequence_position(text.sequence) == N_TOKENS, "eval: status %d, %s", status, error);
    text_destroy(&text);
    return NULL;
}

static void check_same(const struct run *found, const struct run *wanted, const char *what, const char *isa) {
    const size_t n_bytes = (size_t)N_TOKENS * found->vocab_size * sizeof *found->logits;
    check(memcmp(found->logits, wanted->logits, n_bytes) == 0, "%s: logits differ: %s", isa, what);
}

static struct run new_run(elutq_model *model, enum elutq_cache_type cache_type, unsigned n_threads, size_t step) {
    struct elutq_model_info info;
    elutq_model_describe(model, &info);
    float *logits = calloc((size_t)N_TOKENS * info.vocab_size, sizeof *logits);
    struct run run = {model, info.vocab_size, info.hidden_size, cache_type, n_threads, n_threads, step, logits};
    if (run.logits == NULL)
        exit(1);
    return run;
}

static struct run finished_run(elutq_model *model, enum elutq_cache_type cache_type, unsigned n_threads, size_t step) {
    struct run run = new_run(model, cache_type, n_threads, step);
    evaluate(&run);
    return run;
}

/* Passes of few rows on fewer threads than those of many change nothing: of 21 tokens by nines the last three are few. */
static void check_fewer_threads(elutq_model *model, enum elutq_cache_type cache_type, const struct run *single,
                                const char *isa) {
    struct run nines = finished_run(model, cache_type, 1, 9);
    for (unsigned n_for_decode = 1; n_for_decode < 3; n_for_decode++) {
        struct run run = new_run(model, cache_type, 3, n_for_decode == 1 ? 9 : 1);
        run.n_for_decode = n_for_decode;
        evaluate(&run);
        check_same(&run, n_for_decode == 1 ? &nines : single, "3 threads, fewer for few rows", isa);
        free(run.logits);
    }
    free(nines.logits);
}

static void check_side_by_side(elutq_model *model, const struct run *alone, const char *isa) {
    elutq_thread threads[N_SIDE_BY_SIDE];
    struct run runs[N_SIDE_BY_SIDE];
    for (unsigned i = 0; i < N_SIDE_BY_SIDE; i++) {
        runs[i] = new_run(model, alone->cache_type, 1 + i % 2, alone->step);
        if (!elutq_thread_start(&threads[i], 0, evaluate, &runs[i]))
            exit(1);
    }
    for (unsigned i = 0; i < N_SIDE_BY_SIDE; i++) {
        elutq_thread_join(threads[i]);
        check_same(&runs[i], alone, "beside other texts", isa);
        free(runs[i].logits);
    }
}

static void *cancel(void *engine) {
    elutq_engine_cancel(engine);
    return NULL;
}

static void check_one_text(elutq_model *model, const struct run *alone, const char *isa) {
    char error[256] = "";
    struct text text;
    int32_t tokens[N_TOKENS + 1];
    float *logits = calloc(alone->vocab_size, sizeof *logits);
    for (size_t i = 0; i <= N_TOKENS; i++)
        tokens[i] = token_at(alone, i);
    if (logits == NULL ||
        text_create(model, N_TOKENS, alone->cache_type, 2, &text, error, sizeof error) != ELUTQ_OK)
        exit(1);

    elutq_thread canceller;
    if (!elutq_thread_start(&canceller, 0, cancel, text.engine))
        exit(1);
    int status = text_eval(&text, tokens, N_TOKENS, logits, 0, error, sizeof error);
    elutq_thread_join(canceller);
    check(status == ELUTQ_OK || (status == ELUTQ_ERROR_CANCELLED && elutq_sequence_position(text.sequence) == 0),
          "%s: a cancelled call returned %d at position %u", isa, status, elutq_sequence_position(text.sequence));
    check(elutq_sequence_rewind(text.sequence, 0) == ELUTQ_OK, "%s: rewind after cancelling", isa);
    elutq_engine_cancel(text.engine); /* nothing is under way: nothing ends */
    status = text_eval(&text, tokens, N_TOKENS, logits, 1, error, sizeof error);
    check(status == ELUTQ_OK, "%s: after cancelling: %s", isa, error);
    status = text_eval(&text, tokens + N_TOKENS, 1, logits, 1, error, sizeof error);
    check(status == ELUTQ_ERROR_CONTEXT && error[0] != '\0', "%s: one token too many returned %d", isa, status);
    check(elutq_sequence_rewind(text.sequence, N_TOKENS + 1) == ELUTQ_ERROR_ARGUMENT, "%s: rewound forwards", isa);
    check(elutq_sequence_rewind(text.sequence, N_TOKENS - 1) == ELUTQ_OK, "%s: rewind", isa);
    const int32_t outside[] = {-1, (int32_t)alone->vocab_size, INT32_MIN, INT32_MAX};
    for (size_t i = 0; i < sizeof outside / sizeof outside[0]; i++)
        check(text_eval(&text, &outside[i], 1, logits, 1, error, sizeof error) == ELUTQ_ERROR_ARGUMENT,
              "%s: token %d was taken", isa, outside[i]);
    check(text_eval(&text, tokens, 0, logits, 0, NULL, 0) == ELUTQ_ERROR_ARGUMENT, "%s: no tokens", isa);
    check(text_eval(&text, tokens, 1, logits, 2, NULL, 0) == ELUTQ_ERROR_ARGUMENT, "%s: logits of no token", isa);
    const struct {
        uint32_t first, n;
    } none[] = {{0, 0}, {0, 1000}, {1000, 1}, {1, UINT32_MAX}, {UINT32_MAX, 1}};
    uint64_t nanoseconds;
    for (size_t i = 0; i < sizeof none / sizeof none[0]; i++)
        check(elutq_engine_rehearse(text.engine, none[i].first, none[i].n, &nanoseconds, error, sizeof error) ==
                  ELUTQ_ERROR_ARGUMENT,
              "%s: %u layers from %u on were rehearsed", isa, none[i].n, none[i].first);
    check(elutq_engine_use_for_decode(text.engine, 0) == ELUTQ_ERROR_ARGUMENT, "%s: no thread was taken", isa);
    check(elutq_engine_use_for_decode(text.engine, 3) == ELUTQ_ERROR_ARGUMENT, "%s: three threads of two were taken", isa);
    text_destroy(&text);
    free(logits);
}

/* ---- used where it cannot be ---- */

struct evaluation {
    struct text text;
    size_t n_tokens;
    atomic_bool begun, ended;
    int status;
};

static void *evaluate_once(void *argument) {
    struct evaluation *evaluation = argument;
    int32_t *tokens = calloc(evaluation->n_tokens, sizeof *tokens);
    if (tokens == NULL)
        exit(1);
    atomic_store(&evaluation->begun, true);
    do /* until the other thread does not come first */
        evaluation->status = text_eval(&evaluation->text, tokens, evaluation->n_tokens, NULL, 0, NULL, 0);
    while (evaluation->status == ELUTQ_ERROR_IN_USE);
    atomic_store(&evaluation->ended, true);
    free(tokens);
    return NULL;
}

/* Calls from a second thread are refused while one is under way, and so is freeing the text beneath it. */
static void check_in_use(elutq_model *model, uint32_t n_tokens, const char *isa) {
    char error[256] = "";
    const int32_t outside = -1;
    struct evaluation evaluation = {.n_tokens = n_tokens};
    if (text_create(model, n_tokens, ELUTQ_CACHE_F16, 2, &evaluation.text, error, sizeof error) != ELUTQ_OK)
        exit(1);
    elutq_thread thread;
    if (!elutq_thread_start(&thread, 0, evaluate_once, &evaluation))
        exit(1);
    while (!atomic_load(&evaluation.begun))
        ;
    while (!atomic_load(&evaluation.ended)) {
        const int status = text_eval(&evaluation.text, &outside, 1, NULL, 0, error, sizeof error);
        check(status == ELUTQ_ERROR_ARGUMENT || status == ELUTQ_ERROR_CONTEXT || status == ELUTQ_ERROR_IN_USE,
              "%s: a second thread's call returned %d", isa, status);
        uint8_t state;
        const int exported = elutq_sequence_export(evaluation.text.sequence, 0, 0, &state, 0);
        check(exported == ELUTQ_OK || exported == ELUTQ_ERROR_IN_USE, "%s: a second thread's export returned %d", isa,
              exported);
    }
    elutq_thread_join(thread);
    check(evaluation.status == ELUTQ_OK && elutq_sequence_position(evaluation.text.sequence) == n_tokens,
          "%s: a call that others met returned %d", isa, evaluation.status);
    check(text_destroy(&evaluation.text) == ELUTQ_OK, "%s: a text that nobody uses is not freed", isa);
}

struct nested {
    elutq_pool *pool;
    atomic_uint n_refused;
};

static void run_and_destroy_within(void *context, unsigned thread, unsigned n_threads) {
    struct nested *nested = context;
    (void)thread, (void)n_threads;
    atomic_fetch_add(&nested->n_refused, elutq_pool_run(nested->pool, run_and_destroy_within, nested) == ELUTQ_ERROR_IN_USE);
    atomic_fetch_add(&nested->n_refused, elutq_pool_destroy(nested->pool) == ELUTQ_ERROR_IN_USE);
}

static void check_running_pool(void) {
    struct nested nested = {.n_refused = 0};
    if (!check(elutq_pool_create(3, &nested.pool) == ELUTQ_OK, "pool of 3 threads"))
        return;
    check(elutq_pool_run(nested.pool, run_and_destroy_within, &nested) == ELUTQ_OK && atomic_load(&nested.n_refused) == 6,
          "a pool that runs a task was used or freed");
    check(elutq_pool_destroy(nested.pool) == ELUTQ_OK, "a pool that runs nothing is not freed");
}

/* The file stays for a text whose model was closed. */
static void check_closed_beneath_a_text(const char *path, const char *isa) {
    char error[256] = "";
    elutq_model *model;
    struct text texts[2];
    const int32_t token = 0;
    if (elutq_model_open(path, isa, &model, error, sizeof error) != ELUTQ_OK)
        exit(1);
    for (unsigned i = 0; i < 2; i++)
        if (text_create(model, 2, ELUTQ_CACHE_F16, 1 + i, &texts[i], error, sizeof error) != ELUTQ_OK)
            exit(1);
    elutq_model_close(model);
    for (unsigned i = 0; i < 2; i++) {
        check(text_eval(&texts[i], &token, 1, NULL, 0, error, sizeof error) == ELUTQ_OK, "%s: closed model: %s", isa,
              error);
        text_destroy(&texts[i]);
    }
}

static void check_refused(elutq_model *model) {
    char error[64] = "";
    struct elutq_model_info info;
    struct text text;
    elutq_model_describe(model, &info);
    const uint32_t longer = info.context_length + 1;
    check(text_create(model, 0, ELUTQ_CACHE_F16, 1, &text, error, sizeof error) == ELUTQ_ERROR_ARGUMENT,
          "context 0");
    check(text_create(model, longer, ELUTQ_CACHE_F16, 1, &text, error, 1) == ELUTQ_ERROR_ARGUMENT, "context");
    check(text_create(model, 1, (enum elutq_cache_type)2, 1, &text, NULL, 0) == ELUTQ_ERROR_ARGUMENT, "cache 2");
    check(text_create(model, 1, ELUTQ_CACHE_Q8, 0, &text, NULL, 0) == ELUTQ_ERROR_ARGUMENT, "0 threads");
    check(text_create(model, 1, ELUTQ_CACHE_Q8, 257, &text, NULL, 0) == ELUTQ_ERROR_ARGUMENT, "257 threads");
    elutq_engine *engine;
    check(elutq_engine_create(model, 0, 1, &engine, NULL, 0) == ELUTQ_ERROR_ARGUMENT && engine == NULL, "0 sequences");
    check(elutq_engine_create(model, 4097, 1, &engine, NULL, 0) == ELUTQ_ERROR_ARGUMENT, "4097 sequences");
}

/* Runs with one type of cache give the same bits, whatever runs them; `reference` is made by the first kernel set. */
static void check_cache_type(elutq_model *model, enum elutq_cache_type type, const char *isa, struct run *reference) {
    struct run single = finished_run(model, type, 1, 1), batch = finished_run(model, type, 1, N_TOKENS);
    struct run pooled = finished_run(model, type, 3, 1), wide = finished_run(model, type, 3, N_TOKENS);
    check_same(&pooled, &single, "3 threads, token by token", isa);
    check_same(&wide, &batch, "3 threads, one batch", isa);
    check_fewer_threads(model, type, &single, isa);
    if (reference->logits == NULL) {
        *reference = single;
        check_side_by_side(model, &batch, isa);
    } else {
        check_same(&single, reference, "from the best set's", isa);
        free(single.logits);
    }
    check_one_text(model, &batch, isa);
    check_many_windows(model, type, isa);
    free(batch.logits);
    free(pooled.logits);
    free(wide.logits);
}

/* A number for all the bits of a run's logits. */
static uint64_t digest(const struct run *run) {
    uint64_t digest = 0;
    for (size_t i = 0; i < (size_t)N_TOKENS * run->vocab_size; i++) {
        uint32_t bits;
        memcpy(&bits, &run->logits[i], sizeof bits);
        digest = (digest ^ bits) * 0x100000001B3u; /* FNV */
    }
    return digest;
}

static void check_model(const char *path) {
    struct run references[2] = {{0}}; /* by elutq_cache_type */
    char error[256] = "";
    unsigned n_sets = 0;
    elutq_model *model;
    check(elutq_model_open(path, "mmx", &model, error, sizeof error) == ELUTQ_ERROR_ARGUMENT && model == NULL, "kernels mmx");
    for (unsigned i = 0; elutq_kernels_at(i) != NULL; i++) {
        const char *isa = elutq_kernels_at(i)->name;
        if (!elutq_kernels_supported(elutq_kernels_at(i)))
            continue;
        if (!check(elutq_model_open(path, isa, &model, error, sizeof error) == ELUTQ_OK, "%s: %s", path, error))
            return;
        if (n_sets++ == 0) {
            check_refused(model);
            check_in_use(model, N_TOKENS, isa);
            check_closed_beneath_a_text(path, isa);
        }
        check_together(model, isa);
        check_cache_type(model, ELUTQ_CACHE_F16, isa, &references[ELUTQ_CACHE_F16]);
        check_cache_type(model, ELUTQ_CACHE_Q8, isa, &references[ELUTQ_CACHE_Q8]);
        elutq_model_close(model);
    }
    check(memcmp(references[0].logits, references[1].logits, N_TOKENS * sizeof(float)) != 0, "both caches hold the same");
    printf("%s: %u kernel sets, bits %016" PRIx64 " %016" PRIx64 "\n", path, n_sets, digest(&references[0]),
           digest(&references[1]));
    free(references[0].logits);
    free(references[1].logits);
}

int main(int n_arguments, char **arguments) {
    char error[256] = "";
    elutq_model *model;
    check(elutq_default_threads() >= 1, "default threads");
    check(elutq_model_open("no/such/file", NULL, &model, error, sizeof error) == ELUTQ_ERROR_IO, "a file that is not there");
    elutq_model_close(NULL);
    elutq_engine_destroy(NULL);
    elutq_sequence_destroy(NULL);
    elutq_pool_destroy(NULL);
    static const unsigned POOLS[] = {1, 2, 3, 8};
    for (size_t i = 0; i < sizeof POOLS / sizeof POOLS[0]; i++)
        check_pool(POOLS[i]);
    check_running_pool();
    for (int i = 1; i < n_arguments; i++)
        check_model(arguments[i]);
    return n_failures == 0 ? 0 : 1;
}
