"""Output files that appear whole or not at all."""

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from elutq_formats.errors import DISK_FULL, ElutqError, disk_error
from elutq_formats.file_system import longest_name, reachable, sync

_TEMPORARY = ".tmp"
_AROUND = 32
"""Bytes that ``derived`` may put around the name of a file."""


def output_target(path: Path) -> Path:
    """Return where a file written to ``path`` lies: a symbolic link is written through, one that dangles too."""
    is_link = os.path.islink(path)  # noqa: PTH114 (Path's raises where a name is too long)
    return reachable(Path(os.path.realpath(path)) if is_link else path)


def derived(path: Path, before: str, after: str) -> Path:
    """Return the path, in the folder of a file, of something that is named after it: BEFORE NAME AFTER.

    In the place of a name that leaves no room for more stands a hash of it, so that the result is never too long.

    Args:
        path: the file; it need not be there.
        before: what comes before its name.
        after: what comes after it; both together at most 32 bytes.
    """
    name = os.fsencode(path.name)
    if len(name) + _AROUND > longest_name(path.parent):
        return path.with_name(f"{before}elutq-{hashlib.sha256(name).hexdigest()[:16]}{after}")
    return path.with_name(before + path.name + after)


def check_output(path: Path, force: bool = False) -> None:
    """Check, before hours of work, that a file can be written at ``path``.

    Raises:
        ElutqError: the folder does not exist, the name is too long, what is there is no regular file, or a file is
            there and ``force`` is not set.
    """
    target = output_target(path)
    try:
        if not target.parent.is_dir():
            raise ElutqError(f"cannot write {path}: folder {target.parent} does not exist")
        mode = target.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise disk_error(f"cannot write {path}", error) from error
    if stat.S_ISDIR(mode):
        raise ElutqError(f"cannot write {path}: it is a folder")
    if not stat.S_ISREG(mode):
        raise ElutqError(f"cannot write {path}: it is not a regular file")
    if not force:
        raise ElutqError(f"{path} exists: choose another name, or have it replaced (--force)")


@contextmanager
def atomic_output(path: Path, force: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; when the block ends well, the file written there becomes ``path``.

    The file is on disk (fsync) before it takes the name. When the block raises, the temporary file is removed and
    ``path`` is as it was. Of a symbolic link all this is true of the file that it leads to; the link stays.

    Raises:
        ElutqError: as ``check_output``, at the start and again before the renaming; or the disk refuses.
        OSError: the block's own; one of a full disk, which names no file, names this one.
    """
    check_output(path, force)
    target = output_target(path)
    temporary = derived(target, ".", f".{os.getpid()}{_TEMPORARY}")
    try:
        try:
            yield temporary
        except OSError as error:
            if error.errno in DISK_FULL and error.filename is None:
                error.filename = str(path)
            raise
        check_output(target, force)
        try:
            sync(temporary)
            temporary.replace(target)
            sync(target.parent)
        except OSError as error:
            raise disk_error(f"cannot write {path}", error) from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_abandoned(path: Path) -> None:
    """Remove what killed processes have left of files that were to become ``path``; nobody may be writing one now."""
    target = output_target(path)
    name = re.compile(re.escape(derived(target, ".", ".").name) + r"\d+" + re.escape(_TEMPORARY))
    for other in target.parent.iterdir():
        if name.fullmatch(other.name):
            other.unlink(missing_ok=True)
