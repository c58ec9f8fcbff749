"""Builds elutq_native._elutq: the C runtime and the quantizer's hot loops, through cffi in API mode.

The public headers are the single source of the bindings: they are fed to cffi with their preprocessor lines
(all but plain integer #defines) taken out.
"""

import os
import platform
import re
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
HEADERS = ("elutq_format.h", "elutq.h", "elutq_quantize.h", "elutq_kernels.h")
# What setuptools calls the target when it is not this machine, such as linux-aarch64 or win-amd64.
TARGET = os.environ.get("_PYTHON_HOST_PLATFORM", f"{platform.system()}-{platform.machine()}").lower()


def declarations(header: Path) -> str:
    """Returns the part of a C header that cffi's parser understands."""
    text = re.sub(r"/\*.*?\*/", "", header.read_text(), flags=re.S)
    text = re.sub(r"_Static_assert\s*\(.*?\);", "", text, flags=re.S)
    integer_define = re.compile(r"#define\s+\w+\s+(0[xX][0-9a-fA-F]+|\d+)[uU]?\s*$")
    lines = [line for line in text.splitlines() if not line.startswith("#") or integer_define.match(line)]
    return "\n".join(re.sub(r"(#define\s+\w+\s+\w+?)[uU]\s*$", r"\1", line) for line in lines)


def sources() -> list[str]:
    """Returns the C files, relative to the project's root (setuptools wants that).

    Those of another system or architecture are empty to the compiler, which may be asked for two architectures at once.
    """
    return [file.relative_to(HERE.parent).as_posix() for file in sorted((HERE / "src").rglob("*.c"))]


builder = FFI()
for name in HEADERS:
    builder.cdef(declarations(HERE / "include" / name))
builder.set_source(
    "elutq_native._elutq",
    "".join(f'#include "{name}"\n' for name in HEADERS),
    sources=sources(),
    include_dirs=["native/include", "native/src"],
    # Python's own flags ask for debugging information, which is ten times the code: sanitizers compile for themselves.
    extra_compile_args=["-std=gnu11", "-O3", "-g0", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra"],
    extra_link_args=["-s"] if TARGET.startswith(("linux", "win")) else [],
    libraries=[] if TARGET.startswith("win") else ["m", "pthread"],
    py_limited_api=True,
)
