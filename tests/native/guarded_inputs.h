/* Random inputs of a check, each at the end of memory of its own: what reads past one faults. One file includes this. */
#ifndef GUARDED_INPUTS_H
#define GUARDED_INPUTS_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "half.h"

#define MAX_ALLOCATIONS 1024

/* ---- memory that ends at a page no one may touch, at a multiple of 64 bytes where its size allows ---- */

static struct {
    void *start;
    size_t n_bytes;
} allocations[MAX_ALLOCATIONS];
static unsigned n_allocations;

static void *guarded(size_t n_bytes) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), body = (n_bytes + page - 1) / page * page;
    uint8_t *start = mmap(NULL, body + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED || mprotect(start + body, page, PROT_NONE) != 0 || n_allocations == MAX_ALLOCATIONS) {
        printf("no memory for a test\n");
        exit(1);
    }
    allocations[n_allocations].start = start;
    allocations[n_allocations++].n_bytes = body + page;
    memset(start, 0xA5, body);
    return start + body - n_bytes;
}

static void free_guarded(void) {
    while (n_allocations > 0) {
        n_allocations--;
        munmap(allocations[n_allocations].start, allocations[n_allocations].n_bytes);
    }
}

/* ---- random inputs ---- */

static uint64_t random_state;

static uint32_t random_bits(void) { /* xorshift64* */
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return (uint32_t)((random_state * 0x2545F4914F6CDD1Dull) >> 32);
}

static float random_float(float low, float high) {
    return low + (high - low) * ((float)(random_bits() >> 8) * 0x1p-24f);
}

static float *random_floats(size_t n, float largest) {
    float *x = guarded(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = random_float(-largest, largest);
    return x;
}

/* Some of them far beyond the others. */
static float *random_activations(size_t n, float largest) {
    float *x = random_floats(n, largest);
    for (size_t i = 0; i < n; i++)
        if (random_bits() % 64 == 0)
            x[i] *= random_float(1, 100);
    return x;
}

static uint16_t *random_halves(size_t n, float low, float high) {
    uint16_t *x = guarded(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = elutq_float_to_half(random_float(low, high));
    return x;
}

#endif
