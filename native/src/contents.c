#include "contents.h"

#define PAGE_BYTES 4096
#define WHOLE_PAGES 4096 /* files of up to so many pages are read to the end */
#define N_SAMPLES 128

/* Both steps can be undone, so that pages which differ in one word never give the same number. */
static uint64_t add_word(uint64_t digest, uint64_t word) {
    digest = (digest ^ word) * 0x9E3779B97F4A7C15u; /* 2^64 over the golden ratio, odd */
    return digest ^ digest >> 32;
}

static bool add_page(elutq_file file, size_t n_bytes, size_t page, uint64_t *digest) {
    uint64_t words[PAGE_BYTES / sizeof(uint64_t)] = {0};
    const size_t left = n_bytes - page * PAGE_BYTES, wanted = left < PAGE_BYTES ? left : PAGE_BYTES;
    if (!elutq_file_read(file, (uint64_t)page * PAGE_BYTES, words, wanted))
        return false;
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        *digest = add_word(*digest, words[i]);
    return true;
}

bool elutq_contents_digest(elutq_file file, size_t n_bytes, size_t n_head_bytes, uint64_t *digest) {
    const size_t n_pages = (n_bytes + PAGE_BYTES - 1) / PAGE_BYTES, n_head_pages = n_head_bytes / PAGE_BYTES + 1;
    const size_t step = n_pages <= WHOLE_PAGES ? 1 : n_pages / N_SAMPLES;
    *digest = n_bytes;
    for (size_t page = 0; page < n_pages; page += page < n_head_pages ? 1 : step)
        if (!add_page(file, n_bytes, page, digest))
            return false;
    return add_page(file, n_bytes, n_pages - 1, digest);
}
