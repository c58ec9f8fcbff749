/*
 * A persistent pool that runs one task on all or some of its threads at once (SPMD), with a barrier and a work queue.
 *
 * Inside a task the threads share work between two barriers through elutq_pool_take, and meet in elutq_pool_barrier.
 * Each thread starts with its own contiguous range of items, so that it streams memory in order, and takes from the
 * others' ranges when its own is done, so that a slow core (big.LITTLE, a busy neighbour) does not hold up the rest.
 */
#ifndef ELUTQ_THREADS_H
#define ELUTQ_THREADS_H

#include <stdbool.h>

#include "compiler.h"
#include "elutq.h"

#define ELUTQ_MAX_THREADS 256

/*
 * Bytes of stack of a pool's threads, whatever the system's default (128 KB under musl). A task may take half of it; the
 * rest is for the C library, thread-local storage and the frames of signal handlers.
 */
#define ELUTQ_STACK_BYTES (1 << 20)

/* Runs on each of n_threads threads, thread = 0 .. n_threads - 1; thread 0 is the caller of elutq_pool_run. */
typedef void (*elutq_task)(void *context, unsigned thread, unsigned n_threads);

unsigned elutq_pool_threads(const elutq_pool *pool);

/*
 * Runs `task` on all threads and returns when all have finished. `context` is the task's own. ELUTQ_ERROR_IN_USE while
 * another task runs, ELUTQ_ERROR_FORKED in a process that has not the threads: then the task does not run at all.
 */
ELUTQ_MUST_USE int elutq_pool_run(elutq_pool *pool, elutq_task task, void *context);

/* The same on the first n_threads, 1 to all; the others sleep on. */
ELUTQ_MUST_USE int elutq_pool_run_few(elutq_pool *pool, unsigned n_threads, elutq_task task, void *context);

/*
 * Called by all threads of a running task, each with its own number: returns in each when the last has arrived, and refills
 * the work queue.
 */
void elutq_pool_barrier(elutq_pool *pool, unsigned thread);

/*
 * Hands out each of the items 0 .. n_items - 1 once. All threads pass the same n_items until it returns false; a barrier
 * (or the end of the task) must lie between two uses.
 */
bool elutq_pool_take(elutq_pool *pool, unsigned thread, unsigned n_items, unsigned *item);

#endif
