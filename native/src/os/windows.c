#if defined(_WIN32)

#define WIN32_LEAN_AND_MEAN
#include <windows.h>

#include <malloc.h>
#include <process.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <wchar.h>

#include "elutq.h"
#include "lost_pages.h"
#include "os.h"

/* In the language of the system, as UTF-8. */
void elutq_last_failure(char *text, size_t n_bytes) {
    const DWORD code = GetLastError();
    wchar_t wide[ELUTQ_FAILURE_BYTES];
    const DWORD n = FormatMessageW(FORMAT_MESSAGE_FROM_SYSTEM | FORMAT_MESSAGE_IGNORE_INSERTS | FORMAT_MESSAGE_MAX_WIDTH_MASK,
                                   NULL, code, 0, wide, ELUTQ_FAILURE_BYTES, NULL);
    if (n == 0 || WideCharToMultiByte(CP_UTF8, 0, wide, -1, text, (int)n_bytes, NULL, NULL) == 0) {
        snprintf(text, n_bytes, "Windows error %lu", (unsigned long)code);
        return;
    }
    for (size_t end = strlen(text); end > 0 && (text[end - 1] == ' ' || text[end - 1] == '.'); end--)
        text[end - 1] = '\0';
}

/* ---- files ---- */

#define PREFIX_ROOM 8 /* characters of the longest that comes before a path */

/* The absolute path, PREFIX_ROOM behind where its memory begins; NULL when there is none. */
static wchar_t *absolute(const wchar_t *path) {
    const DWORD n = GetFullPathNameW(path, 0, NULL, NULL);
    wchar_t *full = n == 0 ? NULL : malloc((n + PREFIX_ROOM) * sizeof *full);
    if (full == NULL)
        return NULL;
    const DWORD n_written = GetFullPathNameW(path, n, full + PREFIX_ROOM, NULL);
    if (n_written > 0 && n_written < n)
        return full;
    free(full); /* the current folder has become another in between */
    return NULL;
}

/* A UTF-8 path as the system takes one of any length: absolute, after \\?\. NULL when it cannot be; free() frees it. */
static wchar_t *long_path(const char *path) {
    const int n_wide = MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, NULL, 0);
    wchar_t *wide = n_wide == 0 ? NULL : malloc((size_t)n_wide * sizeof *wide);
    if (wide == NULL)
        return NULL;
    MultiByteToWideChar(CP_UTF8, 0, path, -1, wide, n_wide);
    wchar_t *full = absolute(wide);
    if (full != NULL) {
        wchar_t *at = full + PREFIX_ROOM;
        const bool is_share = wcsncmp(at, L"\\\\", 2) == 0, is_as_given = is_share && (at[2] == L'?' || at[2] == L'.');
        const wchar_t *before = is_as_given ? L"" : is_share ? L"\\\\?\\UNC\\" : L"\\\\?\\";
        const size_t n_before = wcslen(before), n_dropped = is_share && !is_as_given ? 2 : 0;
        memmove(full + n_before, at + n_dropped, (wcslen(at + n_dropped) + 1) * sizeof *full);
        memcpy(full, before, n_before * sizeof *full);
    }
    free(wide);
    return full;
}

elutq_file elutq_file_open(const char *path) {
    wchar_t *wide = long_path(path);
    if (wide == NULL)
        return ELUTQ_NO_FILE;
    const DWORD share = FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE;
    const HANDLE file = CreateFileW(wide, GENERIC_READ, share, NULL, OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, NULL);
    const DWORD code = GetLastError();
    free(wide);
    SetLastError(code);
    return file == INVALID_HANDLE_VALUE ? ELUTQ_NO_FILE : (elutq_file)file;
}

void elutq_file_close(elutq_file file) {
    CloseHandle((HANDLE)file);
}

static uint64_t joined(DWORD high, DWORD low) {
    return (uint64_t)high << 32 | low;
}

bool elutq_file_look(elutq_file file, struct elutq_file_state *state) {
    BY_HANDLE_FILE_INFORMATION info;
    if (!GetFileInformationByHandle((HANDLE)file, &info))
        return false;
    state->is_regular = GetFileType((HANDLE)file) == FILE_TYPE_DISK && !(info.dwFileAttributes & FILE_ATTRIBUTE_DIRECTORY);
    state->n_bytes = joined(info.nFileSizeHigh, info.nFileSizeLow);
    state->modified = (int64_t)(100 * joined(info.ftLastWriteTime.dwHighDateTime, info.ftLastWriteTime.dwLowDateTime));
    return true;
}

