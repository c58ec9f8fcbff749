"""A lock on an open file that keeps other processes out, and goes with its process however that ends."""

import os
import sys
from pathlib import Path
from typing import BinaryIO

_PLACE = 1 << 30
"""The byte that is locked on Windows, where nobody else can read what is locked: beyond what the file holds."""


def lock_file(file: BinaryIO) -> None:
    """Lock an open file until it is closed; do not wait.

    Raises:
        OSError: another process has it.
    """
    if sys.platform == "win32":
        import msvcrt

        os.lseek(file.fileno(), _PLACE, os.SEEK_SET)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove_locked(file: BinaryIO, path: Path) -> None:
    """Remove a file that is locked, and close it: still locked, but where the system removes none that is open."""
    if sys.platform == "win32":
        file.close()
    path.unlink(missing_ok=True)
    file.close()
