"""Control groups as the kernel shows them, in a folder that stands for the root of a machine."""

V2 = "0::{0}\n", "35 24 0:30 {0} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "5:cpuset:/\n4:cpu,cpuacct:{0}\n3:memory:{0}\n0::/\n",
    "33 32 0:28 {0} /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "34 32 0:29 {0} /sys/fs/cgroup/memory rw shared:10 - cgroup cgroup rw,seclabel,memory\n",
)


def make_machine(root, version, own, files, shown="/", memory_kb=10**9):
    """Make /proc and /sys below a folder.

    Args:
        root: the folder.
        version: V1 or V2.
        own: the group that this process is in.
        files: contents by path below the folder of the machine's groups.
        shown: the group whose folder is the top of the mount.
        memory_kb: what the kernel says can be had.
    """
    membership, mount = version
    files = {f"sys/fs/cgroup/{name}": text for name, text in files.items()} | {
        "proc/self/cgroup": membership.format(own),
        "proc/self/mountinfo": "24 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + mount.format(shown),
        "proc/meminfo": f"MemTotal: {2 * memory_kb} kB\nMemAvailable: {memory_kb} kB\n",
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root
