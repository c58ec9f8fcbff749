#if defined(__linux__)

#define _GNU_SOURCE
#include "os.h"

#include <sched.h>
#include <stdio.h>

#include "cgroup.h"

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
