"""Git LFS pointers: the few lines that a clone without Git LFS has in the place of a large file."""

from pathlib import Path

from elutq_formats.errors import CheckpointError, FormatError

_START = b"version https://git-lfs.github.com/spec/v1"


class PointerError(CheckpointError, FormatError):
    """A pointer stands in the place of a file, be that one of a checkpoint or a model file."""


def refuse_pointer(path: Path, start: bytes) -> None:
    """Refuse a file that begins like a pointer.

    Raises:
        PointerError: it does.
    """
    if start.startswith(_START):
        raise PointerError(
            f"{path} is a Git LFS pointer, not the file itself: run git lfs pull in its folder, or download it again"
        )
