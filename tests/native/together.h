/* Many texts in one pass of an engine: each has the bits that it has alone, while other sequences come and go. */
#ifndef TOGETHER_H
#define TOGETHER_H

#include <stdlib.h>
#include <string.h>

#include "checking.h"
#include "elutq.h"
#include "os/os.h"

#define N_TOGETHER 3
#define TOGETHER_TOKENS 21

/* Texts that begin at different tokens, appended to by pieces of different sizes; `alone` has what the whole one gives. */
struct together {
    struct elutq_model_info info;
    elutq_sequence *sequences[N_TOGETHER];
    size_t done[N_TOGETHER];
    float *logits[N_TOGETHER]; /* of the last token so far, [vocab_size] */
    float *hidden[N_TOGETHER]; /* of all tokens, [TOGETHER_TOKENS][hidden_size]; NULL of the first text */
};

/* Tokens that text i takes next: prompts of one to nine tokens, token by token, or nothing for a while. */
static size_t next_tokens(const struct together *together, unsigned i, unsigned round) {
    const size_t left = TOGETHER_TOKENS - together->done[i];
    const size_t wanted = i == 0 ? 1 : (i + round) % 3 == 0 ? 0 : together->done[i] == 0 ? 4 * i + 1 : 1;
    return wanted < left ? wanted : left;
}

/* Evaluates the texts in `chosen` round by round, and checks what a text alone has: the same bits. */
static void advance(elutq_engine *engine, struct together *together, unsigned chosen) {
    char error[256] = "";
    int32_t tokens[TOGETHER_TOKENS];
    for (size_t i = 0; i < TOGETHER_TOKENS; i++)
        tokens[i] = (int32_t)((7 * i + 3) % together->info.vocab_size);
    for (unsigned round = 0; round < 3 * TOGETHER_TOKENS; round++) {
        struct elutq_run runs[N_TOGETHER];
        size_t n_runs = 0;
        for (unsigned i = 0; i < N_TOGETHER; i++) {
            const size_t n = next_tokens(together, i, round);
            if (n == 0 || !(chosen >> i & 1))
                continue;
            float *hidden = i == 0 ? NULL : together->hidden[i] + together->done[i] * together->info.hidden_size;
            runs[n_runs++] =
                (struct elutq_run){together->sequences[i], tokens + together->done[i], n, together->logits[i], 1, hidden};
            together->done[i] += n;
        }
        if (n_runs > 0)
            check(elutq_engine_eval(engine, runs, n_runs, error, sizeof error) == ELUTQ_OK, "together: %s", error);
    }
}

static void start_together(elutq_model *model, struct together *together) {
    memset(together, 0, sizeof *together);
    elutq_model_describe(model, &together->info);
    for (unsigned i = 0; i < N_TOGETHER; i++) {
        const enum elutq_cache_type type = i % 2 ? ELUTQ_CACHE_Q8 : ELUTQ_CACHE_F16;
        together->logits[i] = calloc(together->info.vocab_size, sizeof *together->logits[i]);
        if (i > 0)
            together->hidden[i] = calloc((size_t)TOGETHER_TOKENS * together->info.hidden_size, sizeof *together->hidden[i]);
        if (together->logits[i] == NULL || (i > 0 && together->hidden[i] == NULL) ||
            elutq_sequence_create(model, TOGETHER_TOKENS, type, &together->sequences[i], NULL, 0) != ELUTQ_OK)
            exit(1);
    }
}

static void stop_together(struct together *together) {
    for (unsigned i = 0; i < N_TOGETHER; i++) {
        check(elutq_sequence_destroy(together->sequences[i]) == ELUTQ_OK, "a sequence that nobody uses is not freed");
        free(together->logits[i]);
        free(together->hidden[i]);
    }
}

/* Sequences that come and go, and cancelling, while an engine evaluates others. */
static void *come_and_go(void *model) {
    for (unsigned i = 0; i < 5; i++) {
        struct together others;
        start_together(model, &others);
        stop_together(&others);
    }
    return NULL;
}

static void check_together(elutq_model *model, const char *isa) {
    struct together alone, together;
    elutq_engine *engine, *small;
    elutq_thread thread;
    if (elutq_engine_create(model, N_TOGETHER, 2, &engine, NULL, 0) != ELUTQ_OK ||
        elutq_engine_create(model, 1, 1, &small, NULL, 0) != ELUTQ_OK ||
        !elutq_thread_start(&thread, 0, come_and_go, model))
        exit(1);
    start_together(model, &alone);
    start_together(model, &together);
    for (unsigned i = 0; i < N_TOGETHER; i++)
        advance(small, &alone, 1u << i);
    advance(engine, &together, (1u << N_TOGETHER) - 1);
    const size_t logits_bytes = together.info.vocab_size * sizeof(float);
    const size_t hidden_bytes = (size_t)TOGETHER_TOKENS * together.info.hidden_size * sizeof(float);
    for (unsigned i = 0; i < N_TOGETHER; i++)
        check(together.done[i] == TOGETHER_TOKENS && memcmp(together.logits[i], alone.logits[i], logits_bytes) == 0,
              "%s: text %u differs beside others", isa, i);
    for (unsigned i = 1; i < N_TOGETHER; i++)
        check(memcmp(together.hidden[i], alone.hidden[i], hidden_bytes) == 0,
              "%s: hidden states of text %u differ beside others", isa, i);
    elutq_thread_join(thread);

    const int32_t token = 0;
    const struct elutq_run once = {alone.sequences[0], &token, 1, NULL, 0, NULL}, twice[] = {once, once};
    check(elutq_sequence_rewind(alone.sequences[0], 0) == ELUTQ_OK, "%s: rewind", isa);
    check(elutq_engine_eval(engine, twice, 2, NULL, 0) == ELUTQ_ERROR_ARGUMENT, "%s: a sequence was taken twice", isa);
    check(elutq_engine_eval(engine, twice, 0, NULL, 0) == ELUTQ_ERROR_ARGUMENT, "%s: nothing was evaluated", isa);
    check(elutq_engine_eval(engine, twice, 1, NULL, 0) == ELUTQ_OK && elutq_sequence_position(alone.sequences[0]) == 1,
          "%s: a refused sequence stays in use", isa);
    check(elutq_engine_destroy(engine) == ELUTQ_OK && elutq_engine_destroy(small) == ELUTQ_OK, "%s: an engine stays", isa);
    stop_together(&alone);
    stop_together(&together);
}

#endif
