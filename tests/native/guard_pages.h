/* Pages of memory of one's own, some of which no one may touch. */
#ifndef GUARD_PAGES_H
#define GUARD_PAGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)

#include <windows.h>

static size_t page_bytes(void) {
    SYSTEM_INFO info;
    GetSystemInfo(&info);
    return info.dwPageSize;
}

/* NULL when there is no memory. */
static uint8_t *new_pages(size_t n_bytes) {
    return VirtualAlloc(NULL, n_bytes, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
}

static bool forbid(uint8_t *pages, size_t n_bytes) {
    DWORD before;
    return VirtualProtect(pages, n_bytes, PAGE_NOACCESS, &before);
}

static void free_pages(uint8_t *pages, size_t n_bytes) {
    (void)n_bytes;
    VirtualFree(pages, 0, MEM_RELEASE);
}

#else

#include <sys/mman.h>
#include <unistd.h>

static size_t page_bytes(void) {
    return (size_t)sysconf(_SC_PAGESIZE);
}

/* NULL when there is no memory. */
static uint8_t *new_pages(size_t n_bytes) {
    void *pages = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return pages == MAP_FAILED ? NULL : pages;
}

static bool forbid(uint8_t *pages, size_t n_bytes) {
    return mprotect(pages, n_bytes, PROT_NONE) == 0;
}

static void free_pages(uint8_t *pages, size_t n_bytes) {
    munmap(pages, n_bytes);
}

#endif

#endif
