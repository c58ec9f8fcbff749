"""How much memory the machine has, how much can be had, and the most that this process has had."""

import contextlib
import ctypes
import os
import sys
from pathlib import Path

from elutq_cli.machine import windows
from elutq_cli.machine.apple import sysctl_number
from elutq_cli.machine.control_groups import fields, memory_left

ROOT = Path("/")

_FREE_PAGES = ("vm.page_free_count", "vm.page_pageable_external_count", "vm.page_purgeable_count")
"""Pages that macOS gives without swapping: free ones, those of cached files, and those that programs can do without."""


def available_memory(root: Path = ROOT) -> int | None:
    """Return the bytes that can be had without swapping; None where that is not known.

    Args:
        root: where Linux has /proc and /sys.
    """
    if sys.platform == "win32":
        found = windows.memory()
        return None if found is None else found[1]
    amount = _free_pages() if sys.platform == "darwin" else _memory_field(root, "MemAvailable:")
    if amount is None and (total := total_memory(root)) is not None:
        amount = total // 2
    return min((some for some in (amount, memory_left(root)) if some is not None), default=None)


def total_memory(root: Path = ROOT) -> int | None:
    """Return the bytes of memory that the machine has; None where that is not known.

    Args:
        root: where Linux has /proc and /sys.
    """
    if sys.platform == "win32":
        found = windows.memory()
        return None if found is None else found[0]
    if (total := _memory_field(root, "MemTotal:")) is not None:
        return total
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def peak_memory() -> int:
    """Return the peak resident memory of this process in bytes, mapped file pages included."""
    if sys.platform == "win32":
        return windows.peak_memory()
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def give_back_freed() -> None:
    """Have the C library give memory that has been freed back to the system: glibc keeps what is not at its end."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library, or one that is linked in
            ctypes.CDLL(None).malloc_trim(0)


def _memory_field(root: Path, name: str) -> int | None:
    """Return a value of /proc/meminfo in bytes."""
    try:
        return 1024 * int(fields(root / "proc/meminfo")[name])
    except (OSError, ValueError, KeyError):
        return None


def _free_pages() -> int | None:
    """Return the bytes in pages that macOS gives without swapping."""
    counts = [sysctl_number(name) for name in _FREE_PAGES]
    size = sysctl_number("hw.pagesize")
    if size is None or None in counts:
        return None
    return size * sum(count for count in counts if count is not None)
