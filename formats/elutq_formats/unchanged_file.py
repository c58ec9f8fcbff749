"""A file that is read piece by piece over hours, and must stay what it was when it was opened."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from elutq_formats.errors import CheckpointError


@dataclass(frozen=True)
class UnchangedFile:
    """A file, opened anew for each piece, so that one that has been replaced is noticed.

    It is read, not mapped: a mapped file that shrinks under a run, or whose disk fails, kills the process.

    Attributes:
        path: where it is.
        size: in bytes.
        changed: time of its last change, in nanoseconds. Not its inode: some mounts number a file anew each time it is
            opened, and it is the same file.
    """

    path: Path
    size: int
    changed: int

    @staticmethod
    def of(path: Path, descriptor: int) -> "UnchangedFile":
        """Remember the state of an open file."""
        status = os.fstat(descriptor)
        return UnchangedFile(path, status.st_size, status.st_mtime_ns)

    def check(self, descriptor: int) -> None:
        """Check that an open file is still this one.

        Raises:
            CheckpointError: it is not.
        """
        if self.of(self.path, descriptor) != self:
            raise self._error()

    def read(self, begin: int, end: int) -> npt.NDArray[np.uint8]:
        """Return the bytes from begin to end - 1.

        Raises:
            CheckpointError: they cannot be read, or the file is another than it was.
        """
        piece = np.empty(end - begin, dtype=np.uint8)
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(begin)
                if file.readinto(piece.data) != piece.size:
                    raise self._error()
                self.check(file.fileno())
        except OSError as error:
            raise CheckpointError(f"cannot read {self.path}: {error.strerror}") from error
        return piece

    def _error(self) -> CheckpointError:
        return CheckpointError(f"{self.path} changed while it was being read: start again")
