/* The control groups (Linux, version 1 and 2) that this process is in, and what they grant it. */
#ifndef ELUTQ_CGROUP_H
#define ELUTQ_CGROUP_H

/*
 * CPUs' worth of time that the process's groups grant it, rounded up: the least of its own and of all above it that the
 * mounts show, a container's as a systemd unit's CPUQuota. UINT_MAX when unlimited. `root` is put before every path that is
 * read: "" but for tests.
 */
unsigned elutq_cgroup_cpus(const char *root);

#endif
