/*
 * Prints how many cores a process counts on a machine of argv[1] CPUs, of which it may use those from argv[2] on: CPUs i and
 * i + argv[3] share a core, 0: none do. The kernel's set, its files about CPUs and the control groups are stood in for.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

#include "os/cgroup.h"
#include "os/os.h"

static unsigned n_cpus, first_allowed, distance;

unsigned elutq_cgroup_cpus(const char *root) {
    (void)root;
    return -1u;
}

/* As the kernel: a set of fewer CPUs than there are is refused, bits beyond them are zeros. */
int sched_getaffinity(pid_t process, size_t n_bytes, cpu_set_t *set) {
    (void)process;
    if (n_bytes * 8 < n_cpus) {
        errno = EINVAL;
        return -1;
    }
    CPU_ZERO_S(n_bytes, set);
    for (unsigned cpu = first_allowed; cpu < n_cpus; cpu++)
        CPU_SET_S(cpu, n_bytes, set);
    return 0;
}

/* A CPU's list of siblings. */
FILE *fopen(const char *path, const char *mode) {
    static char text[32];
    unsigned cpu;
    if (sscanf(path, "/sys/devices/system/cpu/cpu%u/topology/thread_siblings_list", &cpu) != 1)
        return NULL;
    int length = distance == 0 ? snprintf(text, sizeof text, "%u\n", cpu)
                               : snprintf(text, sizeof text, "%u,%u\n", cpu % distance, cpu % distance + distance);
    return fmemopen(text, (size_t)length, mode[0] == 'r' ? "r" : mode);
}

int main(int argc, char **argv) {
    if (argc != 4)
        return 1;
    n_cpus = (unsigned)atoi(argv[1]);
    first_allowed = (unsigned)atoi(argv[2]);
    distance = (unsigned)atoi(argv[3]);
    return printf("%u\n", elutq_cores()) > 0 ? 0 : 1;
}