bool elutq_file_read(elutq_file file, uint64_t offset, void *to, size_t n_bytes) {
    for (size_t done = 0; done < n_bytes;) {
        const uint64_t from = offset + done;
        const size_t left = n_bytes - done;
        OVERLAPPED place = {.Offset = (DWORD)from, .OffsetHigh = (DWORD)(from >> 32)};
        DWORD got = 0;
        if (!ReadFile((HANDLE)file, (char *)to + done, left < 1u << 30 ? (DWORD)left : 1u << 30, &got, &place))
            return false;
        if (got == 0) {
            SetLastError(ERROR_HANDLE_EOF);
            return false;
        }
        done += got;
    }
    return true;
}

/* Of a slot: what its mapping shows. */
enum { THE_FILE, NOTHING, ZEROS };
static atomic_int shown[ELUTQ_MAX_GUARDED];

const uint8_t *elutq_file_map(elutq_file file, size_t n_bytes, int *slot) {
    const HANDLE section = CreateFileMappingW((HANDLE)file, NULL, PAGE_READONLY, 0, 0, NULL);
    if (section == NULL)
        return NULL;
    const uint8_t *data = MapViewOfFile(section, FILE_MAP_READ, 0, 0, n_bytes);
    const DWORD code = GetLastError();
    CloseHandle(section); /* the view keeps it */
    SetLastError(code);
    if (data != NULL)
        *slot = elutq_guard(data, n_bytes);
    return data;
}

void elutq_file_unmap(const uint8_t *data, size_t n_bytes, int slot) {
    (void)n_bytes;
    const int shows = slot < 0 ? THE_FILE : atomic_load(&shown[slot]);
    if (slot >= 0)
        atomic_store(&shown[slot], THE_FILE); /* for the next mapping there */
    elutq_unguard(slot);
    if (shows == THE_FILE)
        UnmapViewOfFile(data);
    else if (shows == ZEROS)
        VirtualFree((void *)data, 0, MEM_RELEASE);
}

/* ---- lost pages: a vectored exception handler ---- */

/*
 * Puts zeros in the place of a whole mapping. Nothing can be mapped over a view, so for a moment there is nothing; what
 * other threads load meanwhile is an access violation that the handler lets them repeat. False when the memory is not to
 * be had, or another allocation came in between: then the fault ends the process, as it would have.
 */
static bool replace_lost_pages(const struct elutq_guarded *mapping) {
    int before = THE_FILE;
    if (!atomic_compare_exchange_strong(&shown[mapping->slot], &before, NOTHING))
        return true;
    elutq_note_lost_pages(mapping->slot);
    UnmapViewOfFile((void *)mapping->start);
    if (VirtualAlloc((void *)mapping->start, mapping->n_bytes, MEM_RESERVE | MEM_COMMIT, PAGE_READONLY) == NULL)
        return false;
    atomic_store(&shown[mapping->slot], ZEROS);
    return true;
}

static LONG CALLBACK on_fault(EXCEPTION_POINTERS *pointers) {
    const EXCEPTION_RECORD *record = pointers->ExceptionRecord;
    const bool is_lost = record->ExceptionCode == EXCEPTION_IN_PAGE_ERROR;
    if ((!is_lost && record->ExceptionCode != EXCEPTION_ACCESS_VIOLATION) || record->NumberParameters < 2 ||
        record->ExceptionInformation[0] != 0) /* not a load */
        return EXCEPTION_CONTINUE_SEARCH;
    const struct elutq_guarded mapping = elutq_guarded_at(record->ExceptionInformation[1]);
    if (mapping.slot < 0 || (is_lost && !replace_lost_pages(&mapping)))
        return EXCEPTION_CONTINUE_SEARCH;
    for (unsigned i = 0; i < 1000 && atomic_load(&shown[mapping.slot]) == NOTHING; i++)
        Sleep(1);
    return atomic_load(&shown[mapping.slot]) == ZEROS ? EXCEPTION_CONTINUE_EXECUTION : EXCEPTION_CONTINUE_SEARCH;
}

static BOOL CALLBACK install(PINIT_ONCE once, PVOID parameter, PVOID *context) {
    (void)once, (void)parameter, (void)context;
    return AddVectoredExceptionHandler(1, on_fault) != NULL;
}

int elutq_survive_lost_pages(void) {
    static INIT_ONCE once = INIT_ONCE_STATIC_INIT;
    return InitOnceExecuteOnce(&once, install, NULL, NULL) ? ELUTQ_OK : ELUTQ_ERROR_MEMORY;
}

/* ---- threads ---- */

struct start {
    void *(*run)(void *);
    void *argument;
};

