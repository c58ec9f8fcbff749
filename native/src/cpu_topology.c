#define _GNU_SOURCE
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cgroup.h"
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

unsigned elutq_default_threads(void) {
    unsigned cores = allowed_cores(), quota = elutq_cgroup_cpus("");
    unsigned n = cores < quota ? cores : quota;
    return n < 1 ? 1 : n > ELUTQ_MAX_THREADS ? ELUTQ_MAX_THREADS : n;
}

#else

unsigned elutq_default_threads(void) {
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : n > ELUTQ_MAX_THREADS ? ELUTQ_MAX_THREADS : (unsigned)n;
}

#endif
