/* Random inputs of a check, each at the end of memory of its own: what reads past one faults. One file includes this. */
#ifndef GUARDED_INPUTS_H
#define GUARDED_INPUTS_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "guard_pages.h"
#include "half.h"

#define MAX_ALLOCATIONS 1024

/* ---- memory that ends at a page no one may touch, at a multiple of 64 bytes where its size allows ---- */

static struct {
    uint8_t *start;
    size_t n_bytes, n_page_bytes; /* asked for, and got */
} allocations[MAX_ALLOCATIONS];
static unsigned n_allocations;

/* Of all that was freed, whatever the order: the bits of a check's inputs and results. */
static uint64_t digest_of_freed;

static void *guarded(size_t n_bytes) {
    const size_t page = page_bytes(), body = (n_bytes + page - 1) / page * page;
    uint8_t *start = new_pages(body + page);
    if (start == NULL || !forbid(start + body, page) || n_allocations == MAX_ALLOCATIONS) {
        printf("no memory for a test\n");
        exit(1);
    }
    allocations[n_allocations].start = start;
    allocations[n_allocations].n_bytes = n_bytes;
    allocations[n_allocations++].n_page_bytes = body + page;
    memset(start, 0xA5, body);
    return start + body - n_bytes;
}

static uint64_t digest(const uint8_t *bytes, size_t n_bytes) {
    uint64_t digest = n_bytes;
    for (size_t i = 0; i < n_bytes; i++)
        digest = (digest ^ bytes[i]) * 0x100000001B3u; /* FNV */
    return digest;
}

static void free_guarded(void) {
    while (n_allocations > 0) {
        n_allocations--;
        uint8_t *start = allocations[n_allocations].start;
        const size_t n_bytes = allocations[n_allocations].n_bytes, n_page_bytes = allocations[n_allocations].n_page_bytes;
        digest_of_freed += digest(start + n_page_bytes - page_bytes() - n_bytes, n_bytes);
        free_pages(start, n_page_bytes);
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
