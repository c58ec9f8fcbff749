"""What Linux, macOS and Windows do differently with files: the only module here that asks which of them it is."""

import os
import sys
from pathlib import Path

_LONGEST_NAME = 255
"""Of a file, where the system does not tell: that of all file systems in common use."""

_LONGEST_PATH = 180
"""Characters of a path from which on it takes a prefix on Windows: 260 is the most without, in a folder too."""

_VERBATIM = "\\\\?\\"


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, onto the disk. On Windows folders need nothing, and cannot be opened.

    Raises:
        OSError: the disk refuses.
    """
    if sys.platform == "win32":
        if path.is_dir():
            return
        flags = os.O_RDWR | os.O_BINARY  # what is open for reading cannot be synced there
    else:
        flags = os.O_RDONLY
    descriptor = os.open(path, flags)
    try:
        if sys.platform == "darwin":
            import fcntl

            try:
                fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # through the drive's own cache too, which fsync is not
            except OSError:  # a network's drive has none
                os.fsync(descriptor)
        else:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def longest_name(folder: Path) -> int:
    """Return the bytes that a file's name may have there."""
    if sys.platform == "win32":
        return _LONGEST_NAME
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except OSError:
        return _LONGEST_NAME


def reachable(path: Path) -> Path:
    """Return the path by which a file can be reached: a long one takes a prefix on Windows, all others are as given."""
    if sys.platform != "win32":
        return path
    return Path(_verbatim(os.path.abspath(path)))  # noqa: PTH100 (Path's would follow links)


def _verbatim(path: str) -> str:
    """Return an absolute path of Windows so that its length is not limited."""
    if len(path) <= _LONGEST_PATH or path.startswith(_VERBATIM):
        return path
    return f"{_VERBATIM}UNC\\{path[2:]}" if path.startswith("\\\\") else _VERBATIM + path
