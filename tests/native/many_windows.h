/* A text longer than what layers with a window hold, for models that have some and whose context is so long. */
#ifndef MANY_WINDOWS_H
#define MANY_WINDOWS_H

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "checking.h"
#include "one_text.h"

#define TOKENS_A_CALL 200

/* The logits of a text's last token; false when a call failed. */
static bool evaluate_text(const struct text *text, const struct elutq_model_info *info, float *logits) {
    const uint32_t n_tokens = info->context_length;
    for (uint32_t done = elutq_sequence_position(text->sequence); done < n_tokens;) {
        int32_t tokens[TOKENS_A_CALL];
        const uint32_t n = n_tokens - done < TOKENS_A_CALL ? n_tokens - done : TOKENS_A_CALL;
        for (uint32_t i = 0; i < n; i++)
            tokens[i] = (int32_t)((7 * (done + i) + 3) % info->vocab_size);
        if (text_eval(text, tokens, n, logits, 1, NULL, 0) != ELUTQ_OK)
            return false;
        done += n;
    }
    return true;
}

/* A text longer than layers with a window hold has the same bits on any number of threads, and after it was taken back. */
static void check_many_windows(elutq_model *model, enum elutq_cache_type type, const char *isa) {
    struct elutq_model_info info;
    elutq_model_describe(model, &info);
    const uint32_t n = info.context_length;
    if (info.n_sliding_layers == 0 || n <= info.sliding_window + ELUTQ_REWIND_TOKENS)
        return;
    struct text texts[2];
    float *logits[2];
    for (unsigned i = 0; i < 2; i++) {
        logits[i] = calloc(info.vocab_size, sizeof *logits[i]);
        if (logits[i] == NULL || text_create(model, n, type, 1 + 2 * i, &texts[i], NULL, 0) != ELUTQ_OK)
            exit(1);
        check(evaluate_text(&texts[i], &info, logits[i]), "%s: a text of many windows", isa);
    }
    const size_t n_bytes = info.vocab_size * sizeof *logits[0];
    check(memcmp(logits[0], logits[1], n_bytes) == 0, "%s: many windows differ on 3 threads", isa);
    elutq_sequence *sequence = texts[0].sequence;
    const uint32_t earliest = elutq_sequence_earliest(sequence), oldest = elutq_sequence_oldest(sequence);
    check(earliest > 0 && n - earliest >= ELUTQ_REWIND_TOKENS && earliest == oldest + info.sliding_window - 1,
          "%s: of %u tokens position %u is the earliest, %u the oldest", isa, n, earliest, oldest);
    check(elutq_sequence_rewind(sequence, earliest - 1) == ELUTQ_ERROR_OVERWRITTEN, "%s: rewound too far", isa);
    const uint32_t back = n - n % TOKENS_A_CALL - TOKENS_A_CALL; /* calls are cut as before */
    check(elutq_sequence_rewind(sequence, back) == ELUTQ_OK && evaluate_text(&texts[0], &info, logits[0]) &&
              memcmp(logits[0], logits[1], n_bytes) == 0,
          "%s: a text of many windows that was taken back differs", isa);
    check(elutq_sequence_rewind(sequence, 0) == ELUTQ_OK && elutq_sequence_earliest(sequence) == 0, "%s: rewind to 0", isa);
    for (unsigned i = 0; i < 2; i++) {
        text_destroy(&texts[i]);
        free(logits[i]);
    }
}

#endif
