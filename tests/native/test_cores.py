"""How many cores Linux lets a process use, on machines larger than this one: what default threads go by."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

pytestmark = [
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here"),
    pytest.mark.skipif(sys.platform != "linux", reason="how Linux is asked"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    program = tmp_path_factory.mktemp("check") / "cores_check"
    sources = [ROOT / "tests/native/cores_check.c", ROOT / "native/src/os/linux.c"]
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'native/src'}"]
    subprocess.run(["cc", *flags, *map(str, sources), "-o", str(program)], check=True)
    return program


@pytest.mark.parametrize(
    ("n_cpus", "first_allowed", "distance", "n_cores"),
    [
        (8, 0, 0, 8),
        (8, 3, 4, 4),  # of the first three cores only the second CPU
        (1024, 0, 0, 1024),
        (1025, 0, 0, 1025),  # more than a cpu_set_t has
        (3072, 0, 1536, 1536),
        (3072, 2048, 1536, 1024),
        (8192, 8191, 4096, 1),
        (20000, 0, 0, 20000),
    ],
)
def test_cores_are_counted_however_many_there_are(program, n_cpus, first_allowed, distance, n_cores):
    command = [program, str(n_cpus), str(first_allowed), str(distance)]
    assert int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) == n_cores


def test_a_system_that_tells_nothing_is_taken_for_one_core(program):
    command = [program, str(2**31 - 1), "0", "0"]
    assert int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) == 1
