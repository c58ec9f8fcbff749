#define _GNU_SOURCE
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "threads.h"

#if defined(__linux__)

/* The lowest-numbered SMT sibling of a CPU, the CPU itself where the system does not say. */
static unsigned first_sibling(unsigned cpu) {
    char path[96];
    unsigned first;
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%u/topology/thread_siblings_list", cpu);
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return cpu;
    int n_read = fscanf(file, "%u", &first);
    fclose(file);
    return n_read == 1 ? first : cpu;
}

/* Cores among the CPUs that the affinity mask allows: CPUs that share a core count once. */
static unsigned allowed_cores(void) {
    cpu_set_t allowed, cores;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0)
        return 1;
    CPU_ZERO(&cores);
    for (unsigned cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &allowed))
            continue;
        unsigned core = first_sibling(cpu);
        CPU_SET(core < CPU_SETSIZE ? core : cpu, &cores);
    }
    return (unsigned)CPU_COUNT(&cores);
}

static unsigned ceil_divide(long long quota, long long period) {
    return quota <= 0 || period <= 0 ? UINT_MAX : (unsigned)((quota + period - 1) / period);
}

/* CPUs' worth of time that the process's cgroup (v2, else v1) grants, rounded up; UINT_MAX when unlimited. */
static unsigned cgroup_quota(void) {
    long long quota, period;
    unsigned limit = UINT_MAX;
    FILE *file = fopen("/sys/fs/cgroup/cpu.max", "re");
    if (file != NULL) {
        if (fscanf(file, "%lld %lld", &quota, &period) == 2)
            limit = ceil_divide(quota, period);
        fclose(file);
        return limit;
    }
    FILE *quota_file = fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "re");
    FILE *period_file = fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "re");
    if (quota_file != NULL && period_file != NULL && fscanf(quota_file, "%lld", &quota) == 1 &&
        fscanf(period_file, "%lld", &period) == 1)
        limit = ceil_divide(quota, period);
    if (quota_file != NULL)
        fclose(quota_file);
    if (period_file != NULL)
        fclose(period_file);
    return limit;
}

unsigned elutq_default_threads(void) {
    unsigned cores = allowed_cores(), quota = cgroup_quota();
    unsigned n = cores < quota ? cores : quota;
    return n < 1 ? 1 : n > ELUTQ_MAX_THREADS ? ELUTQ_MAX_THREADS : n;
}

#else

unsigned elutq_default_threads(void) {
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : n > ELUTQ_MAX_THREADS ? ELUTQ_MAX_THREADS : (unsigned)n;
}

#endif
