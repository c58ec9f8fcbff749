#define _GNU_SOURCE
#include "mapping.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "contents.h"
#include "elutq.h"

/*
 * The mappings that the SIGBUS handler knows. A handler may only touch what is lock-free, so this is a fixed table of
 * atomics; models beyond its length go without. `start` is written last when a slot is filled and first when it is emptied.
 */
#define MAX_GUARDED 64
static struct {
    atomic_bool taken;
    atomic_uintptr_t start; /* 0: empty */
    atomic_size_t n_bytes;
    atomic_bool lost; /* a page could not be read */
} guarded[MAX_GUARDED];

static int guard(const uint8_t *data, size_t n_bytes) {
    for (int slot = 0; slot < MAX_GUARDED; slot++) {
        bool taken = false;
        if (!atomic_compare_exchange_strong(&guarded[slot].taken, &taken, true))
            continue;
        atomic_store(&guarded[slot].lost, false);
        atomic_store(&guarded[slot].n_bytes, n_bytes);
        atomic_store(&guarded[slot].start, (uintptr_t)data);
        return slot;
    }
    return -1;
}

static void unguard(int slot) {
    atomic_store(&guarded[slot].start, 0);
    atomic_store(&guarded[slot].taken, false);
}

/* ---- the handler ---- */

static struct sigaction handler_before;
static uintptr_t page_bytes;

/*
 * Puts zeros in the place of everything from the lost page to the end of its mapping, so that the load that failed, and
 * those of all other threads, go on; the call they belong to finds `lost` set and fails. mmap is one system call here and
 * takes no lock of ours, which makes it safe in a handler of a synchronous signal.
 */
static bool replace_lost_pages(uintptr_t address) {
    for (int slot = 0; slot < MAX_GUARDED; slot++) {
        const uintptr_t start = atomic_load(&guarded[slot].start);
        const size_t n_bytes = atomic_load(&guarded[slot].n_bytes);
        if (start == 0 || address < start || address - start >= n_bytes)
            continue;
        const uintptr_t page = address / page_bytes * page_bytes;
        atomic_store(&guarded[slot].lost, true);
        return mmap((void *)page, start + n_bytes - page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) !=
               MAP_FAILED;
    }
    return false;
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

/* ---- mappings ---- */

static int64_t modified(const struct stat *info) {
#if defined(__APPLE__)
    const struct timespec time = info->st_mtimespec;
#else
    const struct timespec time = info->st_mtim;
#endif
    return (int64_t)((uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec);
}

int elutq_mapping_open(const char *path, size_t smallest, struct elutq_mapping *mapping, const struct elutq_error *error) {
    *mapping = ELUTQ_NO_MAPPING;
    mapping->file = open(path, O_RDONLY | O_CLOEXEC);
    if (mapping->file < 0)
        return elutq_fail(error, ELUTQ_ERROR_IO, "cannot open: %s", strerror(errno));
    struct stat info;
    int status = ELUTQ_OK;
    if (fstat(mapping->file, &info) != 0 || !S_ISREG(info.st_mode)) {
        status = elutq_fail(error, ELUTQ_ERROR_IO, "not a regular file");
    } else if ((uint64_t)info.st_size < smallest || (uint64_t)info.st_size > SIZE_MAX) {
        status = elutq_fail(error, ELUTQ_ERROR_FORMAT, "too short to be a GGUF file (%lld bytes)", (long long)info.st_size);
    } else {
        void *data = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, mapping->file, 0);
        if (data == MAP_FAILED) {
            status = elutq_fail(error, ELUTQ_ERROR_IO, "cannot map: %s", strerror(errno));
        } else {
            mapping->data = data;
            mapping->n_bytes = (size_t)info.st_size;
            mapping->modified = modified(&info);
            mapping->slot = guard(mapping->data, mapping->n_bytes);
        }
    }
    if (status != ELUTQ_OK)
        elutq_mapping_close(mapping);
    return status;
}

void elutq_mapping_close(struct elutq_mapping *mapping) {
    if (mapping->slot >= 0)
        unguard(mapping->slot);
    if (mapping->data != NULL)
        munmap((void *)mapping->data, mapping->n_bytes);
    if (mapping->file >= 0)
        close(mapping->file);
    *mapping = ELUTQ_NO_MAPPING;
}

static int cannot_look(const struct elutq_error *error) {
    return elutq_fail(error, ELUTQ_ERROR_IO, "the model file cannot be looked at any more: %s", strerror(errno));
}

int elutq_mapping_remember(struct elutq_mapping *mapping, size_t n_head_bytes, const struct elutq_error *error) {
    struct stat info;
    mapping->n_head_bytes = n_head_bytes;
    if (!elutq_contents_digest(mapping->file, mapping->n_bytes, n_head_bytes, &mapping->digest) ||
        fstat(mapping->file, &info) != 0)
        return cannot_look(error);
    if (modified(&info) != atomic_load(&mapping->modified))
        return elutq_fail(error, ELUTQ_ERROR_IO, "it was written to while it was opened; open it again");
    return ELUTQ_OK;
}

int elutq_mapping_check(struct elutq_mapping *mapping, const struct elutq_error *error) {
    struct stat info;
    if (fstat(mapping->file, &info) != 0)
        return cannot_look(error);
    if ((uint64_t)info.st_size < mapping->n_bytes)
        return elutq_fail(error, ELUTQ_ERROR_IO, "the model file was cut short while in use; restore it and open it again");
    if (modified(&info) != atomic_load_explicit(&mapping->modified, memory_order_relaxed)) {
        uint64_t digest;
        if (!elutq_contents_digest(mapping->file, mapping->n_bytes, mapping->n_head_bytes, &digest))
            return cannot_look(error);
        if (digest != mapping->digest)
            return elutq_fail(error, ELUTQ_ERROR_IO, "the model file was written to while in use; open it again");
        atomic_store(&mapping->modified, modified(&info)); /* touched: from now on this is its time */
    }
    if (mapping->slot >= 0 && atomic_load(&guarded[mapping->slot].lost))
        return elutq_fail(error, ELUTQ_ERROR_IO,
                          "a part of the model file could not be read; check the disk, and that nothing changes the file");
    return ELUTQ_OK;
}
