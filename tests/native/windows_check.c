/*
 * What only Windows has: lost pages by exceptions, paths that are long or not in ASCII, and what it says of failures.
 *
 *     windows_check MODEL
 */
#include <windows.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <wchar.h>

#include "checking.h"
#include "elutq.h"
#include "model.h"
#include "one_text.h"

#define STATUS_READ_FAILED 0xC000009Cul /* STATUS_DEVICE_DATA_ERROR */

/* As the system does for a load from a page that it cannot read. */
static void report_lost_page(const uint8_t *address) {
    const ULONG_PTR information[] = {0, (ULONG_PTR)address, STATUS_READ_FAILED};
    RaiseException(EXCEPTION_IN_PAGE_ERROR, 0, 3, information);
}

static unsigned n_passed_on;

/* Behind the library's handler: what comes here was not its own. */
static LONG CALLBACK note(EXCEPTION_POINTERS *pointers) {
    if (pointers->ExceptionRecord->ExceptionCode != EXCEPTION_IN_PAGE_ERROR)
        return EXCEPTION_CONTINUE_SEARCH;
    n_passed_on++;
    return EXCEPTION_CONTINUE_EXECUTION;
}

static void check_lost_pages(const char *path) {
    static const uint8_t elsewhere[1];
    const int32_t token = 1;
    char error[256] = "";
    elutq_model *model;
    struct text text;
    check(elutq_survive_lost_pages() == ELUTQ_OK && elutq_survive_lost_pages() == ELUTQ_OK, "the handler is not installed");
    AddVectoredExceptionHandler(0, note);
    report_lost_page(elsewhere);
    check(n_passed_on == 1, "an exception of other memory was taken");
    for (unsigned round = 0; round < 3; round++) { /* each time in the slot that the last has left */
        if (elutq_model_open(path, NULL, &model, error, sizeof error) != ELUTQ_OK ||
            text_create(model, 4, ELUTQ_CACHE_F16, 2, &text, error, sizeof error) != ELUTQ_OK) {
            check(false, "%s: %s", path, error);
            return;
        }
        check(text_eval(&text, &token, 1, NULL, 0, error, sizeof error) == ELUTQ_OK, "before: %s", error);
        const uint8_t *data = model->gguf.mapping.data;
        report_lost_page(data + 5000);
        report_lost_page(data + 9000); /* of another thread, say */
        uint64_t sum = 0;
        for (size_t i = 0; i < model->gguf.mapping.n_bytes; i++)
            sum += data[i];
        check(n_passed_on == 1 && sum == 0, "there are no zeros in the place of lost pages");
        check(text_eval(&text, &token, 1, NULL, 0, error, sizeof error) == ELUTQ_ERROR_IO && strstr(error, "could not be read"),
              "after pages were lost: %s", error);
        text_destroy(&text);
        elutq_model_close(model);
    }
}

/* A copy of the model under a name beyond 260 characters and ASCII, opened by its UTF-8 name. */
static void check_paths(const char *path) {
    enum { DEPTH = 6 };
    wchar_t from[MAX_PATH], folder[MAX_PATH], place[1024];
    char name[3072], error[256] = "";
    elutq_model *model;
    MultiByteToWideChar(CP_UTF8, 0, path, -1, from, MAX_PATH);
    GetCurrentDirectoryW(MAX_PATH, folder); /* a new Wine only says where temporary files go */
    _snwprintf(place, 1024, L"\\\\?\\%ls\\elutq-%lu", folder, (unsigned long)GetCurrentProcessId());
    wchar_t part[42] = L"\\"; /* 101 bytes of UTF-8: no file system has names beyond 255 */
    for (unsigned i = 1; i <= 40; i++)
        part[i] = i % 2 ? L'\u00e9' : L'\u6a21';
    for (unsigned depth = 0; depth <= DEPTH; wcscat(place, part), depth++)
        if (!check(CreateDirectoryW(place, NULL), "no folder: %lu", (unsigned long)GetLastError()))
            return;
    place[wcslen(place) - wcslen(part)] = L'\0';
    wcscat(place, L"\\model.gguf");
    check(CopyFileW(from, place, TRUE), "no copy: %lu", (unsigned long)GetLastError());
    check(wcslen(place) > 260, "the path is too short");
    WideCharToMultiByte(CP_UTF8, 0, place + 4, -1, name, sizeof name, NULL, NULL);
    if (check(elutq_model_open(name, NULL, &model, error, sizeof error) == ELUTQ_OK, "a long path: %s", error))
        elutq_model_close(model);
    check(DeleteFileW(place), "the file is still in use");
    for (unsigned depth = 0; depth <= DEPTH; depth++) {
        *wcsrchr(place, L'\\') = L'\0';
        check(RemoveDirectoryW(place), "a folder is left: %lu", (unsigned long)GetLastError());
    }
    check(elutq_model_open("no\\such\\file", NULL, &model, error, sizeof error) == ELUTQ_ERROR_IO &&
              strncmp(error, "cannot open: ", 13) == 0 && strlen(error) > 13 && error[strlen(error) - 1] != '.',
          "a missing file: %s", error);
}

int main(int n_arguments, char **arguments) {
    if (n_arguments != 2) {
        printf("usage: windows_check MODEL\n");
        return 1;
    }
    check_paths(arguments[1]);
    check_lost_pages(arguments[1]);
    printf("lost pages and paths: %u wrong, %u cores\n", n_failures, elutq_default_threads());
    return n_failures == 0 ? 0 : 1;
}
