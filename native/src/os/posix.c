#if !defined(_WIN32)

#define _GNU_SOURCE
#include "os.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "elutq.h"
#include "lost_pages.h"

void elutq_last_failure(char *text, size_t n_bytes) {
    snprintf(text, n_bytes, "%s", strerror(errno));
}

/* ---- files ---- */

/* O_NONBLOCK: a pipe, which is then refused, is not waited for; it means nothing to files. */
elutq_file elutq_file_open(const char *path) {
    int file;
    do
        file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    while (file < 0 && errno == EINTR);
    return file;
}

void elutq_file_close(elutq_file file) {
    close((int)file);
}

bool elutq_file_look(elutq_file file, struct elutq_file_state *state) {
    struct stat info;
    if (fstat((int)file, &info) != 0)
        return false;
#if defined(__APPLE__)
    const struct timespec time = info.st_mtimespec;
#else
    const struct timespec time = info.st_mtim;
#endif
    state->is_regular = S_ISREG(info.st_mode);
    state->n_bytes = (uint64_t)info.st_size;
    state->modified = (int64_t)((uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec);
    return true;
}

bool elutq_file_read(elutq_file file, uint64_t offset, void *to, size_t n_bytes) {
    for (size_t done = 0; done < n_bytes;) {
        const ssize_t got = pread((int)file, (char *)to + done, n_bytes - done, (off_t)(offset + done));
        if (got == 0)
            errno = EIO;
        if (got == 0 || (got < 0 && errno != EINTR))
            return false;
        done += got > 0 ? (size_t)got : 0;
    }
    return true;
}

const uint8_t *elutq_file_map(elutq_file file, size_t n_bytes, int *slot) {
    void *data = mmap(NULL, n_bytes, PROT_READ, MAP_PRIVATE, (int)file, 0);
    if (data == MAP_FAILED)
        return NULL;
    *slot = elutq_guard(data, n_bytes);
    return data;
}

void elutq_file_unmap(const uint8_t *data, size_t n_bytes, int slot) {
    elutq_unguard(slot);
    munmap((void *)data, n_bytes);
}

/* ---- lost pages: SIGBUS ---- */

static struct sigaction handler_before;
static uintptr_t page_bytes;

/*
 * Puts zeros in the place of everything from the lost page to the end of its mapping, so that the load that failed, and
 * those of all other threads, go on; the call they belong to finds that pages were lost and fails. mmap is one system call
 * here and takes no lock of ours, which makes it safe in a handler of a synchronous signal.
 */
static bool replace_lost_pages(uintptr_t address) {
    const struct elutq_guarded mapping = elutq_guarded_at(address);
    if (mapping.slot < 0)
        return false;
    const uintptr_t page = address / page_bytes * page_bytes;
    elutq_note_lost_pages(mapping.slot);
    return mmap((void *)page, mapping.start + mapping.n_bytes - page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
                0) != MAP_FAILED;
}

static void on_bus_error(int signal_number, siginfo_t *info, void *context) {
    const int saved = errno;
    const bool replaced = info->si_code > 0 && replace_lost_pages((uintptr_t)info->si_addr);
    errno = saved;
    if (replaced)
        return;
    if (handler_before.sa_flags & SA_SIGINFO) {
        handler_before.sa_sigaction(signal_number, info, context);
    } else if (handler_before.sa_handler != SIG_DFL && handler_before.sa_handler != SIG_IGN) {
        handler_before.sa_handler(signal_number);
    } else {
        sigaction(SIGBUS, &handler_before, NULL);
        raise(SIGBUS); /* delivered when this handler returns */
    }
}

static int install_status;

static void install(void) {
    page_bytes = (uintptr_t)sysconf(_SC_PAGESIZE);
    struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};
    sigemptyset(&action.sa_mask);
    install_status = sigaction(SIGBUS, NULL, &handler_before) == 0 && sigaction(SIGBUS, &action, NULL) == 0 ? ELUTQ_OK
                                                                                                            : ELUTQ_ERROR_IO;
}

int elutq_survive_lost_pages(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, install);
    return install_status;
}

/* ---- threads ---- */

bool elutq_thread_start(elutq_thread *thread, size_t stack_bytes, void *(*run)(void *), void *argument) {
    pthread_attr_t attributes;
    pthread_t id;
    if (pthread_attr_init(&attributes) != 0)
        return false;
    const bool started = (stack_bytes == 0 || pthread_attr_setstacksize(&attributes, stack_bytes) == 0) &&
                         pthread_create(&id, &attributes, run, argument) == 0;
    pthread_attr_destroy(&attributes);
    if (started)
        thread->id = (uintptr_t)id;
    return started;
}

void elutq_thread_join(elutq_thread thread) {
    pthread_join((pthread_t)thread.id, NULL);
}

struct elutq_monitor {
    pthread_mutex_t mutex;
    pthread_cond_t wake;
};

elutq_monitor *elutq_monitor_create(void) {
    elutq_monitor *monitor = malloc(sizeof *monitor);
    if (monitor == NULL)
        return NULL;
    pthread_mutex_init(&monitor->mutex, NULL);
    pthread_cond_init(&monitor->wake, NULL);
    return monitor;
}

void elutq_monitor_destroy(elutq_monitor *monitor) {
    if (monitor == NULL)
        return;
    pthread_cond_destroy(&monitor->wake);
    pthread_mutex_destroy(&monitor->mutex);
    free(monitor);
}

void elutq_monitor_forget(elutq_monitor *monitor) {
    free(monitor);
}

void elutq_monitor_lock(elutq_monitor *monitor) {
    pthread_mutex_lock(&monitor->mutex);
}

void elutq_monitor_unlock(elutq_monitor *monitor) {
    pthread_mutex_unlock(&monitor->mutex);
}

void elutq_monitor_wait(elutq_monitor *monitor) {
    pthread_cond_wait(&monitor->wake, &monitor->mutex);
}

void elutq_monitor_wake_all(elutq_monitor *monitor) {
    pthread_cond_broadcast(&monitor->wake);
}

int64_t elutq_process(void) {
    return getpid();
}

/* ---- memory and time ---- */

void *elutq_aligned_memory(size_t alignment, size_t n_bytes) {
    return aligned_alloc(alignment, n_bytes);
}

void elutq_free_aligned(void *memory) {
    free(memory);
}

uint64_t elutq_nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* ---- the processor, where neither linux.c nor macos.c knows more ---- */

#if !defined(__linux__) && !defined(__APPLE__)

unsigned elutq_cores(void) {
    const long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : (unsigned)n;
}

#if defined(__aarch64__)
bool elutq_system_has_dotprod(void) {
    return false;
}

bool elutq_system_has_i8mm(void) {
    return false;
}
#endif

#endif

#endif
