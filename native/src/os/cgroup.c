#if defined(__linux__)

#define _GNU_SOURCE
#include "cgroup.h"

#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PATH_BYTES 4096

static FILE *open_below(const char *folder, const char *name) {
    char path[3 * PATH_BYTES];
    int length = snprintf(path, sizeof path, "%s/%s", folder, name);
    return length < 0 || (size_t)length >= sizeof path ? NULL : fopen(path, "re");
}

/* Whether a list separated by commas has this word. */
static bool has_word(const char *list, const char *word) {
    size_t length = strlen(word);
    for (const char *at = list;; at++) {
        if (strncmp(at, word, length) == 0 && (at[length] == ',' || at[length] == '\0'))
            return true;
        at = strchr(at, ',');
        if (at == NULL)
            return false;
    }
}

/* Spaces and backslashes are octal numbers in mountinfo. */
static void unescape(char *field) {
    char *out = field;
    for (; *field != '\0'; field++) {
        if (*field == '\\' && strspn(field + 1, "01234567") >= 3) {
            *out++ = (char)((field[1] - '0') << 6 | (field[2] - '0') << 3 | (field[3] - '0'));
            field += 3;
        } else {
            *out++ = *field;
        }
    }
    *out = '\0';
}

/* Reads the first number of a file, and the second where one is wanted; a word, such as "max", is none. */
static bool read_numbers(const char *folder, const char *name, long long *first, long long *second) {
    FILE *file = open_below(folder, name);
    if (file == NULL)
        return false;
    bool sound = fscanf(file, "%lld", first) == 1 && (second == NULL || fscanf(file, "%lld", second) == 1);
    fclose(file);
    return sound;
}

/* What one group grants by itself. */
static unsigned group_cpus(const char *folder, bool version_2) {
    long long quota, period; /* microseconds of CPU time, in a period of so many */
    bool limited = version_2 ? read_numbers(folder, "cpu.max", &quota, &period)
                             : read_numbers(folder, "cpu.cfs_quota_us", &quota, NULL) &&
                                   read_numbers(folder, "cpu.cfs_period_us", &period, NULL);
    if (!limited || quota <= 0 || period <= 0)
        return UINT_MAX;
    long long cpus = quota / period + (quota % period != 0);
    return cpus < UINT_MAX ? (unsigned)cpus : UINT_MAX;
}

/* This process's group in the hierarchy of version 2, or in that of version 1 which has the CPU controller. */
static bool own_group(const char *root, bool version_2, char group[PATH_BYTES]) {
    FILE *file = open_below(root, "proc/self/cgroup");
    if (file == NULL)
        return false;
    char *line = NULL;
    size_t room = 0;
    bool found = false;
    while (!found && getline(&line, &room, file) > 0) {
        char *controllers = strchr(line, ':'), *path = controllers == NULL ? NULL : strchr(controllers + 1, ':');
        if (path == NULL)
            continue;
        *path++ = '\0';
        path[strcspn(path, "\n")] = '\0';
        found = version_2 ? controllers[1] == '\0' : has_word(controllers + 1, "cpu");
        found = found && snprintf(group, PATH_BYTES, "%s", path) < PATH_BYTES;
    }
    free(line);
    fclose(file);
    return found;
}

/* The least of what a group grants and those above it, up to the one whose folder is the first `top` bytes. */
static unsigned cpus_upwards(char *folder, size_t top, bool version_2) {
    unsigned least = UINT_MAX;
    for (;;) {
        unsigned cpus = group_cpus(folder, version_2);
        least = cpus < least ? cpus : least;
        char *last = strrchr(folder + top, '/');
        if (last == NULL)
            return least;
        *last = '\0';
    }
}

/* What the groups of one mount grant, given its line of mountinfo; the mount shows a hierarchy from `shown` downwards. */
static unsigned mount_cpus(const char *root, const char *line) {
    char shown[PATH_BYTES], place[PATH_BYTES], group[PATH_BYTES], folder[3 * PATH_BYTES], type[16], options[1024];
    const char *system = strstr(line, " - ");
    if (system == NULL || sscanf(line, "%*s %*s %*s %4095s %4095s", shown, place) != 2 ||
        sscanf(system, " - %15s %*s %1023s", type, options) != 2)
        return UINT_MAX;
    bool version_2 = strcmp(type, "cgroup2") == 0;
    if (!version_2 && (strcmp(type, "cgroup") != 0 || !has_word(options, "cpu")))
        return UINT_MAX;
    if (!own_group(root, version_2, group))
        return UINT_MAX;
    unescape(shown);
    unescape(place);
    size_t length = strcmp(shown, "/") == 0 ? 0 : strlen(shown);
    const char *below = group + length;
    if (strncmp(group, shown, length) != 0 || (*below != '/' && *below != '\0') || strstr(below, "/..") != NULL)
        below = ""; /* a group beside what is shown */
    size_t top = strlen(root) + strlen(place);
    if (snprintf(folder, sizeof folder, "%s%s%s", root, place, below) >= (int)sizeof folder)
        return UINT_MAX;
    return cpus_upwards(folder, top, version_2);
}

unsigned elutq_cgroup_cpus(const char *root) {
    unsigned least = UINT_MAX;
    FILE *file = open_below(root, "proc/self/mountinfo");
    if (file == NULL)
        return least;
    char *line = NULL;
    size_t room = 0;
    while (getline(&line, &room, file) > 0) {
        unsigned cpus = mount_cpus(root, line);
        least = cpus < least ? cpus : least;
    }
    free(line);
    fclose(file);
    return least;
}

#endif
