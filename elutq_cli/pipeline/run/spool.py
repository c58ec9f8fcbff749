"""The spool: finished units of a run, in a work folder beside the output, until the file can be assembled.

A unit is the embedding, a block, or the head. What belongs to finished units survives the process: the next run with
the same fingerprint goes on after them.
"""

import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from elutq_cli.machine.disk import open_nameless, reserve
from elutq_cli.pipeline.compute.levels import FloatArray
from elutq_cli.pipeline.run.fingerprint import explain_difference
from elutq_cli.pipeline.run.stack_file import StackFile
from elutq_cli.pipeline.run.work_folder import FINGERPRINT, FOUND, NEW, OWN, STREAM, TENSOR, UNIT, WorkFolder
from elutq_formats.block_kind import BlockKind
from elutq_formats.errors import ElutqError
from elutq_formats.file_system import sync
from elutq_formats.model_writer import TensorSource
from elutq_formats.tensor_record import TensorRecord

log = logging.getLogger(__name__)


class Spool:
    """A work folder: made on entry, kept for the next run where that can go on from it, removed otherwise.

    It cannot where the block ends well, or in an error that recurs.

    A folder that no spool has made is refused, and in one of ours others' files are left alone. A lock keeps two runs
    from sharing it.

    Attributes:
        folder: see ``work_folder``.
        records: tensors of finished units, and those added since.
        n_finished: finished units.
    """

    def __init__(
        self,
        output: Path,
        fingerprint: Mapping[str, str] | None = None,
        resume: bool = True,
        force: bool = False,
    ) -> None:
        """Choose the folder; nothing is made yet.

        Args:
            output: the model file to be.
            fingerprint: everything that the contents depend on, by the name a user knows it by.
            resume: go on after the units that a stopped run has finished; otherwise they are removed.
            force: remove them, too, when they are of no use to this run; otherwise it is refused.
        """
        self._work = WorkFolder(output)
        self.folder = self._work.path
        self.records: list[TensorRecord] = []
        self.n_finished = 0
        self._fingerprint = dict(fingerprint or {})
        self._resume, self._force = resume, force
        self._n_recorded = 0
        self._n_streams = 0
        self._mapped: list[npt.NDArray[Any]] = []

    def __enter__(self) -> "Spool":
        """Make the folder, or read what a stopped run left in it.

        Raises:
            ElutqError: the disk refuses, the folder is not a spool's, another run is using it, or what it holds was
                made otherwise.
        """
        self._work.open()
        try:
            self._start()
        except BaseException:
            self._work.unlock()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._mapped = []
        of_no_use = isinstance(error, ElutqError) and error.recurs
        worthless = kind is None or of_no_use or not self._holds_work()
        if isinstance(error, KeyboardInterrupt) and not worthless:
            how = "" if self._resume else ", without --no-resume,"
            log.warning("what is finished is kept in %s: the same command%s goes on after it", self.folder, how)
        self._work.close(worthless)

    def check(self) -> None:
        """Raise what entering it would, and change nothing.

        Raises:
            ElutqError: the folder is not a spool's, another run is using it, or what it holds was made otherwise.
        """
        self._work.check()
        if self._resume:
            self._take_over()

    def add(self, record: TensorRecord, contents: npt.NDArray[Any]) -> None:
        """Put a tensor of the present unit on disk.

        Raises:
            ElutqError: the disk refuses.
        """
        self._work.save(self._tensor(record), contents)
        self.records.append(record)

    def open_stack(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> "StackFile":
        """Make room for a stack of the present unit, whose experts are added one by one: see ``StackFile``.

        Raises:
            ElutqError: the disk refuses.
        """
        return StackFile(self.folder / (name + TENSOR), shape, dtype)

    def add_stack(self, record: TensorRecord, file: "StackFile") -> None:
        """Put a stack that is complete among the tensors of the present unit."""
        file.close()
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
                self._work.save(self._stream(number, index), stream)
        self._mapped = []
        records = self.records[self._n_recorded :]
        written = [self._tensor(record) for record in records]
        written += [self._stream(number, index) for index in range(len(streams))]
        unit = {"records": [asdict(record) for record in records], "streams": [stream.shape for stream in streams]}
        try:
            for path in written:
                sync(path)
            self._work.write_json(self.folder / f"{number:05}{UNIT}", unit)
            for index in range(self._n_streams):
                self._stream(number - 1, index).unlink(missing_ok=True)
        except OSError as error:
            raise self._work.refusal(error) from error
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
                raise self._work.refusal(error) from error
        return list(self._mapped)

    def make_room(self, shape: tuple[int, ...]) -> FloatArray:
        """Return an array on disk, of float32, for as long as it is held.

        Raises:
            ElutqError: the disk refuses.
        """
        try:
            with open_nameless(self.folder / ("activations" + NEW)) as file:
                reserve(file, 4 * math.prod(shape))
                return np.asarray(np.memmap(file, np.float32, mode="r+", shape=shape))
        except OSError as error:
            raise self._work.refusal(error) from error

    def remember(self, find: Callable[[], Any]) -> Any:  # noqa: ANN401 (a JSON value)
        """Return what a stopped run found, or find it and keep it for the next run; it must be a JSON value.

        Raises:
            ElutqError: the disk refuses.
        """
        path = self.folder / FOUND
        try:
            if not path.exists():
                self._work.write_json(path, find())
            return json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise self._work.refusal(error) from error

    def sources(self) -> Iterator[TensorSource]:
        """Yield every tensor in the order of ``add``, each read when it is asked for."""
        for record in self.records:
            yield record, self._reader(record)

    def _start(self) -> None:
        try:
            if self._resume and self._take_over():
                kept = {self._tensor(record).name for record in self.records}
                kept |= {f"{number:05}{UNIT}" for number in range(self.n_finished)}
                kept |= {self._stream(self.n_finished - 1, index).name for index in range(self._n_streams)}
                self._work.remove_all_but(kept | {FINGERPRINT, FOUND})
            else:
                self._work.remove_all_but(set())
                self._work.write_json(self.folder / FINGERPRINT, self._fingerprint)
        except OSError as error:
            raise self._work.refusal(error) from error

    def _take_over(self) -> bool:
        """Read what a stopped run has finished; return whether it is of use.

        Raises:
            ElutqError: it is not, and may not be removed.
        """
        if not self._holds_work() or not (self.folder / FINGERPRINT).exists():
            return False
        found, advice = f"{self.folder} is damaged", ""
        try:
            then = json.loads((self.folder / FINGERPRINT).read_text(encoding="utf-8"))
            if not isinstance(then, dict) or not all(isinstance(value, str) for value in then.values()):
                raise ValueError(f"{self.folder} is damaged")
            if then == self._fingerprint:
                self._read_units()
                return True
            difference = explain_difference(then, self._fingerprint)
            found, advice = f"{self.folder} holds a run that was stopped, {difference}", "go back to that, or "
        except (OSError, EOFError, ValueError, TypeError, KeyError):
            pass
        if not self._force:
            raise ElutqError(f"{found}: {advice}start over (--no-resume)")
        log.warning("%s: starting over", found)
        return False

    def _read_units(self) -> None:
        """Read the records of finished units, and check that what they name is there.

        Raises:
            OSError, EOFError, ValueError, TypeError, KeyError: it is not, or not what a spool wrote.
        """
        paths = sorted(self.folder.glob("*" + UNIT))
        records, streams = [], list[list[int]]()
        for path in paths:
            unit = json.loads(path.read_text(encoding="utf-8"))
            records += [TensorRecord(**record | {"kind": BlockKind(**record["kind"])}) for record in unit["records"]]
            streams = unit["streams"]
        sound = all(OWN.fullmatch(self._tensor(record).name) for record in records)
        sound = sound and all(self._reader(record)().nbytes == record.n_bytes for record in records)
        for index, shape in enumerate(streams):
            sound = sound and [*np.load(self._stream(len(paths) - 1, index), mmap_mode="r").shape] == shape
        if (self.folder / FOUND).exists():
            json.loads((self.folder / FOUND).read_text(encoding="utf-8"))
        if not sound:
            raise ValueError(f"{self.folder} is damaged")
        self.records, self._n_streams = records, len(streams)
        self.n_finished, self._n_recorded = len(paths), len(records)
        if paths:
            log.warning("going on after the %d units that are finished in %s", self.n_finished, self.folder)

    def _holds_work(self) -> bool:
        return (self.folder / FOUND).exists() or any(self.folder.glob("*" + UNIT))

    def _reader(self, record: TensorRecord) -> Callable[[], npt.NDArray[Any]]:
        return lambda: np.asarray(np.load(self._tensor(record), mmap_mode="r"))

    def _tensor(self, record: TensorRecord) -> Path:
        return self.folder / (record.name + TENSOR)

    def _stream(self, unit: int, index: int) -> Path:
        return self.folder / f"{unit:05}.{index}{STREAM}"
