/*
 * libFuzzer target: the input is a model file. Opening it must either fail with a message or give a model, and a model that
 * opens must run - a prompt, one more token, a reading of all weights, and the figures that describe it - or say that its
 * numbers are damaged. Files of an odd length run with the scalar kernels, whose every operation UBSan sees. make fuzz.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "elutq.h"
#include "../native/one_text.h"

#define N_TOKENS 5 /* enough that a batch takes the path of batches */

static void require(int condition, const char *what) {
    if (condition)
        return;
    fprintf(stderr, "fuzz_model: %s\n", what);
    abort();
}

static int runs(int status, const char *error) {
    return status == ELUTQ_OK || (status == ELUTQ_ERROR_FORMAT && error[0] != '\0');
}

static void run(elutq_model *model) {
    char error[160] = "";
    struct elutq_model_info info;
    struct text text;
    int32_t tokens[N_TOKENS + 1];
    elutq_model_describe(model, &info);
    for (uint32_t i = 0; i <= N_TOKENS; i++)
        tokens[i] = (int32_t)(i * 37 % info.vocab_size);
    const uint32_t context = info.context_length < N_TOKENS + 1 ? info.context_length : N_TOKENS + 1;
    const enum elutq_cache_type cache_type = info.file_bytes / 2 % 2 ? ELUTQ_CACHE_Q8 : ELUTQ_CACHE_F16;
    const int status = text_create(model, context, cache_type, 1, &text, error, sizeof error);
    require(status == ELUTQ_OK || (status == ELUTQ_ERROR_MEMORY && text.engine == NULL && error[0] != '\0'), "text_create");
    if (status != ELUTQ_OK)
        return;
    const uint32_t n_batch = context > 1 ? context - 1 : 1; /* leaves room for the token */
    float *logits = malloc((size_t)n_batch * info.vocab_size * sizeof *logits);
    if (logits != NULL) {
        require(runs(text_eval(&text, tokens, n_batch, logits, n_batch, error, sizeof error), error), "prompt");
        if (context > 1)
            require(runs(text_eval(&text, tokens + n_batch, 1, logits, 1, error, sizeof error), error), "token");
    }
    free(logits);
    float read;
    require(elutq_engine_read_weights(text.engine, &read) == ELUTQ_OK, "reading weights");
    text_destroy(&text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    static int file = -1;
    static char path[64];
    if (file < 0) {
        file = memfd_create("model", MFD_CLOEXEC);
        snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    }
    const int written = pwrite(file, data, n_bytes, 0) == (ssize_t)n_bytes && ftruncate(file, (off_t)n_bytes) == 0;
    require(written, "cannot write the input");
    char error[160] = "";
    elutq_model *model;
    const int status = elutq_model_open(path, n_bytes % 2 ? "scalar" : NULL, &model, error, sizeof error);
    require((status == ELUTQ_OK) == (model != NULL), "status and model disagree");
    require(status == ELUTQ_OK || error[0] != '\0', "refused without a word");
    if (model != NULL)
        run(model);
    elutq_model_close(model);
    return 0;
}
