"""What the limits of this process's control groups leave it of memory, on Linux.

A limit may be set on any group above the process: a container's, a systemd unit's MemoryMax, a Slurm job's. What counts
is the tightest of all that are visible, and a group's usage is that of everything in it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class _Controller:
    """The files of a group that limit its memory, in one version of control groups.

    Attributes:
        limits: files with a number of bytes each, or ``max``; above memory.high processes are slowed to a crawl.
        usage: file with the bytes in use, cached files included.
        reclaimable: fields of memory.stat, bytes of cached files that the kernel drops when memory is short.
    """

    limits: tuple[str, ...]
    usage: str
    reclaimable: tuple[str, ...]


_CONTROLLERS = {
    "cgroup2": _Controller(("memory.max", "memory.high"), "memory.current", ("inactive_file", "active_file")),
    "cgroup": _Controller(
        ("memory.limit_in_bytes",), "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")
    ),
}
"""By the type of the file system that shows them: version 2 and version 1."""


def memory_left(root: Path) -> int | None:
    """Return the bytes that the tightest limit of any group leaves; None where there is none.

    Args:
        root: where /proc and /sys are.
    """
    found = [_left(_CONTROLLERS[kind], folder) for kind, folder in _groups(root)]
    return min((amount for amount in found if amount is not None), default=None)


def _groups(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield the groups with a say in this process's memory, each with its file system: its own and all above it.

    A mount shows a hierarchy from some group downwards, in a container often from the container's own.
    """
    try:
        memberships = (root / "proc/self/cgroup").read_text("utf-8", "surrogateescape").splitlines()
        mounts = (root / "proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return
    own = {}
    for line in memberships:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            own["cgroup2"] = path
        elif "memory" in controllers.split(","):
            own["cgroup"] = path
    for line in mounts:
        mount, _, system = line.partition(" - ")
        kind, *_, options = system.split()
        if kind not in own or (kind == "cgroup" and "memory" not in options.split(",")):
            continue
        shown, place = (_unescape(field) for field in mount.split()[3:5])
        below = own[kind].removeprefix(shown.rstrip("/")) if _is_within(own[kind], shown) else ""
        names = [name for name in below.split("/") if name]
        folder = root / place.lstrip("/")
        yield kind, folder
        for name in names if ".." not in names else []:  # a group beside what is shown
            folder /= name
            yield kind, folder


def _is_within(path: str, group: str) -> bool:
    return path == group or path.startswith(group.rstrip("/") + "/")


def _unescape(field: str) -> str:
    """Return a field of mountinfo with its spaces and backslashes, which are written as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


def _left(controller: _Controller, folder: Path) -> int | None:
    """Return what the limits of a group leave to those in it, cached files counted as free; None without a limit."""
    limits = [limit for name in controller.limits if (limit := _number(folder / name)) is not None]
    if not limits:
        return None
    try:
        statistics = fields(folder / "memory.stat")
        reclaimable = sum(int(statistics.get(name, 0)) for name in controller.reclaimable)
    except (OSError, ValueError):
        reclaimable = 0
    return max(0, min(limits) - (_number(folder / controller.usage) or 0) + reclaimable)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text("ascii"))
    except (OSError, ValueError):
        return None


def fields(path: Path) -> dict[str, str]:
    """Read a file of names and values, one of each in a line."""
    lines = (line.split() for line in path.read_text("ascii").splitlines())
    return {line[0]: line[1] for line in lines if len(line) > 1}
