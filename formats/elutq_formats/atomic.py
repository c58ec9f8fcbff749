"""Output files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from elutq_formats.errors import ElutqError


def check_output(path: Path, force: bool = False) -> None:
    """Check, before hours of work, that a file can be written at ``path``.

    Raises:
        ElutqError: the folder does not exist, the path is a folder, or a file is there and ``force`` is not set.
    """
    if not path.parent.is_dir():
        raise ElutqError(f"cannot write {path}: folder {path.parent} does not exist")
    if path.is_dir():
        raise ElutqError(f"cannot write {path}: it is a folder")
    if path.exists() and not force:
        raise ElutqError(f"{path} exists: choose another name, or replace it with --force")


@contextmanager
def atomic_output(path: Path, force: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; when the block ends well, the file written there becomes ``path``.

    The file is on disk (fsync) before it takes the name. When the block raises, the temporary file is removed and
    ``path`` is as it was.

    Raises:
        ElutqError: as ``check_output``, at the start and again before the renaming; or the disk refuses.
    """
    check_output(path, force)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        check_output(path, force)
        try:
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
        except OSError as error:
            raise ElutqError(f"cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
