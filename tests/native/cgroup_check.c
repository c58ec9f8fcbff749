/* Prints how many CPUs the control groups described below a root folder grant: what elutq_default_threads goes by. */
#include <stdio.h>

#include "os/cgroup.h"

int main(int argc, char **argv) {
    return argc == 2 && printf("%u\n", elutq_cgroup_cpus(argv[1])) > 0 ? 0 : 1;
}
