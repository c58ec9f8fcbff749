#include "threads.h"

#include <stdlib.h>

#include "aligned.h"
#include "in_use.h"

/*
 * A waiting thread spins for about what a sleep and a wake-up cost (some 50 us: x86 pause and ARM isb take 10 to 60 ns),
 * then sleeps; it never wastes more than it could have gained.
 */
#define SPIN_LIMIT 1500

#define CACHE_LINE 64

/* A word that threads wait to see changed, and where they sleep when that takes long. */
struct gate {
    atomic_uint word;
    atomic_uint sleepers;
    elutq_monitor *monitor;
};

/*
 * What belongs to one thread. Each has a gate of its own to wait for its next task, so that a thread that tasks of few threads
 * leave out sleeps through all of them. Counters are for stages of even and odd phase: a thread clears the one that the next
 * stage counts with.
 */
struct seat {
    _Alignas(CACHE_LINE) struct gate start; /* a new word starts a task */
    atomic_uint taken[2];                   /* items handed out of this thread's range since the last barrier */
};

struct elutq_pool {
    unsigned n_threads;
    unsigned n_started;
    bool stopping;
    elutq_in_use running;
    int64_t process; /* that has the threads */
    elutq_task task;
    void *context;
    unsigned n_running;    /* threads that the task runs on */
    elutq_thread *threads; /* [n_threads - 1] */
    struct seat *seats;    /* [n_threads] */
    _Alignas(CACHE_LINE) atomic_uint arrived; /* threads waiting in the barrier */
    _Alignas(CACHE_LINE) struct gate phase;   /* a new word opens the barrier */
};

struct worker_start {
    elutq_pool *pool;
    unsigned thread;
};

/*
 * Waits until a gate's word differs from `old`. Sleeping cannot miss a change: a sleeper announces itself before it looks at
 * the word again under the lock, a publisher changes the word before it looks for sleepers, all sequentially consistent.
 * The change is an exchange, on x86 the same instruction as a store: QEMU on x86 lets AArch64's LDAR pass an earlier STLR.
 */
static void wait_for_change(struct gate *gate, unsigned old) {
    for (unsigned spin = 0; spin < SPIN_LIMIT; spin++) {
        if (atomic_load_explicit(&gate->word, memory_order_acquire) != old)
            return;
        ELUTQ_RELAX();
    }
    elutq_monitor_lock(gate->monitor);
    atomic_fetch_add(&gate->sleepers, 1);
    while (atomic_load(&gate->word) == old)
        elutq_monitor_wait(gate->monitor);
    atomic_fetch_sub(&gate->sleepers, 1);
    elutq_monitor_unlock(gate->monitor);
}

static void publish(struct gate *gate, unsigned word) {
    (void)atomic_exchange(&gate->word, word);
    if (atomic_load(&gate->sleepers) == 0)
        return;
    elutq_monitor_lock(gate->monitor);
    elutq_monitor_wake_all(gate->monitor);
    elutq_monitor_unlock(gate->monitor);
}

/* Only the thread that runs tasks changes this word. */
static void start(struct seat *seat) {
    publish(&seat->start, atomic_load_explicit(&seat->start.word, memory_order_relaxed) + 1);
}

static void *worker(void *argument) {
    struct worker_start own = *(struct worker_start *)argument;
    elutq_pool *pool = own.pool;
    free(argument);
    for (unsigned word = 0;; word++) {
        wait_for_change(&pool->seats[own.thread].start, word);
        if (pool->stopping)
            return NULL;
        pool->task(pool->context, own.thread, pool->n_running);
        elutq_pool_barrier(pool, own.thread);
    }
}

static int start_workers(elutq_pool *pool) {
    for (unsigned thread = 1; thread < pool->n_threads; thread++) {
        struct worker_start *own = malloc(sizeof *own);
        if (own == NULL)
            return ELUTQ_ERROR_MEMORY;
        *own = (struct worker_start){.pool = pool, .thread = thread};
        if (!elutq_thread_start(&pool->threads[thread - 1], ELUTQ_STACK_BYTES, worker, own)) {
            free(own);
            return ELUTQ_ERROR_MEMORY;
        }
        pool->n_started++;
    }
    return ELUTQ_OK;
}

/* Whether this process came of a fork and has only the thread that forked: not the pool's, or not the one that ran its task. */
static bool has_lost_threads(const elutq_pool *pool) {
    const int64_t own = elutq_process(), running = atomic_load(&pool->running);
    return pool->n_threads > 1 ? pool->process != own : running != 0 && running != own;
}

/* False when there is no memory for all of it. */
static bool take_seats(elutq_pool *pool) {
    pool->phase.monitor = elutq_monitor_create();
    pool->threads = calloc(pool->n_threads, sizeof *pool->threads);
    pool->seats = elutq_allocate_aligned(pool->n_threads, sizeof *pool->seats);
    bool taken = pool->phase.monitor != NULL && pool->threads != NULL && pool->seats != NULL;
    for (unsigned thread = 0; pool->seats != NULL && thread < pool->n_threads; thread++) {
        pool->seats[thread] = (struct seat){.start = {.monitor = elutq_monitor_create()}};
        taken = taken && pool->seats[thread].start.monitor != NULL;
    }
    return taken;
}

