#include "lost_pages.h"

#include "os.h"

/*
 * A handler may only touch what is lock-free, so this is a fixed table of atomics; models beyond its length go without.
 * `start` is written last when a slot is filled and first when it is emptied.
 */
static struct {
    atomic_bool taken;
    atomic_uintptr_t start; /* 0: empty */
    atomic_size_t n_bytes;
    atomic_bool lost; /* a page could not be read */
} guarded[ELUTQ_MAX_GUARDED];

int elutq_guard(const uint8_t *data, size_t n_bytes) {
    for (int slot = 0; slot < ELUTQ_MAX_GUARDED; slot++) {
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

void elutq_unguard(int slot) {
    if (slot < 0)
        return;
    atomic_store(&guarded[slot].start, 0);
    atomic_store(&guarded[slot].taken, false);
}

struct elutq_guarded elutq_guarded_at(uintptr_t address) {
    for (int slot = 0; slot < ELUTQ_MAX_GUARDED; slot++) {
        const uintptr_t start = atomic_load(&guarded[slot].start);
        const size_t n_bytes = atomic_load(&guarded[slot].n_bytes);
        if (start != 0 && address >= start && address - start < n_bytes)
            return (struct elutq_guarded){slot, start, n_bytes};
    }
    return (struct elutq_guarded){.slot = -1};
}

void elutq_note_lost_pages(int slot) {
    atomic_store(&guarded[slot].lost, true);
}

bool elutq_lost_pages(int slot) {
    return slot >= 0 && atomic_load(&guarded[slot].lost);
}
