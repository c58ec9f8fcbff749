"""The spool: finished units of a run, in a work folder beside the output, until the file can be assembled.

A unit is the embedding, a block, or the head. What belongs to finished units survives the process: the next run with
the same fingerprint goes on after them.
"""

import fcntl
import glob
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from elutq_cli.pipeline.fingerprint import explain_difference
from elutq_cli.pipeline.levels import FloatArray
from elutq_formats.errors import ElutqError
from elutq_formats.model_writer import TensorSource
from elutq_formats.tensor_record import TensorRecord

_LOCK, _FINGERPRINT, _FOUND = "lock", "fingerprint.json", "found.json"
_TENSOR, _UNIT, _STREAM, _NEW = ".npy", ".unit", ".stream", ".new"

log = logging.getLogger(__name__)


class Spool:
    """A work folder: made on entry, removed when the block ends well, kept for the next run when it does not.

    The folder holds nothing but the spool's own files; others' are left alone. A lock keeps two runs from sharing it.

    Attributes:
        folder: ``OUTPUT.work``.
        records: tensors of finished units, and those added since.
        n_finished: finished units.
    """

    def __init__(self, output: Path, fingerprint: Mapping[str, str] | None = None, resume: bool = True) -> None:
        """Choose the folder; nothing is made yet.

        Args:
            output: the model file to be.
            fingerprint: everything that the contents depend on, by the name a user knows it by.
            resume: go on after the units that a stopped run has finished; otherwise they are removed.
        """
        self.folder = output.with_name(output.name + ".work")
        self.records: list[TensorRecord] = []
        self.n_finished = 0
        self._output = output
        self._fingerprint = dict(fingerprint or {})
        self._resume = resume
        self._n_recorded = 0
        self._n_streams = 0
        self._mapped: list[npt.NDArray[Any]] = []
        self._lock: TextIO | None = None

    def __enter__(self) -> "Spool":
        """Make the folder, or read what a stopped run left in it.

        Raises:
            ElutqError: the disk refuses, another run is using the folder, or what is there was made otherwise.
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
        try:
            self._start()
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._mapped = []
        if kind is None or not self._holds_work():
            self._remove(set())
            (self.folder / _LOCK).unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def add(self, record: TensorRecord, contents: npt.NDArray[Any]) -> None:
        """Put a tensor of the present unit on disk.

        Raises:
            ElutqError: the disk refuses.
        """
        self._save(self._tensor(record), contents)
        self.records.append(record)

    def finish_unit(self, streams: Sequence[FloatArray] = ()) -> None:
        """End the present unit: from here on it will not be made again.

        Args:
            streams: activations that the next unit begins with.

        Raises:
            ElutqError: the disk refuses.
        """
        number = self.n_finished
        for index, stream in enumerate(streams):
            if not any(stream is mapped for mapped in self._mapped):
                self._save(self._stream(number, index), stream)
        self._mapped = []
        records = self.records[self._n_recorded :]
        written = [self._tensor(record) for record in records]
        written += [self._stream(number, index) for index in range(len(streams))]
        unit = {"records": [asdict(record) for record in records], "streams": len(streams)}
        try:
            for path in written:
                _sync(path)
            self._write_json(self.folder / f"{number:05}{_UNIT}", unit)
            for index in range(self._n_streams):
                self._stream(number - 1, index).unlink(missing_ok=True)
        except OSError as error:
            raise ElutqError(f"cannot write {self.folder}: {error.strerror}") from error
        self.n_finished, self._n_recorded, self._n_streams = number + 1, len(self.records), len(streams)

    def open_streams(self) -> list[FloatArray]:
        """Return the activations that the last finished unit left, mapped; they may be changed in place.

        Changes go to a copy on disk, so that the unit can begin again when it is stopped half-way.

        Raises:
            ElutqError: the disk refuses.
        """
        for index in range(self._n_streams):
            source, copy = (self._stream(number, index) for number in (self.n_finished - 1, self.n_finished))
            try:
                shutil.copyfile(source, copy)
                self._mapped.append(np.asarray(np.lib.format.open_memmap(copy, mode="r+")))
            except OSError as error:
                raise ElutqError(f"cannot write {self.folder}: {error.strerror}") from error
        return list(self._mapped)

    def make_room(self, shape: tuple[int, ...]) -> FloatArray:
        """Return an array on disk, of float32, for as long as it is held.

        Raises:
            ElutqError: the disk refuses.
        """
        path = self.folder / ("activations" + _NEW)
        try:
            with path.open("wb+") as file:
                path.unlink()  # the disk has its space back as soon as the array is gone, however this process ends
                os.posix_fallocate(file.fileno(), 0, 4 * math.prod(shape))
                return np.asarray(np.memmap(file, np.float32, mode="r+", shape=shape))
        except OSError as error:
            raise ElutqError(f"cannot write {self.folder}: {error.strerror}") from error

    def remember(self, find: Callable[[], Any]) -> Any:  # noqa: ANN401 (a JSON value)
        """Return what a stopped run found, or find it and keep it for the next run; it must be a JSON value.

        Raises:
            ElutqError: the disk refuses.
        """
        path = self.folder / _FOUND
        try:
            if not path.exists():
                self._write_json(path, find())
            return json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ElutqError(f"cannot write {self.folder}: {error.strerror}") from error

    def sources(self) -> Iterator[TensorSource]:
        """Yield every tensor in the order of ``add``, each read when it is asked for."""
        for record in self.records:
            yield record, self._reader(record)

    def _start(self) -> None:
        for path in self.folder.parent.glob(f".{glob.escape(self._output.name)}.*.tmp"):
            path.unlink(missing_ok=True)  # a killed run was assembling the file
        if self._resume:
            self._read_units()
        kept = {self._tensor(record).name for record in self.records}
        kept |= {f"{number:05}{_UNIT}" for number in range(self.n_finished)}
        kept |= {self._stream(self.n_finished - 1, index).name for index in range(self._n_streams)}
        self._remove(kept | ({_FINGERPRINT, _FOUND} if self._holds_work() and self._resume else set()))
        if not (self.folder / _FINGERPRINT).exists():
            try:
                self._write_json(self.folder / _FINGERPRINT, self._fingerprint)
            except OSError as error:
                raise ElutqError(f"cannot write {self.folder}: {error.strerror}") from error

    def _read_units(self) -> None:
        paths = sorted(self.folder.glob("*" + _UNIT))
        if not self._holds_work() or not (self.folder / _FINGERPRINT).exists():
            return
        try:
            then = json.loads((self.folder / _FINGERPRINT).read_text(encoding="utf-8"))
            if then != self._fingerprint:
                difference = explain_difference(then, self._fingerprint)
                raise ElutqError(
                    f"{self.folder} holds a run that was stopped, {difference}: "
                    "go back to that, or start over with --no-resume"
                )
            for path in paths:
                unit = json.loads(path.read_text(encoding="utf-8"))
                self.records += [TensorRecord(**record) for record in unit["records"]]
                self._n_streams = unit["streams"]
            sound = all(self._reader(record)().nbytes == record.n_bytes for record in self.records)
            streams = [self._stream(len(paths) - 1, index) for index in range(self._n_streams)]
            sound = sound and all(stream.exists() for stream in streams)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ElutqError(f"{self.folder} is damaged: start over with --no-resume") from error
        if not sound:
            raise ElutqError(f"{self.folder} is damaged: start over with --no-resume")
        self.n_finished, self._n_recorded = len(paths), len(self.records)
        if paths:
            log.warning("going on after the %d units that are finished in %s", self.n_finished, self.folder)

    def _holds_work(self) -> bool:
        return (self.folder / _FOUND).exists() or any(self.folder.glob("*" + _UNIT))

    def _save(self, path: Path, contents: npt.NDArray[Any]) -> None:
        contents = np.ascontiguousarray(contents)
        try:
            with path.open("wb") as file:  # np.save's own writing does not say why a write failed
                np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(contents))
                file.write(contents.data)
        except OSError as error:
            raise ElutqError(f"cannot write {self.folder}: {error.strerror}") from error

    def _write_json(self, path: Path, value: object) -> None:
        new = path.with_name(path.name + _NEW)
        new.write_text(json.dumps(value), encoding="utf-8")
        _sync(new)
        new.replace(path)
        _sync(self.folder)

    def _reader(self, record: TensorRecord) -> Callable[[], npt.NDArray[Any]]:
        return lambda: np.asarray(np.load(self._tensor(record), mmap_mode="r"))

    def _tensor(self, record: TensorRecord) -> Path:
        return self.folder / (record.name + _TENSOR)

    def _stream(self, unit: int, index: int) -> Path:
        return self.folder / f"{unit:05}.{index}{_STREAM}"

    def _remove(self, kept: set[str]) -> None:
        """Remove the spool's files but those kept; without its fingerprint, what remains of a folder is worthless."""
        if _FINGERPRINT not in kept:
            (self.folder / _FINGERPRINT).unlink(missing_ok=True)
        for path in self.folder.iterdir():
            if path.name not in kept and (path.name == _FOUND or path.suffix in (_TENSOR, _UNIT, _STREAM, _NEW)):
                path.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
