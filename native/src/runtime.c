/* Evaluating: what callers ask for is checked, and cut into passes. Rehearsing: a part of a pass that leaves nothing. */
#include <stdlib.h>
#include <string.h>

#include "damage.h"
#include "forward.h"

static int check_run(const struct elutq_engine *engine, const struct elutq_run *run, const struct elutq_error *report) {
    const elutq_sequence *sequence = run->sequence;
    if (sequence->model != engine->model)
        return elutq_fail(report, ELUTQ_ERROR_ARGUMENT, "a sequence is of another model");
    if (run->n_tokens == 0 || run->n_logits > run->n_tokens)
        return elutq_fail(report, ELUTQ_ERROR_ARGUMENT, "no tokens, or more logits asked for than tokens given");
    if (run->n_tokens > sequence->context_size - sequence->position)
        return elutq_fail(report, ELUTQ_ERROR_CONTEXT, "the context is full: %u of %u tokens are used and %zu more were given",
                          sequence->position, sequence->context_size, run->n_tokens);
    if (!elutq_can_go_on(sequence, sequence->position))
        return elutq_fail(report, ELUTQ_ERROR_OVERWRITTEN,
                          "a call that failed has overwritten keys and values that layers with a window need: rewind to 0");
    for (size_t i = 0; i < run->n_tokens; i++)
        if (run->tokens[i] < 0 || (uint32_t)run->tokens[i] >= engine->model->config.vocab_size)
            return elutq_fail(report, ELUTQ_ERROR_ARGUMENT, "token id %d is outside the vocabulary of %u", run->tokens[i],
                              engine->model->config.vocab_size);
    return ELUTQ_OK;
}

/*
 * What a damaged scale leads to, and what no scale in a sound file does: a result that is not a number. Scales themselves
 * are not looked at when a file is opened, because that would read all of it.
 */
static int check_finite(const struct elutq_model *model, const float *x, size_t n, const struct elutq_error *report) {
    uint32_t bad = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        bad |= (bits & 0x7F800000u) == 0x7F800000u;
    }
    if (!bad)
        return ELUTQ_OK;
    const struct elutq_tensor *tensor = elutq_find_damage(model);
    if (tensor == NULL)
        return elutq_fail(report, ELUTQ_ERROR_FORMAT, "the model computes numbers too large for its formats");
    return elutq_fail(report, ELUTQ_ERROR_FORMAT,
                      "%.*s holds a scale or weight that no model has; the file is damaged, copy or download it again",
                      (int)tensor->name.n_bytes, tensor->name.bytes);
}

/* The next tokens of a run, as many as a pass takes of it, of which `done` are behind them. */
static struct elutq_piece next_piece(const struct elutq_run *run, size_t done) {
    const size_t left = run->n_tokens - done, n = left < ELUTQ_PIECE_TOKENS ? left : ELUTQ_PIECE_TOKENS;
    const size_t first_logit = run->n_tokens - run->n_logits; /* the token that has it */
    const size_t skipped = first_logit > done ? first_logit - done : 0;
    struct elutq_piece piece = {.sequence = run->sequence, .tokens = run->tokens + done, .n_tokens = (uint32_t)n};
    piece.n_logits = (uint32_t)(skipped < n ? n - skipped : 0);
    piece.position = run->sequence->position + (uint32_t)done;
    if (piece.n_logits > 0)
        piece.logits = run->logits + (done + skipped - first_logit) * run->sequence->model->config.vocab_size;
    if (run->hidden != NULL)
        piece.hidden = run->hidden + done * run->sequence->model->config.hidden_size;
    return piece;
}

/*
 * Fills one pass with the next piece of each run, as far as there is room. A run's pieces are cut by its own tokens alone:
 * beside others it may take more passes, never other pieces. Returns how many there are.
 */
static uint32_t fill_pass(struct elutq_engine *engine, const struct elutq_run *runs, size_t n_runs, size_t *done) {
    uint32_t n_pieces = 0, n_rows = 0;
    for (size_t i = 0; i < n_runs; i++) {
        if (done[i] == runs[i].n_tokens)
            continue;
        const struct elutq_piece piece = next_piece(&runs[i], done[i]);
        if (piece.n_tokens > engine->max_rows - n_rows)
            continue;
        elutq_overwrite(piece.sequence, piece.position, piece.position + piece.n_tokens);
        engine->pieces[n_pieces++] = piece;
        n_rows += piece.n_tokens;
        done[i] += piece.n_tokens;
    }
    return n_pieces;
}

/* A pass over the file as it was opened, and as it still is afterwards. */
static int run_pass(struct elutq_engine *engine, uint32_t n_pieces, struct elutq_layers layers,
                    const struct elutq_error *report) {
    const int status = elutq_forward(engine, n_pieces, layers);
    if (status == ELUTQ_ERROR_CANCELLED)
        return elutq_fail(report, status, "cancelled");
    if (status != ELUTQ_OK)
        return elutq_fail(report, status, "this process was forked and has not the engine's threads; open an engine in it");
    return elutq_mapping_check(&engine->model->gguf.mapping, report);
}

