#if defined(__linux__)

#define _GNU_SOURCE
#include "os.h"

#include <sched.h>
#include <stdio.h>

#include "cgroup.h"

#define MOST_CPUS (1u << 20)

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

/* Cores among the CPUs of a set, those that share a core counting once; `cores` is as large and empty. */
static unsigned count_cores(const cpu_set_t *allowed, cpu_set_t *cores, size_t n_bytes) {
    const size_t n_cpus = 8 * n_bytes;
    for (unsigned cpu = 0; cpu < n_cpus; cpu++) {
        if (!CPU_ISSET_S(cpu, n_bytes, allowed))
            continue;
        const unsigned core = first_sibling(cpu);
        CPU_SET_S(core < n_cpus ? core : cpu, n_bytes, cores);
    }
    return (unsigned)CPU_COUNT_S(n_bytes, cores);
}

/*
 * Cores that the affinity mask allows. The kernel refuses a set of fewer CPUs than the machine may have, and does not say how
 * many those are: cpu_set_t has 1024, distributions build for 8192.
 */
static unsigned allowed_cores(void) {
    unsigned n = 0;
    for (size_t n_bytes = sizeof(cpu_set_t); n == 0 && n_bytes <= MOST_CPUS / 8; n_bytes *= 2) {
        cpu_set_t *allowed = CPU_ALLOC(8 * n_bytes), *cores = CPU_ALLOC(8 * n_bytes);
        if (allowed != NULL && cores != NULL && sched_getaffinity(0, n_bytes, allowed) == 0) {
            CPU_ZERO_S(n_bytes, cores);
            n = count_cores(allowed, cores, n_bytes);
        }
        CPU_FREE(allowed);
        CPU_FREE(cores);
    }
    return n > 0 ? n : 1;
}

unsigned elutq_cores(void) {
    const unsigned cores = allowed_cores(), quota = elutq_cgroup_cpus("");
    return cores < quota ? cores : quota;
}

#if defined(__aarch64__)

#include <asm/hwcap.h>
#include <sys/auxv.h>

bool elutq_system_has_dotprod(void) {
    return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
}

bool elutq_system_has_i8mm(void) {
    return (getauxval(AT_HWCAP2) >> 13 & 1) != 0; /* HWCAP2_I8MM, which headers before Linux 5.10 have no name for */
}

#endif

#endif
