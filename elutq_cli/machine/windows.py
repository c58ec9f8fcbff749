"""The door to Windows: memory, the registry, and what a console is told."""

import ctypes
from typing import Any

STDIN, STDOUT, STDERR = -10, -11, -12
"""Numbers of the standard handles."""

ECHO_INPUT = 0x4
VIRTUAL_TERMINAL = 0x4
"""Modes of a console's input and of its output."""

UTF_8 = 65001
"""The number of a code page."""


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("total", ctypes.c_uint64),
        ("available", ctypes.c_uint64),
        ("others", ctypes.c_uint64 * 5),
    )


class _ProcessMemory(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("faults", ctypes.c_uint32),
        ("peak", ctypes.c_size_t),
        ("others", ctypes.c_size_t * 7),
    )


def memory() -> tuple[int, int] | None:
    """Return the bytes that the machine has, and those that can be had."""
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    return (status.total, status.available) if _kernel().GlobalMemoryStatusEx(ctypes.byref(status)) else None


def peak_memory() -> int:
    """Return the most bytes of memory that this process has had; 0 where that is not told."""
    kernel = _kernel()
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    process = ctypes.c_void_p(kernel.GetCurrentProcess())
    counters = _ProcessMemory(length=ctypes.sizeof(_ProcessMemory))
    told = kernel.K32GetProcessMemoryInfo(process, ctypes.byref(counters), counters.length)
    return int(counters.peak) if told else 0


def registry_text(key: str, name: str) -> str | None:
    """Return a text below HKEY_LOCAL_MACHINE; None where there is none."""
    import winreg

    registry: Any = winreg  # its functions are known on Windows only
    try:
        with registry.OpenKey(registry.HKEY_LOCAL_MACHINE, key) as opened:
            return str(registry.QueryValueEx(opened, name)[0]).strip() or None
    except OSError:
        return None


def console_mode(number: int) -> int | None:
    """Return the mode of a standard handle; None where it is no console."""
    mode = ctypes.c_uint32()
    return mode.value if _kernel().GetConsoleMode(_handle(number), ctypes.byref(mode)) else None


def set_console_mode(number: int, mode: int) -> None:
    """Set the mode of a standard handle that is a console."""
    _kernel().SetConsoleMode(_handle(number), ctypes.c_uint32(mode))


def set_code_pages(number: int) -> None:
    """Set what the console takes bytes for, in and out."""
    _kernel().SetConsoleCP(number)
    _kernel().SetConsoleOutputCP(number)


def _handle(number: int) -> ctypes.c_void_p:
    kernel = _kernel()
    kernel.GetStdHandle.restype = ctypes.c_void_p
    return ctypes.c_void_p(kernel.GetStdHandle(number))


def _kernel() -> Any:  # noqa: ANN401 (its functions are found by name)
    return getattr(ctypes, "windll").kernel32  # noqa: B009 (which types know on Windows only)
