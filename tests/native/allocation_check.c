/*
 * Lets every allocation and every thread start fail in turn: opening a model, creating a sequence, an engine and a pool must
 * then return ELUTQ_ERROR_MEMORY with a message, hand out nothing, and keep nothing. Linked with
 * -Wl,--wrap=malloc,--wrap=calloc,--wrap=aligned_alloc,--wrap=free,--wrap=pthread_create.
 *
 *     allocation_check MODEL...
 */
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "elutq.h"
#include "one_text.h"

static int until_failure = -1; /* allocations that still succeed; negative: all */
static long n_live;            /* allocations not yet freed; only this program's and the library's calls are counted */
static bool failed;

static bool fails(void) {
    if (until_failure < 0 || until_failure-- > 0)
        return false;
    failed = true;
    return true;
}

void *__real_malloc(size_t n_bytes);
void *__real_calloc(size_t n_items, size_t item_bytes);
void *__real_aligned_alloc(size_t alignment, size_t n_bytes);
void __real_free(void *memory);
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument);

void *__wrap_malloc(size_t n_bytes) {
    void *memory = fails() ? NULL : __real_malloc(n_bytes);
    __atomic_fetch_add(&n_live, memory != NULL, __ATOMIC_RELAXED);
    return memory;
}

void *__wrap_calloc(size_t n_items, size_t item_bytes) {
    void *memory = fails() ? NULL : __real_calloc(n_items, item_bytes);
    __atomic_fetch_add(&n_live, memory != NULL, __ATOMIC_RELAXED);
    return memory;
}

void *__wrap_aligned_alloc(size_t alignment, size_t n_bytes) {
    void *memory = fails() ? NULL : __real_aligned_alloc(alignment, n_bytes);
    __atomic_fetch_add(&n_live, memory != NULL, __ATOMIC_RELAXED);
    return memory;
}

void __wrap_free(void *memory) {
    __atomic_fetch_sub(&n_live, memory != NULL, __ATOMIC_RELAXED);
    __real_free(memory);
}

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument) {
    return fails() ? EAGAIN : __real_pthread_create(thread, attributes, start, argument);
}

/* ---- ---- */

static const char *model_path;
static elutq_model *open_model; /* for the texts */

static int open_once(char *error, size_t error_bytes, bool *handed_out) {
    elutq_model *model;
    int status = elutq_model_open(model_path, NULL, &model, error, error_bytes);
    *handed_out = model != NULL;
    elutq_model_close(model);
    return status;
}

static int create_text_once(char *error, size_t error_bytes, bool *handed_out) {
    struct text text;
    int status = text_create(open_model, 16, ELUTQ_CACHE_F16, 3, &text, error, error_bytes);
    *handed_out = text.engine != NULL || text.sequence != NULL;
    text_destroy(&text);
    return status;
}

static int create_pool_once(char *error, size_t error_bytes, bool *handed_out) {
    elutq_pool *pool;
    int status = elutq_pool_create(4, &pool);
    snprintf(error, error_bytes, "pools have no message");
    *handed_out = pool != NULL;
    elutq_pool_destroy(pool);
    return status;
}

/* Fails allocation 0, 1, 2, ... of `once` until it needs no more of them. */
static bool check_all(const char *what, int (*once)(char *, size_t, bool *)) {
    bool right = true;
    int n;
    for (n = 0;; n++) {
        char error[256] = "";
        bool handed_out;
        const long before = n_live;
        failed = false;
        until_failure = n;
        int status = once(error, sizeof error, &handed_out);
        until_failure = -1;
        if (n_live != before) {
            printf("WRONG %s: allocation %d of it failed and %ld stay allocated\n", what, n, n_live - before);
            right = false;
        }
        if (!failed) {
            right = right && status == ELUTQ_OK && handed_out && n > 0;
            break;
        }
        if (status != ELUTQ_ERROR_MEMORY || handed_out || error[0] == '\0') {
            printf("WRONG %s: allocation %d of it failed; status %d, \"%s\"\n", what, n, status, error);
            right = false;
        }
    }
    printf("%s: each of %d allocations failed once%s\n", what, n, right ? "" : " - WRONG");
    return right;
}

int main(int n_arguments, char **arguments) {
    bool right = check_all("pool", create_pool_once);
    for (int i = 1; i < n_arguments; i++) {
        model_path = arguments[i];
        right = check_all(model_path, open_once) && right;
        if (elutq_model_open(model_path, NULL, &open_model, NULL, 0) != ELUTQ_OK)
            return 1;
        right = check_all("text", create_text_once) && right;
        elutq_model_close(open_model);
    }
    return right ? 0 : 1;
}
