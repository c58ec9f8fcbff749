"""The wheels of every platform: what `make wheels` and the workflow need. Nothing is compiled here."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "native" / "src"
PACKAGES = ("elutq", "elutq_cli", "formats/elutq_formats", "native/elutq_native")

BUILD = """
import json, runpy
builder = runpy.run_path("native/build_ffi.py")["builder"]
options = builder._assigned_source[-1]
print(json.dumps({name: options[name] for name in ("sources", "libraries", "extra_link_args", "py_limited_api")}))
"""


@pytest.fixture(scope="module")
def build_wheels():
    for module in ("abi3info", "macholib", "pefile"):
        pytest.importorskip(module, reason=f"{module} is of the extra elutq[wheels]")
    sys.path.insert(0, str(ROOT / "tests/packaging"))
    try:
        import build_wheels
    finally:
        sys.path.pop(0)
    return build_wheels


@pytest.mark.parametrize(
    ("host", "libraries"),
    [
        ("linux-x86_64", ["m", "pthread"]),
        ("linux-aarch64", ["m", "pthread"]),
        ("macosx-11.0-universal2", ["m", "pthread"]),
        ("win-amd64", []),
        ("linux-riscv64", ["m", "pthread"]),
    ],
)
def test_a_target_gets_all_sources_and_its_libraries(host, libraries):
    environment = os.environ | {"_PYTHON_HOST_PLATFORM": host}
    said = subprocess.run([sys.executable, "-c", BUILD], cwd=ROOT, env=environment, capture_output=True, check=True)
    options = json.loads(said.stdout)
    assert sorted(options["sources"]) == sorted(path.relative_to(ROOT).as_posix() for path in SOURCES.rglob("*.c"))
    assert (options["libraries"], options["py_limited_api"]) == (libraries, True)
    assert options["extra_link_args"] == ([] if host.startswith("macosx") else ["-s"])


@pytest.mark.parametrize(("folder", "architecture"), [("x86", "__x86_64__"), ("arm", "__aarch64__")])
def test_kernels_are_empty_to_compilers_of_another_architecture(folder, architecture):
    """Which is the compiler's to know: a Python of two is compiled for both, one of 32 bits for neither."""
    for path in (SOURCES / folder).glob("*.c"):
        code = re.sub(r"/\*.*?\*/", "", path.read_text("utf-8"), flags=re.S).strip()
        assert code.startswith(f"#if defined({architecture})\n") and code.endswith("\n#endif"), path
        depth = [1 if line.startswith("#if") else -1 if line.startswith("#endif") else 0 for line in code.splitlines()]
        assert all(sum(depth[:end]) > 0 for end in range(1, len(depth))), path


def test_every_package_says_that_it_is_typed():
    for package in PACKAGES:
        assert (ROOT / package / "py.typed").is_file(), package


def test_the_workflow_builds_and_runs_a_wheel_of_each_kind():
    yaml = pytest.importorskip("yaml", reason="PyYAML comes with huggingface_hub")
    jobs = yaml.safe_load((ROOT / ".github/workflows/wheels.yml").read_text("utf-8"))["jobs"]
    systems = {system.partition("-")[0] for system in jobs["run"]["strategy"]["matrix"]["os"]}
    assert systems == {"ubuntu", "macos", "windows"}
    assert set(jobs["run"]["needs"]) == jobs.keys() - {"run"}
    built = set(jobs["native"]["strategy"]["matrix"]["os"])
    assert built == {system for system in jobs["run"]["strategy"]["matrix"]["os"] if not system.startswith("windows")}
    # commands of ours are there, and the oldest Python is what pyproject.toml says
    assert any("make wheels WHEELS=windows-x86_64" in step.get("run", "") for step in jobs["windows"]["steps"])
    oldest = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text("utf-8"))[1]
    assert oldest in jobs["run"]["strategy"]["matrix"]["python"]


def test_make_wheels_has_the_platforms_that_the_workflow_has_and_more(build_wheels):
    names = set(build_wheels.TARGETS)
    kinds = {"manylinux-x86_64", "manylinux-aarch64", "musllinux-x86_64", "musllinux-aarch64"}
    assert names == kinds | {"macos-arm64", "macos-x86_64", "windows-x86_64"}
    assert build_wheels.SYSTEM_LIBRARIES.keys() == {name for name in names if "linux" not in name}


def test_modules_for_windows_are_linked_with_the_stable_interface_of_the_oldest_python(build_wheels, tmp_path):
    pytest.importorskip("ziglang", reason="ziglang is of the extra elutq[cross]")
    headers, library = build_wheels.windows_python(tmp_path)
    names = (tmp_path / "python3.def").read_text()
    assert names.startswith("LIBRARY python3.dll\nEXPORTS\n")
    assert "\nPyImport_ImportModule\n" in names and "\nPyExc_ValueError DATA\n" in names
    assert "PyType_FromMetaclass" not in names  # of Python 3.12
    assert b"python3.dll" in library.read_bytes()
    assert "MS_WINDOWS" in (headers / "pyconfig.h").read_text()
