/*
 * What the library asks of the operating system. posix.c or windows.c answers, with linux.c or macos.c for what each POSIX
 * system says in its own way of the processor; outside this folder no file includes a header of a platform.
 */
#ifndef ELUTQ_OS_H
#define ELUTQ_OS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Why the last call of a function that returned false, or nothing, failed on this thread: one line. */
void elutq_last_failure(char *text, size_t n_bytes);

#define ELUTQ_FAILURE_BYTES 160

/* ---- files ---- */

typedef intptr_t elutq_file; /* a descriptor or a handle */

#define ELUTQ_NO_FILE ((elutq_file)-1)

struct elutq_file_state {
    bool is_regular;
    uint64_t n_bytes;
    int64_t modified; /* ns since some day */
};

/* Opens a file for reading; processes that this one starts do not inherit it. ELUTQ_NO_FILE when it cannot be. */
elutq_file elutq_file_open(const char *path);
void elutq_file_close(elutq_file file);
bool elutq_file_look(elutq_file file, struct elutq_file_state *state);

/* Reads all of n_bytes; a file that ends before them is a failure. Moves no position: threads may share a file. */
bool elutq_file_read(elutq_file file, uint64_t offset, void *to, size_t n_bytes);

/*
 * Maps the first n_bytes > 0 of a file read-only; NULL when it cannot. *slot is what elutq_lost_pages asks by; -1: there are
 * too many mappings, and this one's lost pages end the process.
 */
const uint8_t *elutq_file_map(elutq_file file, size_t n_bytes, int *slot);
void elutq_file_unmap(const uint8_t *data, size_t n_bytes, int slot);

/* Whether pages of a mapping could not be read, and zeros stand in their place (elutq_survive_lost_pages in elutq.h). */
bool elutq_lost_pages(int slot);

/* ---- threads ---- */

typedef struct {
    uintptr_t id;
} elutq_thread;

/* Runs `run` on a thread with a stack of that size, 0: the system's own. False: it does not start. */
bool elutq_thread_start(elutq_thread *thread, size_t stack_bytes, void *(*run)(void *), void *argument);
void elutq_thread_join(elutq_thread thread);

/* A lock, and a place where those who hold it sleep until all there are woken. */
typedef struct elutq_monitor elutq_monitor;

elutq_monitor *elutq_monitor_create(void); /* NULL: out of memory */
void elutq_monitor_destroy(elutq_monitor *monitor);
void elutq_monitor_forget(elutq_monitor *monitor); /* frees its memory, whoever holds it */
void elutq_monitor_lock(elutq_monitor *monitor);
void elutq_monitor_unlock(elutq_monitor *monitor);
void elutq_monitor_wait(elutq_monitor *monitor); /* may also return for no reason */
void elutq_monitor_wake_all(elutq_monitor *monitor);

/* Differs in a process that a fork made. */
int64_t elutq_process(void);

/* ---- memory and time ---- */

/* n_bytes is a multiple of the alignment. Only elutq_free_aligned frees it. */
void *elutq_aligned_memory(size_t alignment, size_t n_bytes);
void elutq_free_aligned(void *memory);

/* Of a clock that nobody sets. */
uint64_t elutq_nanoseconds(void);

/* ---- the processor ---- */

/* Cores that this process may keep busy, as far as the system says; those made for saving power are left out on macOS. */
unsigned elutq_cores(void);

#if defined(__aarch64__)
bool elutq_system_has_dotprod(void); /* SDOT */
bool elutq_system_has_i8mm(void);    /* SMMLA */
#endif

#endif