static int run_passes(struct elutq_engine *engine, const struct elutq_run *runs, size_t n_runs, size_t *done,
                      const struct elutq_error *report) {
    int status = elutq_mapping_check(&engine->model->gguf.mapping, report);
    for (uint32_t n_pieces; status == ELUTQ_OK && (n_pieces = fill_pass(engine, runs, n_runs, done)) > 0;)
        status = run_pass(engine, n_pieces, (struct elutq_layers){0, engine->model->config.n_layers}, report);
    return status;
}

static int eval_runs(struct elutq_engine *engine, const struct elutq_run *runs, size_t n_runs,
                     const struct elutq_error *report) {
    int status = ELUTQ_OK;
    for (size_t i = 0; i < n_runs && status == ELUTQ_OK; i++)
        status = check_run(engine, &runs[i], report);
    if (status != ELUTQ_OK)
        return status;
    size_t *done = calloc(n_runs, sizeof *done);
    if (done == NULL)
        return elutq_fail(report, ELUTQ_ERROR_MEMORY, "out of memory");
    status = run_passes(engine, runs, n_runs, done, report);
    free(done);
    for (size_t i = 0; i < n_runs && status == ELUTQ_OK; i++) {
        status = check_finite(engine->model, runs[i].logits, runs[i].n_logits * engine->model->config.vocab_size, report);
        if (status == ELUTQ_OK && runs[i].hidden != NULL)
            status = check_finite(engine->model, runs[i].hidden, runs[i].n_tokens * engine->model->config.hidden_size, report);
    }
    for (size_t i = 0; i < n_runs && status == ELUTQ_OK; i++)
        runs[i].sequence->position += (uint32_t)runs[i].n_tokens;
    return status;
}

/* Whether a run's sequence is that of a run before it. */
static bool is_earlier(const struct elutq_run *runs, size_t run) {
    for (size_t i = 0; i < run; i++)
        if (runs[i].sequence == runs[run].sequence)
            return true;
    return false;
}

int elutq_engine_eval(elutq_engine *engine, const struct elutq_run *runs, size_t n_runs, char *error, size_t error_bytes) {
    const struct elutq_error report = {error, error_bytes};
    if (n_runs == 0)
        return elutq_fail(&report, ELUTQ_ERROR_ARGUMENT, "nothing to evaluate");
    if (!elutq_begin_call(&engine->in_use))
        return elutq_fail(&report, ELUTQ_ERROR_IN_USE, "another thread is using this engine; open one for each thread");
    elutq_engine_go_on(engine);
    size_t n_begun = 0;
    while (n_begun < n_runs && elutq_begin_call(&runs[n_begun].sequence->in_use))
        n_begun++;
    int status;
    if (n_begun == n_runs)
        status = eval_runs(engine, runs, n_runs, &report);
    else if (is_earlier(runs, n_begun))
        status = elutq_fail(&report, ELUTQ_ERROR_ARGUMENT, "a sequence is given twice: put its tokens into one run");
    else
        status = elutq_fail(&report, ELUTQ_ERROR_IN_USE, "another thread is using a sequence; open one for each thread");
    while (n_begun > 0)
        elutq_end_call(&runs[--n_begun].sequence->in_use, status);
    return elutq_end_call(&engine->in_use, status);
}

static int rehearse(struct elutq_engine *engine, struct elutq_layers layers, float *logits, elutq_sequence *sequence,
                    uint64_t *nanoseconds, const struct elutq_error *report) {
    static const int32_t token = 0;
    const bool to_the_end = layers.end == engine->model->config.n_layers;
    engine->pieces[0] = (struct elutq_piece){
        .sequence = sequence, .tokens = &token, .n_tokens = 1, .n_logits = to_the_end ? 1 : 0, .logits = logits};
    int status = elutq_mapping_check(&engine->model->gguf.mapping, report);
    const uint64_t begin = elutq_nanoseconds();
    if (status == ELUTQ_OK)
        status = run_pass(engine, 1, layers, report);
    *nanoseconds = elutq_nanoseconds() - begin;
    return status;
}

int elutq_engine_rehearse(elutq_engine *engine, uint32_t first_layer, uint32_t n_layers, uint64_t *nanoseconds, char *error,
                          size_t error_bytes) {
    const struct elutq_error report = {error, error_bytes};
    const struct elutq_config *config = &engine->model->config;
    *nanoseconds = 0;
    if (n_layers == 0 || first_layer >= config->n_layers || n_layers > config->n_layers - first_layer)
        return elutq_fail(&report, ELUTQ_ERROR_ARGUMENT, "a model of %u layers has not %u of them from %u on", config->n_layers,
                          n_layers, first_layer);
    if (!elutq_begin_call(&engine->in_use))
        return elutq_fail(&report, ELUTQ_ERROR_IN_USE, "another thread is using this engine; open one for each thread");
    elutq_engine_go_on(engine);
    elutq_sequence *sequence;
    float *logits = calloc(config->vocab_size, sizeof *logits);
    int status = logits == NULL ? elutq_fail(&report, ELUTQ_ERROR_MEMORY, "out of memory")
                                : elutq_sequence_create(engine->model, 1, ELUTQ_CACHE_F16, &sequence, error, error_bytes);
    if (status == ELUTQ_OK) {
        const struct elutq_layers layers = {first_layer, first_layer + n_layers};
        status = rehearse(engine, layers, logits, sequence, nanoseconds, &report);
        elutq_sequence_destroy(sequence);
    }
    free(logits);
    return elutq_end_call(&engine->in_use, status);
}
