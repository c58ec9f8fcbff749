"""How much memory can be had: the kernel's estimate, and every control group above this process."""

import platform
import subprocess
import sys
import sysconfig

import pytest
from control_groups import V1, V2, make_machine

from elutq_cli.machine.memory import available_memory

UNLIMITED = {V2: "max\n", V1: "9223372036854771712\n"}


def group(version, limit, used, cached=0):
    """The memory files of a group by name."""
    if version == V2:
        return {
            "memory.max": f"{limit}\n",
            "memory.current": f"{used}\n",
            "memory.stat": f"anon {used - cached}\nfile {cached + 7}\ninactive_file {cached}\nactive_file 0\nshmem 7\n",
        }
    return {
        "memory.limit_in_bytes": f"{limit}\n",
        "memory.usage_in_bytes": f"{used}\n",
        "memory.stat": f"inactive_file 1\ntotal_inactive_file {cached - 5}\ntotal_active_file 5\n",
    }


def groups(version, limits, used=0, cached=0):
    """The files of nested groups, by path below the folder of all groups, from the limits by group."""
    controller = "memory" if version == V1 else ""
    files = {}
    for path, limit in limits.items():
        limit = UNLIMITED[version].strip() if limit is None else limit
        files |= {f"{controller}{path}/{name}": text for name, text in group(version, limit, used, cached).items()}
    return files


@pytest.mark.parametrize("version", [V1, V2], ids=["v1", "v2"])
@pytest.mark.parametrize("tightest", ["", "/slurm", "/slurm/job_7", "/slurm/job_7/step_0"])
def test_the_tightest_limit_of_any_group_above_the_process_counts(tmp_path, version, tightest):
    own = "/slurm/job_7/step_0"
    limits = {"": None, "/slurm": 9000, "/slurm/job_7": 9000, own: None} | {tightest: 5000}
    root = make_machine(tmp_path, version, own, groups(version, limits, used=1000))
    assert available_memory(root) == 4000


@pytest.mark.parametrize("version", [V1, V2], ids=["v1", "v2"])
def test_files_in_the_cache_count_as_free_and_shared_memory_does_not(tmp_path, version):
    root = make_machine(tmp_path, version, "/job", groups(version, {"/job": 5000}, used=4000, cached=1500))
    assert available_memory(root) == 2500


@pytest.mark.parametrize("version", [V1, V2], ids=["v1", "v2"])
def test_a_group_without_a_limit_leaves_the_machines_memory(tmp_path, version):
    files = groups(version, {"": None, "/job": None}, used=1000)
    assert available_memory(make_machine(tmp_path, version, "/job", files, memory_kb=3)) == 3072


@pytest.mark.parametrize("version", [V1, V2], ids=["v1", "v2"])
def test_in_a_container_the_mount_begins_at_its_own_group(tmp_path, version):
    """As seen in a container without a namespace for groups: the path is the host's, the files lie at the top."""
    files = groups(version, {"": 8000, "/worker": 6000}, used=1000)
    root = make_machine(tmp_path, version, "/docker/1f\\2e/worker", files, shown="/docker/1f\\1342e")
    assert available_memory(root) == 5000


@pytest.mark.parametrize("version", [V1, V2], ids=["v1", "v2"])
@pytest.mark.parametrize("own", ["/../beside", "/elsewhere"])
def test_a_group_outside_of_what_the_mount_shows_leaves_that_of_its_top(tmp_path, version, own):
    shown = "/" if own.startswith("/..") else "/docker/12"
    files = groups(version, {"": 8000, "/../beside": 1500, "/elsewhere": 1500}, used=1000)
    assert available_memory(make_machine(tmp_path, version, own, files, shown=shown)) == 7000


def test_the_limit_above_which_a_group_is_slowed_down_counts(tmp_path):
    files = groups(V2, {"/unit": 9000}, used=1000) | {"unit/memory.high": "3000\n"}
    assert available_memory(make_machine(tmp_path, V2, "/unit", files)) == 2000


def test_both_versions_side_by_side(tmp_path):
    make_machine(tmp_path, V2, "/unit", groups(V2, {"/unit": 4000}, used=1000))
    hybrid = V1[0].replace("0::/\n", "0::/unit\n"), V1[1] + V2[1]
    assert available_memory(make_machine(tmp_path, hybrid, "/job", groups(V1, {"/job": 7000}, used=1000))) == 3000
    assert available_memory(make_machine(tmp_path, hybrid, "/job", groups(V1, {"/job": 2500}, used=1000))) == 1500


def test_a_group_over_its_limit_leaves_nothing(tmp_path):
    assert available_memory(make_machine(tmp_path, V2, "/job", groups(V2, {"/job": 900}, used=1000))) == 0


@pytest.mark.skipif(sysconfig.get_config_var("Py_GIL_DISABLED") == 1, reason="this Python has an allocator of its own")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="freed memory is given back by other C libraries")
def test_freed_memory_is_given_back():
    code = """
import os
from elutq_cli.machine.memory import give_back_freed

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

many = [bytes(1000) for _ in range(100_000)]
last = bytes(1000)
many.clear()
before = resident()
give_back_freed()
print(before - resident())
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) > 50_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what can be had")
def test_this_machine_has_some():
    assert 0 < available_memory() < 1 << 50
