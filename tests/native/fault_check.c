/*
 * Takes the model file away from under a running model: cut short, written to, renamed over, deleted; before a call, and
 * beneath one under way. And its threads: by a fork.
 *
 *     fault_check MODEL
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "elutq.h"
#include "one_text.h"

#define N_RACES 100

static bool failed;

static void check(bool right, const char *what, const char *detail) {
    if (!right)
        printf("WRONG %s: %s\n", what, detail);
    failed = failed || !right;
}

/* ---- a copy of the model file, open and with an engine ---- */

static uint8_t *contents;
static size_t n_bytes;
static char path[] = "/tmp/elutq-fault-XXXXXX";

static void write_copy(void) {
    FILE *file = fopen(path, "wb");
    contents[n_bytes / 2] ^= 1; /* never what it was */
    if (file == NULL || fwrite(contents, 1, n_bytes, file) != n_bytes || fclose(file) != 0)
        exit(1);
}

struct running {
    elutq_model *model;
    struct text text;
    float *logits;
};

static struct running start(unsigned n_threads) {
    struct running running;
    struct elutq_model_info info;
    char error[256] = "";
    write_copy();
    if (elutq_model_open(path, NULL, &running.model, error, sizeof error) != ELUTQ_OK ||
        text_create(running.model, 64, ELUTQ_CACHE_F16, n_threads, &running.text, error, sizeof error) !=
            ELUTQ_OK) {
        printf("%s\n", error);
        exit(1);
    }
    elutq_model_describe(running.model, &info);
    running.logits = calloc(info.vocab_size, sizeof *running.logits);
    return running;
}

static void stop(struct running *running) {
    text_destroy(&running->text);
    elutq_model_close(running->model);
    free(running->logits);
}

static int evaluate(struct running *running, char *error, size_t error_bytes) {
    static const int32_t TOKENS[] = {1, 2, 3, 4, 5, 6, 7, 8};
    elutq_sequence_rewind(running->text.sequence, 0);
    return text_eval(&running->text, TOKENS, 8, running->logits, 1, error, error_bytes);
}

static void expect(struct running *running, int wanted, const char *message, const char *what) {
    char error[256] = "";
    const int status = evaluate(running, error, sizeof error);
    check(status == wanted && strstr(error, message) != NULL, what, error);
    check(status == ELUTQ_OK || elutq_sequence_position(running->text.sequence) == 0, what, "the position moved");
}

static void cut(void) {
    if (truncate(path, 4096) != 0)
        exit(1);
}

/* ---- noticed before a call ---- */

static void check_changes(void) {
    struct running running = start(2);
    expect(&running, ELUTQ_OK, "", "untouched");
    cut();
    expect(&running, ELUTQ_ERROR_IO, "cut short", "cut short");
    write_copy();
    expect(&running, ELUTQ_ERROR_IO, "written to", "written anew");
    stop(&running);

    running = start(2);
    const struct timespec times[2] = {{1000, 0}, {1000, 0}};
    if (utimensat(AT_FDCWD, path, times, 0) != 0)
        exit(1);
    expect(&running, ELUTQ_OK, "", "touched");
    stop(&running);

    running = start(2);
    char aside[sizeof path + 8];
    snprintf(aside, sizeof aside, "%s.new", path);
    FILE *other = fopen(aside, "wb");
    if (other == NULL || fclose(other) != 0 || rename(aside, path) != 0)
        exit(1);
    expect(&running, ELUTQ_OK, "", "another file renamed over it");
    unlink(path);
    expect(&running, ELUTQ_OK, "", "deleted");
    stop(&running);
}

/* ---- SIGBUS ---- */

/* Runs a function in a process of its own; returns its wait status. */
static int in_child(void (*function)(void)) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        function();
        _exit(0);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child)
        exit(1);
    return status;
}

