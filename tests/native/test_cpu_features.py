"""Which kernel sets this processor is found to run, against what the operating system says of it."""

import ctypes
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import DATA
from typer.testing import CliRunner

from elutq_cli.app import app
from elutq_cli.commands.runtime import prepare_runtime
from elutq_native import ffi, lib, supported_kernels

CPUINFO = Path("/proc/cpuinfo")
SOURCES = Path(__file__).parents[2] / "native"
AVX2 = {"avx2", "fma", "f16c"}
AVX512BW = AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
NEEDED = {
    "avx2": AVX2,
    "avxvnni": AVX2 | {"avx_vnni"},
    "avx512bw": AVX512BW,
    "avx512vnni": AVX512BW | {"avx512_vnni"},
    "avx512": AVX512BW | {"avx512_vnni", "avx512vbmi"},
    "avx512bf16": AVX512BW | {"avx512_bf16"},
    "neon": set(),
    "neon-dotprod": {"asimddp"},
    "neon-i8mm": {"i8mm"},
    "scalar": set(),
}
"""Flags in /proc/cpuinfo, of products of bfloat16 too; the kernel leaves out what it does not let programs use."""


def flags():
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    found = [line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))]
    if not found:
        pytest.skip("the system does not say what the processor has")
    return set(found[0])


def built_sets():
    names, i = [], 0
    while (kernels := lib.elutq_kernels_at(i)) != ffi.NULL:
        names.append(ffi.string(kernels.name).decode())
        i += 1
    return names


def test_every_kernel_set_of_the_library_is_found_where_the_system_shows_its_instructions():
    present = flags()
    assert list(supported_kernels()) == [name for name in built_sets() if NEEDED[name] <= present]


@pytest.mark.skipif(platform.machine() != "x86_64" or not shutil.which("cc"), reason="needs x86-64 and a C compiler")
def test_a_compiler_whose_own_probe_finds_nothing_changes_nothing(tmp_path):
    """As zig cc's: built with it, the library found nothing but the scalar kernels."""
    library = tmp_path / "features.so"
    command = ["cc", "-shared", "-fPIC", "-D__builtin_cpu_supports(name)=0", f"-I{SOURCES}/include", f"-I{SOURCES}/src"]
    subprocess.run([*command, SOURCES / "src" / "cpu_features.c", "-o", library], check=True, timeout=60)
    features, present = ctypes.CDLL(library), flags()
    for name in ("avx2", "avxvnni", "avx512bw", "avx512vnni", "avx512", "avx512bf16"):
        if has := getattr(features, f"elutq_cpu_has_{name}", None):
            has.restype = ctypes.c_bool
            assert has() == (NEEDED[name] <= present), name


@pytest.fixture
def fresh_command():
    """A process in which no command has run yet."""
    prepare_runtime.cache_clear()
    yield
    prepare_runtime.cache_clear()


@pytest.mark.usefixtures("fresh_command")
@pytest.mark.parametrize(
    ("machine", "sets", "asked", "warns"),
    [
        ("x86_64", ("scalar",), None, True),
        ("aarch64", ("scalar",), None, True),
        ("arm64", ("scalar",), "", True),
        ("x86_64", ("scalar",), "scalar", False),
        ("x86_64", ("avx2", "scalar"), None, False),
        ("riscv64", ("scalar",), None, False),
    ],
)
def test_commands_say_once_that_a_fast_machine_runs_slow_kernels(machine, sets, asked, warns, monkeypatch, capsys):
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("elutq_native.supported_kernels", lambda: sets)
    monkeypatch.delenv("ELUTQ_ISA", raising=False)
    if asked is not None:
        monkeypatch.setenv("ELUTQ_ISA", asked)
    for _ in range(2):
        prepare_runtime()
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == warns
    assert ("scalar kernels" in shown.err) == warns


@pytest.mark.usefixtures("fresh_command")
@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "MODEL", "-p", "It was", "-n", "1"],
        ["info", "MODEL", "--no-measure"],
        ["bench", "MODEL", "-p", "1", "-n", "0", "-r", "1"],
        ["eval", "MODEL", "-f", str(DATA / "sampled.txt"), "-c", "8", "--chunks", "1"],
        ["serve", "MODEL", "--host", "203.0.113.7"],  # an address that no machine has: it ends there
    ],
    ids=lambda arguments: arguments[0],
)
def test_each_command_that_runs_a_model_says_it(arguments, novels_2bit, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("elutq_native.supported_kernels", lambda: ("scalar",))
    monkeypatch.delenv("ELUTQ_ISA", raising=False)
    result = CliRunner().invoke(app, [str(novels_2bit) if part == "MODEL" else part for part in arguments])
    assert result.stderr.count("only the scalar kernels run here") == 1
