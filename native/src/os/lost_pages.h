/* The mappings whose lost pages a handler may put zeros in the place of. */
#ifndef ELUTQ_LOST_PAGES_H
#define ELUTQ_LOST_PAGES_H

#include <stddef.h>
#include <stdint.h>

#define ELUTQ_MAX_GUARDED 64

/* Makes a mapping known; its slot, or -1 when there is none left. */
int elutq_guard(const uint8_t *data, size_t n_bytes);
void elutq_unguard(int slot);

struct elutq_guarded {
    int slot; /* -1: the address is in no mapping that is known */
    uintptr_t start;
    size_t n_bytes;
};

/* For handlers: takes no lock. */
struct elutq_guarded elutq_guarded_at(uintptr_t address);
void elutq_note_lost_pages(int slot);

#endif