static bool succeeded(int status) {
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/* ---- fork ---- */

static struct running before_fork;

static void use_after_fork(void) {
    char error[256] = "";
    alarm(60); /* a child that hangs has failed */
    expect(&before_fork, ELUTQ_ERROR_FORKED, "forked", "an engine of another process");
    check(text_destroy(&before_fork.text) == ELUTQ_OK, "an engine of another process", "not freed");
    if (text_create(before_fork.model, 64, ELUTQ_CACHE_F16, 3, &before_fork.text, error, sizeof error) != ELUTQ_OK)
        _exit(1);
    expect(&before_fork, ELUTQ_OK, "", "an engine opened after a fork");
    stop(&before_fork);
    if (failed)
        _exit(1);
}

static void check_fork(void) {
    before_fork = start(3);
    expect(&before_fork, ELUTQ_OK, "", "before a fork");
    check(succeeded(in_child(use_after_fork)), "fork", "the child failed");
    expect(&before_fork, ELUTQ_OK, "", "after a fork");
    stop(&before_fork);
}

/* Reads the weights of a file that is gone, without the look at it that elutq_engine_eval takes first. */
static void read_lost_pages(void) {
    struct running running = start(3);
    cut();
    float read;
    elutq_engine_read_weights(running.text.engine, &read);
    char error[256] = "";
    write_copy();
    check(evaluate(&running, error, sizeof error) == ELUTQ_ERROR_IO, "after pages were lost", error);
    stop(&running);
    if (failed)
        _exit(1);
}

static void read_lost_pages_of_another(void) {
    int file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (file < 0 || ftruncate(file, 65536) != 0)
        _exit(1);
    volatile uint8_t *map = mmap(NULL, 65536, PROT_READ, MAP_SHARED, file, 0);
    if (map == MAP_FAILED || ftruncate(file, 0) != 0)
        _exit(1);
    (void)map[40000];
}

static void survive_and_read_of_another(void) {
    elutq_survive_lost_pages();
    read_lost_pages_of_another();
}

static void handled(int signal_number) {
    (void)signal_number;
    _exit(7);
}

static void survive_after_own_handler(void) {
    signal(SIGBUS, handled);
    elutq_survive_lost_pages();
    read_lost_pages_of_another();
}

static void send_to_itself(void) {
    elutq_survive_lost_pages();
    raise(SIGBUS);
}

/* ---- beneath a call ---- */

static void *cut_later(void *delay) {
    usleep(*(unsigned *)delay);
    cut();
    return NULL;
}

static void check_races(void) {
    for (unsigned i = 0; i < N_RACES; i++) {
        struct running running = start(1 + i % 3);
        pthread_t cutter;
        unsigned delay = i * 20;
        if (pthread_create(&cutter, NULL, cut_later, &delay) != 0)
            exit(1);
        char error[256] = "";
        int status = ELUTQ_OK;
        while (status == ELUTQ_OK)
            status = evaluate(&running, error, sizeof error);
        pthread_join(cutter, NULL);
        check(status == ELUTQ_ERROR_IO && error[0] != '\0', "cut short beneath a call", error);
        stop(&running);
    }
    printf("%u files cut short beneath running calls\n", N_RACES);
}

int main(int n_arguments, char **arguments) {
    FILE *file = n_arguments == 2 ? fopen(arguments[1], "rb") : NULL;
    struct stat info;
    int copy = mkstemp(path);
    if (file == NULL || fstat(fileno(file), &info) != 0 || copy < 0) {
        printf("usage: fault_check MODEL\n");
        return 1;
    }
    close(copy);
    n_bytes = (size_t)info.st_size;
    contents = malloc(n_bytes);
    if (contents == NULL || fread(contents, 1, n_bytes, file) != n_bytes)
        return 1;
    fclose(file);

    check_changes();
    check_fork();
    check(!succeeded(in_child(read_lost_pages)), "lost pages without a handler", "the process lived: the test tests nothing");
    check(!succeeded(in_child(survive_and_read_of_another)), "SIGBUS of another mapping", "the process lived");
    check(!succeeded(in_child(send_to_itself)), "SIGBUS sent by the process", "the process lived");
    const int chained = in_child(survive_after_own_handler);
    check(WIFEXITED(chained) && WEXITSTATUS(chained) == 7, "SIGBUS of another mapping", "not handed to the handler before");

    check(elutq_survive_lost_pages() == ELUTQ_OK && elutq_survive_lost_pages() == ELUTQ_OK, "installing", "twice");
    check(succeeded(in_child(read_lost_pages)), "lost pages", "the process did not live");
    check_races();
    unlink(path);
    free(contents);
    return failed ? 1 : 0;
}
