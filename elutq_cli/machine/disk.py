"""Room on disk: how much there is, and files that have theirs before they are written."""

import errno
import os
import shutil
import struct
import sys
from pathlib import Path
from typing import BinaryIO

_PIECE = bytes(1 << 20)
_UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_F_PREALLOCATE, _F_ALLOCATEALL, _F_PEOFPOSMODE = 42, 4, 3
"""Of macOS's fcntl.h; Python's module has no names for them."""


def free_room(folder: Path) -> int:
    """Return the bytes that this user can still write on the disk that a folder is on.

    Raises:
        OSError: the folder cannot be asked for it.
    """
    return shutil.disk_usage(folder).free


def open_nameless(path: Path) -> BinaryIO:
    """Open a new file whose room the disk has back as soon as it is closed, however this process ends.

    Args:
        path: a name in the folder that it is to be in, which it loses at once, or on Windows when it is closed.

    Raises:
        OSError: it cannot be made.
    """
    if sys.platform == "win32":
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_BINARY | os.O_NOINHERIT | os.O_TEMPORARY
        return os.fdopen(os.open(path, flags), "wb+")
    file = path.open("wb+")
    try:
        path.unlink()
    except BaseException:
        file.close()
        raise
    return file


def reserve(file: BinaryIO, n_bytes: int) -> None:
    """Make an empty file as large as it is to be, zeros, with its room on the disk: a mapped file has no error to tell.

    Raises:
        OSError: the disk has not that much room.
    """
    try:
        if sys.platform == "darwin":
            import fcntl

            # fstore_t: flags, how the place is given, the place, how much, and how much it has become
            wanted = struct.pack("=IiqqQ", _F_ALLOCATEALL, _F_PEOFPOSMODE, 0, n_bytes, 0)
            fcntl.fcntl(file, _F_PREALLOCATE, wanted)
            file.truncate(n_bytes)
        elif sys.platform == "win32":
            _write_zeros(file, n_bytes)
        else:
            os.posix_fallocate(file.fileno(), 0, n_bytes)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        _write_zeros(file, n_bytes)  # the file system, or musl on some, cannot set room aside


def _write_zeros(file: BinaryIO, n_bytes: int) -> None:
    for begin in range(0, n_bytes, len(_PIECE)):
        file.write(_PIECE[: n_bytes - begin])
    file.flush()
    file.seek(0)
