#include "threads.h"

#include <stdlib.h>

#include "aligned.h"

/*
 * A waiting thread spins for about what a sleep and a wake-up cost (some 50 us: x86 pause and ARM isb take 10 to 60 ns),
 * then sleeps; it never wastes more than it could have gained.
 */
#define SPIN_LIMIT 1500

#define CACHE_LINE 64

/* A thread's counters for stages of even and odd phase: it clears the one that the next stage counts with. */
struct work_range {
    _Alignas(CACHE_LINE) atomic_uint taken[2]; /* items handed out of this thread's range since the last barrier */
};

struct elutq_pool {
    unsigned n_threads;
    unsigned n_started;
    bool stopping;
    atomic_bool running;
    int64_t process; /* that has the threads */
    elutq_task task;
    void *context;
    elutq_thread *threads;     /* [n_threads - 1] */
    struct work_range *ranges; /* [n_threads] */
    _Alignas(CACHE_LINE) atomic_uint generation; /* a new value starts a task */
    _Alignas(CACHE_LINE) atomic_uint arrived;    /* threads waiting in the barrier */
    _Alignas(CACHE_LINE) atomic_uint phase;      /* a new value opens the barrier */
    _Alignas(CACHE_LINE) atomic_uint sleepers;
    elutq_monitor *monitor; /* where sleepers sleep */
};

struct worker_start {
    elutq_pool *pool;
    unsigned thread;
};

/*
 * Waits until *word differs from `old`. Sleeping cannot miss a change: a sleeper announces itself before it looks at the
 * word again under the lock, a publisher changes the word before it looks for sleepers, all sequentially consistent.
 * The change is an exchange, on x86 the same instruction as a store: QEMU on x86 lets AArch64's LDAR pass an earlier STLR.
 */
static void wait_for_change(elutq_pool *pool, atomic_uint *word, unsigned old) {
    for (unsigned spin = 0; spin < SPIN_LIMIT; spin++) {
        if (atomic_load_explicit(word, memory_order_acquire) != old)
            return;
        ELUTQ_RELAX();
    }
    elutq_monitor_lock(pool->monitor);
    atomic_fetch_add(&pool->sleepers, 1);
    while (atomic_load(word) == old)
        elutq_monitor_wait(pool->monitor);
    atomic_fetch_sub(&pool->sleepers, 1);
    elutq_monitor_unlock(pool->monitor);
}

static void publish(elutq_pool *pool, atomic_uint *word, unsigned value) {
    (void)atomic_exchange(word, value);
    if (atomic_load(&pool->sleepers) == 0)
        return;
    elutq_monitor_lock(pool->monitor);
    elutq_monitor_wake_all(pool->monitor);
    elutq_monitor_unlock(pool->monitor);
}

static void *worker(void *argument) {
    struct worker_start start = *(struct worker_start *)argument;
    elutq_pool *pool = start.pool;
    free(argument);
    for (unsigned generation = 0;; generation++) {
        wait_for_change(pool, &pool->generation, generation);
        if (pool->stopping)
            return NULL;
        pool->task(pool->context, start.thread, pool->n_threads);
        elutq_pool_barrier(pool, start.thread);
    }
}

static int start_workers(elutq_pool *pool) {
    for (unsigned thread = 1; thread < pool->n_threads; thread++) {
        struct worker_start *start = malloc(sizeof *start);
        if (start == NULL)
            return ELUTQ_ERROR_MEMORY;
        *start = (struct worker_start){.pool = pool, .thread = thread};
        if (!elutq_thread_start(&pool->threads[thread - 1], ELUTQ_STACK_BYTES, worker, start)) {
            free(start);
            return ELUTQ_ERROR_MEMORY;
        }
        pool->n_started++;
    }
    return ELUTQ_OK;
}

/* Whether this process came of a fork and has only the thread that forked. */
static bool has_lost_threads(const elutq_pool *pool) {
    return pool->n_threads > 1 && pool->process != elutq_process();
}