static unsigned __stdcall begin(void *argument) {
    const struct start start = *(struct start *)argument;
    free(argument);
    start.run(start.argument);
    return 0;
}

bool elutq_thread_start(elutq_thread *thread, size_t stack_bytes, void *(*run)(void *), void *argument) {
    struct start *start = malloc(sizeof *start);
    if (start == NULL)
        return false;
    *start = (struct start){run, argument};
    thread->id = _beginthreadex(NULL, (unsigned)stack_bytes, begin, start, STACK_SIZE_PARAM_IS_A_RESERVATION, NULL);
    if (thread->id == 0)
        free(start);
    return thread->id != 0;
}

void elutq_thread_join(elutq_thread thread) {
    WaitForSingleObject((HANDLE)thread.id, INFINITE);
    CloseHandle((HANDLE)thread.id);
}

struct elutq_monitor {
    SRWLOCK lock;
    CONDITION_VARIABLE wake;
};

elutq_monitor *elutq_monitor_create(void) {
    elutq_monitor *monitor = malloc(sizeof *monitor);
    if (monitor != NULL)
        *monitor = (elutq_monitor){SRWLOCK_INIT, CONDITION_VARIABLE_INIT};
    return monitor;
}

void elutq_monitor_destroy(elutq_monitor *monitor) {
    free(monitor);
}

void elutq_monitor_forget(elutq_monitor *monitor) {
    free(monitor);
}

void elutq_monitor_lock(elutq_monitor *monitor) {
    AcquireSRWLockExclusive(&monitor->lock);
}

void elutq_monitor_unlock(elutq_monitor *monitor) {
    ReleaseSRWLockExclusive(&monitor->lock);
}

void elutq_monitor_wait(elutq_monitor *monitor) {
    SleepConditionVariableSRW(&monitor->wake, &monitor->lock, INFINITE, 0);
}

void elutq_monitor_wake_all(elutq_monitor *monitor) {
    WakeAllConditionVariable(&monitor->wake);
}

int64_t elutq_process(void) {
    return GetCurrentProcessId();
}

/* ---- memory and time ---- */

void *elutq_aligned_memory(size_t alignment, size_t n_bytes) {
    return _aligned_malloc(n_bytes, alignment);
}

void elutq_free_aligned(void *memory) {
    _aligned_free(memory);
}

uint64_t elutq_nanoseconds(void) {
    LARGE_INTEGER count, per_second;
    QueryPerformanceCounter(&count);
    QueryPerformanceFrequency(&per_second);
    const uint64_t n = (uint64_t)count.QuadPart, frequency = (uint64_t)per_second.QuadPart;
    return n / frequency * 1000000000u + n % frequency * 1000000000u / frequency;
}

/* ---- the processor ---- */

static unsigned bits_of(uint64_t mask) {
    unsigned n = 0;
    for (; mask != 0; mask &= mask - 1)
        n++;
    return n;
}

/* Counts cores of a group of processors that a mask touches, each once. */
static unsigned cores_within(DWORD_PTR allowed, WORD group) {
    DWORD n_bytes = 0;
    GetLogicalProcessorInformationEx(RelationProcessorCore, NULL, &n_bytes);
    uint8_t *records = malloc(n_bytes);
    unsigned n = 0;
    if (records != NULL && GetLogicalProcessorInformationEx(RelationProcessorCore, (void *)records, &n_bytes))
        for (DWORD at = 0; at < n_bytes;) {
            const SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX *record = (const void *)(records + at);
            const GROUP_AFFINITY *place = &record->Processor.GroupMask[0];
            n += place->Group == group && (place->Mask & allowed) != 0;
            at += record->Size;
        }
    free(records);
    return n;
}

/* Of the group that this thread runs in, of at most 64 processors. A mask of none says that the process is in several. */
unsigned elutq_cores(void) {
    DWORD_PTR allowed, system;
    PROCESSOR_NUMBER here;
    GetCurrentProcessorNumberEx(&here);
    if (!GetProcessAffinityMask(GetCurrentProcess(), &allowed, &system))
        return 1;
    const unsigned n = cores_within(allowed != 0 ? allowed : ~(DWORD_PTR)0, here.Group);
    return n > 0 ? n : allowed != 0 ? bits_of(allowed) : 1;
}

#if defined(__aarch64__)

bool elutq_system_has_dotprod(void) {
    return IsProcessorFeaturePresent(43); /* PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE */
}

bool elutq_system_has_i8mm(void) {
    return IsProcessorFeaturePresent(66); /* PF_ARM_V82_I8MM_INSTRUCTIONS_AVAILABLE, which older headers have no name for */
}

#endif

#endif
