"""What the processor and the machine around it are called."""

import platform
import sys
from pathlib import Path

from elutq_cli.machine import windows
from elutq_cli.machine.apple import sysctl_text

ROOT = Path("/")

FAST_ARCHITECTURES = ("x86_64", "AMD64", "aarch64", "arm64", "ARM64")
"""Those with vector kernels, by the names that systems give them."""

_BOARD_FILES = ("proc/device-tree/model", "sys/class/dmi/id/product_name")
_NO_NAMES = ("", "to be filled by o.e.m.", "system product name", "default string", "none", "not specified")
"""What makers leave in the place of a name."""


def architecture() -> str:
    """Return what the system calls the processor's architecture."""
    return platform.machine()


def has_vector_kernels() -> bool:
    """Whether there are vector kernels for this architecture."""
    return architecture() in FAST_ARCHITECTURES


def platform_name() -> str:
    """Return the operating system, on Linux the C library, and the architecture: linux-glibc-x86_64."""
    systems = {"darwin": "macos", "win32": "windows"}
    name = systems.get(sys.platform, sys.platform)
    if sys.platform.startswith("linux"):
        name += "-glibc" if platform.libc_ver()[0] == "glibc" else "-musl"  # which Pythons call libc, musl or nothing
    return f"{name}-{architecture().lower()}"


def cpu_model(root: Path = ROOT) -> str:
    """Return the processor's name.

    Args:
        root: where Linux has /proc.
    """
    if sys.platform == "darwin":
        name = sysctl_text("machdep.cpu.brand_string")
    elif sys.platform == "win32":
        name = windows.registry_text(r"HARDWARE\DESCRIPTION\System\CentralProcessor\0", "ProcessorNameString")
    else:
        name = next(iter(processor_fields(root, "model name", "Model", "Hardware")), None)
    return name or platform.processor() or architecture()


def machine_name(root: Path = ROOT) -> str | None:
    """Return the name of the board or the computer, as Raspberry Pi 5 Model B; None where it has none.

    Args:
        root: where Linux has /proc and /sys.
    """
    if sys.platform == "darwin":
        return sysctl_text("hw.model")
    if sys.platform == "win32":
        names = [windows.registry_text(r"HARDWARE\DESCRIPTION\System\BIOS", "SystemProductName")]
    else:
        names = [_text(root / name) for name in _BOARD_FILES]
    return next((name for name in names if name is not None and name.lower() not in _NO_NAMES), None)


def processor_fields(root: Path, *names: str) -> list[str]:
    """Return the values that Linux has under these names, of all its processors in turn; none elsewhere."""
    try:
        lines = (root / "proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
    pairs = (line.partition(":") for line in lines)
    return [value.strip() for key, _, value in pairs if key.strip() in names]


def _text(path: Path) -> str | None:
    """Return what a file of the system says, without the zero byte that a device tree ends it with."""
    try:
        return path.read_text("utf-8", "replace").strip("\0\n ")
    except OSError:
        return None
