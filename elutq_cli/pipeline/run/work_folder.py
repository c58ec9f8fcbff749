"""The work folder of a run, beside its output: one run's at a time, and nothing of others is removed from it."""

import json
import os
import re
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from elutq_cli.machine.file_lock import lock_file, remove_locked
from elutq_formats.atomic import derived, output_target, remove_abandoned
from elutq_formats.errors import ElutqError, disk_error
from elutq_formats.file_system import sync

LOCK, FINGERPRINT, FOUND = "lock", "fingerprint.json", "found.json"
TENSOR, UNIT, STREAM, NEW = ".npy", ".unit", ".stream", ".new"
_MARK = b"elutq quantize\n"
"""What the lock holds: the folder is a run's."""

OWN = re.compile(
    r"(fingerprint\.json|found\.json|\d{5}\.unit)(\.new)?|activations\.new|\d{5}\.\d+\.stream"
    r"|(token_embd|output|output_norm|blk\.\d+\.\w+)\.(weight|bias)\.npy"
)
"""Names of a run's own files, beside the lock: nothing else is ever removed."""


def work_folder(output: Path) -> Path:
    """Return the folder ``OUTPUT.work``, beside the file that ``output`` leads to."""
    return derived(output_target(output), "", ".work")


class WorkFolder:
    """A folder that is made when it is opened, and locked; it is gone when it is closed with nothing in it.

    One that no run has made is refused.

    Attributes:
        path: see ``work_folder``.
    """

    def __init__(self, output: Path) -> None:
        """Choose the folder of a model file to be; nothing is made yet."""
        self.path = work_folder(output)
        self._output = output
        self._lock: BinaryIO | None = None

    def open(self) -> None:
        """Make it, or take the one that is there, and what an aborted run has left of the output away.

        Raises:
            ElutqError: the disk refuses, the folder is not a run's, or another run is using it.
        """
        try:
            if os.path.lexists(self.path):
                self._check_own()
            self.path.mkdir(exist_ok=True)
            lock = self._take_lock("ab")
        except OSError as error:
            raise self.refusal(error) from error
        try:
            remove_abandoned(self._output)
            if os.fstat(lock.fileno()).st_size == 0:
                lock.write(_MARK)
                lock.flush()
        except OSError as error:
            self.unlock()
            raise self.refusal(error) from error

    def check(self) -> None:
        """Raise what opening it would; nothing is changed, so nothing need be writable.

        Raises:
            ElutqError: the folder is not a run's or cannot be read, or another run is using it.
        """
        try:
            if os.path.lexists(self.path):
                self._check_own()
                if (self.path / LOCK).exists():
                    self._take_lock("rb")
                    self.unlock()
        except OSError as error:
            raise ElutqError(f"cannot read {self.path}: {error.strerror}") from error

    def _check_own(self) -> None:
        """Refuse what is there, unless it is a folder that is empty or a run's.

        Raises:
            ElutqError: it is something else.
            OSError: it cannot be read.
        """
        if not self.path.is_dir() or not self._is_ours():
            raise ElutqError(
                f"{self.path} is in the way, and not a work folder of elutq: move it, or choose another output"
            )

    def _take_lock(self, mode: Literal["ab", "rb"]) -> BinaryIO:
        """Lock a folder that is there; return the lock's file.

        Raises:
            ElutqError: another run is using it.
            OSError: the disk refuses.
        """
        self._lock = lock = (self.path / LOCK).open(mode)
        try:
            lock_file(lock)
        except OSError as error:
            self.unlock()
            raise ElutqError(f"another run is writing {self.path}: wait for it, or choose another output") from error
        return lock

    def unlock(self) -> None:
        """Let others have it, as it is."""
        if self._lock is not None:
            self._lock.close()

    def close(self, worthless: bool) -> None:
        """Leave it to the next run, or remove what is the run's own; then the folder, where nothing is left in it."""
        if worthless:
            self.remove_all_but(set())
            if self._lock is not None:
                remove_locked(self._lock, self.path / LOCK)
        self.unlock()
        if not self.path.is_symlink() and not any(self.path.iterdir()):
            self.path.rmdir()

    def remove_all_but(self, kept: set[str]) -> None:
        """Remove the run's own files but those kept; without its fingerprint, what remains of a folder is worthless."""
        if FINGERPRINT not in kept:
            (self.path / FINGERPRINT).unlink(missing_ok=True)
        for path in self.path.iterdir():
            if path.name not in kept and OWN.fullmatch(path.name):
                path.unlink()

    def save(self, path: Path, contents: npt.NDArray[Any]) -> None:
        """Write an array to a file of the folder.

        Raises:
            ElutqError: the disk refuses.
        """
        contents = np.ascontiguousarray(contents)
        try:
            with path.open("wb") as file:  # np.save's own writing does not say why a write failed
                np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(contents))
                file.write(contents.data)
        except OSError as error:
            raise self.refusal(error) from error

    def write_json(self, path: Path, value: object) -> None:
        """Write a JSON value to a file of the folder, which is there as a whole or not at all.

        Raises:
            OSError: the disk refuses.
        """
        new = path.with_name(path.name + NEW)
        new.write_text(json.dumps(value), encoding="utf-8")
        sync(new)
        new.replace(path)
        sync(self.path)

    def refusal(self, error: OSError) -> ElutqError:
        """Return what to say where the disk refuses."""
        return disk_error(f"cannot write {self.path}", error)

    def _is_ours(self) -> bool:
        """Whether the folder is empty or a run's; one may have been killed before it wrote its mark."""
        names = {path.name for path in self.path.iterdir()}
        mark = (self.path / LOCK).read_bytes() if LOCK in names else b""
        return mark == _MARK or (not mark and names <= {LOCK})