int elutq_pool_create(unsigned n_threads, elutq_pool **out) {
    *out = NULL;
    if (n_threads < 1 || n_threads > ELUTQ_MAX_THREADS)
        return ELUTQ_ERROR_ARGUMENT;
    elutq_pool *pool = elutq_allocate_aligned(1, sizeof *pool);
    if (pool == NULL)
        return ELUTQ_ERROR_MEMORY;
    *pool = (elutq_pool){.n_threads = n_threads, .process = elutq_process()};
    pool->monitor = elutq_monitor_create();
    pool->threads = calloc(n_threads, sizeof *pool->threads);
    pool->ranges = elutq_allocate_aligned(n_threads, sizeof *pool->ranges);
    if (pool->monitor == NULL || pool->threads == NULL || pool->ranges == NULL) {
        elutq_pool_destroy(pool);
        return ELUTQ_ERROR_MEMORY;
    }
    for (unsigned thread = 0; thread < n_threads; thread++)
        for (unsigned parity = 0; parity < 2; parity++)
            atomic_init(&pool->ranges[thread].taken[parity], 0);
    int status = start_workers(pool);
    if (status != ELUTQ_OK) {
        elutq_pool_destroy(pool);
        return status;
    }
    *out = pool;
    return ELUTQ_OK;
}

static void stop_workers(elutq_pool *pool) {
    pool->stopping = true;
    publish(pool, &pool->generation, atomic_load(&pool->generation) + 1);
    for (unsigned i = 0; i < pool->n_started; i++)
        elutq_thread_join(pool->threads[i]);
    elutq_monitor_destroy(pool->monitor);
}

int elutq_pool_destroy(elutq_pool *pool) {
    if (pool == NULL)
        return ELUTQ_OK;
    if (atomic_exchange(&pool->running, true))
        return ELUTQ_ERROR_IN_USE;
    if (!has_lost_threads(pool))
        stop_workers(pool);
    else /* there is nobody to stop, and the lock may be held by one who is not there */
        elutq_monitor_forget(pool->monitor);
    free(pool->threads);
    elutq_free_aligned(pool->ranges);
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
    if (has_lost_threads(pool))
        return ELUTQ_ERROR_FORKED;
    if (atomic_exchange(&pool->running, true))
        return ELUTQ_ERROR_IN_USE;
    if (pool->n_threads > 1) {
        pool->task = task;
        pool->context = context;
        publish(pool, &pool->generation, atomic_load(&pool->generation) + 1);
    }
    task(context, 0, pool->n_threads);
    elutq_pool_barrier(pool, 0);
    atomic_store(&pool->running, false);
    return ELUTQ_OK;
}

/* What was counted before the last barrier is past: everyone has arrived here since, and counts with it after the next. */
void elutq_pool_barrier(elutq_pool *pool, unsigned thread) {
    const unsigned phase = atomic_load_explicit(&pool->phase, memory_order_relaxed);
    atomic_store_explicit(&pool->ranges[thread].taken[(phase + 1) % 2], 0, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&pool->arrived, 1, memory_order_acq_rel) + 1 < pool->n_threads) {
        wait_for_change(pool, &pool->phase, phase);
        return;
    }
    atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);
    publish(pool, &pool->phase, phase + 1);
}

bool elutq_pool_take(elutq_pool *pool, unsigned thread, unsigned n_items, unsigned *item) {
    const unsigned parity = atomic_load_explicit(&pool->phase, memory_order_relaxed) % 2;
    for (unsigned step = 0; step < pool->n_threads; step++) {
        unsigned owner = (thread + step) % pool->n_threads;
        unsigned first = (unsigned)((uint64_t)n_items * owner / pool->n_threads);
        unsigned size = (unsigned)((uint64_t)n_items * (owner + 1) / pool->n_threads) - first;
        atomic_uint *taken = &pool->ranges[owner].taken[parity];
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
