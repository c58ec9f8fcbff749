"""How many CPUs the control groups grant: what the default number of threads goes by."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from control_groups import V1, V2, make_machine

ROOT = Path(__file__).parent.parent.parent
UNLIMITED = 2**32 - 1

pytestmark = [
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here"),
    pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    program = tmp_path_factory.mktemp("check") / "cgroup_check"
    sources = [ROOT / "tests/native/cgroup_check.c", ROOT / "native/src/os/cgroup.c"]
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'native/src'}"]
    subprocess.run(["cc", *flags, *map(str, sources), "-o", str(program)], check=True)
    return program


@pytest.fixture
def granted(program):
    def granted(root):
        return int(subprocess.run([program, root], capture_output=True, text=True, check=True).stdout)

    return granted


def quotas(version, microseconds, period=100_000):
    """The files of nested groups from their quotas, None where there is no limit."""
    files = {}
    for path, quota in microseconds.items():
        if version == V2:
            files[f"{path}/cpu.max"] = f"{'max' if quota is None else quota} {period}\n"
        else:
            files[f"cpu,cpuacct{path}/cpu.cfs_quota_us"] = f"{-1 if quota is None else quota}\n"
            files[f"cpu,cpuacct{path}/cpu.cfs_period_us"] = f"{period}\n"
    return files


@pytest.mark.parametrize("version", [V1, V2], ids=["v1", "v2"])
@pytest.mark.parametrize("tightest", ["", "/system.slice", "/system.slice/x.service"])
def test_the_tightest_quota_of_any_group_above_the_process_counts(tmp_path, granted, version, tightest):
    own = "/system.slice/x.service"
    limits = {"": None, "/system.slice": 800_000, own: None} | {tightest: 250_000}
    assert granted(make_machine(tmp_path, version, own, quotas(version, limits))) == 3  # 2.5, rounded up


@pytest.mark.parametrize("version", [V1, V2], ids=["v1", "v2"])
def test_no_quota_is_no_limit(tmp_path, granted, version):
    files = quotas(version, {"": None, "/a": None})
    assert granted(make_machine(tmp_path, version, "/a", files)) == UNLIMITED
    assert granted(make_machine(tmp_path / "bare", version, "/", {})) == UNLIMITED
    assert granted(tmp_path / "nothing") == UNLIMITED


@pytest.mark.parametrize("version", [V1, V2], ids=["v1", "v2"])
def test_in_a_container_the_mount_begins_at_its_own_group(tmp_path, granted, version):
    files = quotas(version, {"": 400_000, "/worker": 150_000}, period=50_000)
    root = make_machine(tmp_path, version, "/docker/1f\\2e/worker", files, shown="/docker/1f\\1342e")
    assert granted(root) == 3


@pytest.mark.parametrize("version", [V1, V2], ids=["v1", "v2"])
@pytest.mark.parametrize("own", ["/../beside", "/elsewhere"])
def test_a_group_outside_of_what_the_mount_shows_leaves_that_of_its_top(tmp_path, granted, version, own):
    shown = "/" if own.startswith("/..") else "/docker/12"
    files = quotas(version, {"": 700_000, "/../beside": 100_000, "/elsewhere": 100_000})
    assert granted(make_machine(tmp_path, version, own, files, shown=shown)) == 7
