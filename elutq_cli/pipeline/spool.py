"""The spool: finished tensors on disk, in a work folder beside the output, until the file can be assembled."""

import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from elutq_formats.errors import ElutqError
from elutq_formats.model_writer import TensorSource
from elutq_formats.tensor_record import TensorRecord

_LOCK = "lock"
_SUFFIX = ".npy"


class Spool:
    """A work folder, made on entry and removed on exit; what a killed run left there is removed on entry.

    The folder holds nothing but the spool's own files; others' are left alone. A lock keeps two runs from sharing it.
    """

    def __init__(self, output: Path) -> None:
        """Choose the folder ``OUTPUT.work``; nothing is made yet."""
        self.folder = output.with_name(output.name + ".work")
        self._records: list[TensorRecord] = []
        self._lock: TextIO | None = None

    def __enter__(self) -> "Spool":
        """Make the folder.

        Raises:
            ElutqError: the disk refuses, or another run is using the folder.
        """
        try:
            self.folder.mkdir(exist_ok=True)
            self._lock = (self.folder / _LOCK).open("w")
        except OSError as error:
            raise ElutqError(f"cannot write {self.folder}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise ElutqError(f"another run is writing {self.folder}: wait for it, or choose another output") from error
        self._clear()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clear()
        (self.folder / _LOCK).unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def add(self, record: TensorRecord, contents: npt.NDArray[Any]) -> None:
        """Put a finished tensor on disk.

        Raises:
            ElutqError: the disk refuses.
        """
        try:
            np.save(self._path(record), contents)
        except OSError as error:
            raise ElutqError(f"cannot write {self.folder}: {error.strerror}") from error
        self._records.append(record)

    def sources(self) -> Iterator[TensorSource]:
        """Yield every tensor in the order of ``add``, each read when it is asked for."""
        for record in self._records:
            yield record, self._reader(record)

    def _reader(self, record: TensorRecord) -> Callable[[], npt.NDArray[Any]]:
        return lambda: np.asarray(np.load(self._path(record), mmap_mode="r"))

    def _path(self, record: TensorRecord) -> Path:
        return self.folder / (record.name + _SUFFIX)

    def _clear(self) -> None:
        for path in self.folder.glob("*" + _SUFFIX):
            path.unlink()