int elutq_pool_create(unsigned n_threads, elutq_pool **out) {
    *out = NULL;
    if (n_threads < 1 || n_threads > ELUTQ_MAX_THREADS)
        return ELUTQ_ERROR_ARGUMENT;
    elutq_pool *pool = elutq_allocate_aligned(1, sizeof *pool);
    if (pool == NULL)
        return ELUTQ_ERROR_MEMORY;
    *pool = (elutq_pool){.n_threads = n_threads, .process = elutq_process()};
    const int status = take_seats(pool) ? start_workers(pool) : ELUTQ_ERROR_MEMORY;
    if (status != ELUTQ_OK) {
        elutq_pool_destroy(pool);
        return status;
    }
    *out = pool;
    return ELUTQ_OK;
}

static void stop_workers(elutq_pool *pool) {
    pool->stopping = true;
    for (unsigned i = 0; i < pool->n_started; i++)
        start(&pool->seats[i + 1]);
    for (unsigned i = 0; i < pool->n_started; i++)
        elutq_thread_join(pool->threads[i]);
}

int elutq_pool_destroy(elutq_pool *pool) {
    if (pool == NULL)
        return ELUTQ_OK;
    if (!elutq_begin_call(&pool->running))
        return ELUTQ_ERROR_IN_USE;
    const bool lost = has_lost_threads(pool); /* there is nobody to stop, and locks may be held by those who are not there */
    void (*const give_up)(elutq_monitor *) = lost ? elutq_monitor_forget : elutq_monitor_destroy;
    if (!lost)
        stop_workers(pool);
    for (unsigned thread = 0; pool->seats != NULL && thread < pool->n_threads; thread++)
        give_up(pool->seats[thread].start.monitor);
    give_up(pool->phase.monitor);
    free(pool->threads);
    elutq_free_aligned(pool->seats);
    elutq_free_aligned(pool);
    return ELUTQ_OK;
}

unsigned elutq_default_threads(void) {
    const unsigned n = elutq_cores();
    return n < 1 ? 1 : n > ELUTQ_MAX_THREADS ? ELUTQ_MAX_THREADS : n;
}

unsigned elutq_pool_threads(const elutq_pool *pool) {
    return pool->n_threads;
}

int elutq_pool_run(elutq_pool *pool, elutq_task task, void *context) {
    return elutq_pool_run_few(pool, pool->n_threads, task, context);
}

int elutq_pool_run_few(elutq_pool *pool, unsigned n_threads, elutq_task task, void *context) {
    if (has_lost_threads(pool))
        return ELUTQ_ERROR_FORKED;
    if (!elutq_begin_call(&pool->running))
        return ELUTQ_ERROR_IN_USE;
    pool->task = task;
    pool->context = context;
    pool->n_running = n_threads;
    for (unsigned thread = 1; thread < n_threads; thread++)
        for (unsigned parity = 0; parity < 2; parity++) /* who was left out has counts of long ago */
            atomic_store_explicit(&pool->seats[thread].taken[parity], 0, memory_order_relaxed);
    for (unsigned thread = 1; thread < n_threads; thread++)
        start(&pool->seats[thread]);
    task(context, 0, n_threads);
    elutq_pool_barrier(pool, 0);
    return elutq_end_call(&pool->running, ELUTQ_OK);
}

/*
 * What was counted before the last barrier is past: everyone has arrived here since, and counts with it after the next. Who has
 * arrived looks at nothing that the next task changes.
 */
void elutq_pool_barrier(elutq_pool *pool, unsigned thread) {
    const unsigned n_running = pool->n_running;
    const unsigned phase = atomic_load_explicit(&pool->phase.word, memory_order_relaxed);
    atomic_store_explicit(&pool->seats[thread].taken[(phase + 1) % 2], 0, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&pool->arrived, 1, memory_order_acq_rel) + 1 < n_running) {
        wait_for_change(&pool->phase, phase);
        return;
    }
    atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);
    publish(&pool->phase, phase + 1);
}

bool elutq_pool_take(elutq_pool *pool, unsigned thread, unsigned n_items, unsigned *item) {
    const unsigned parity = atomic_load_explicit(&pool->phase.word, memory_order_relaxed) % 2, n_running = pool->n_running;
    for (unsigned step = 0; step < n_running; step++) {
        unsigned owner = (thread + step) % n_running;
        unsigned first = (unsigned)((uint64_t)n_items * owner / n_running);
        unsigned size = (unsigned)((uint64_t)n_items * (owner + 1) / n_running) - first;
        atomic_uint *taken = &pool->seats[owner].taken[parity];
        if (atomic_load_explicit(taken, memory_order_relaxed) >= size)
            continue;
        unsigned index = atomic_fetch_add_explicit(taken, 1, memory_order_relaxed);
        if (index < size) {
            *item = first + index;
            return true;
        }
    }
    return false;
}
