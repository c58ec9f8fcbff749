"""A stack of experts in a work folder, written one expert after the other."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from elutq_formats.errors import disk_error


class StackFile:
    """An ``.npy`` file of (n_experts, ...) that grows by an expert at a time; those that are in it can be read."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        """Write its header.

        Raises:
            ElutqError: the disk refuses.
        """
        self._path = path
        self._shape, self._dtype = shape, np.dtype(dtype)
        self._n_added = 0
        header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        try:
            self._file = path.open("wb")
            np.lib.format.write_array_header_1_0(self._file, header)
            self._begin = self._file.tell()
        except OSError as error:
            raise disk_error(f"cannot write {path.parent}", error) from error

    def add(self, contents: npt.NDArray[Any]) -> None:
        """Write the next expert's.

        Raises:
            ElutqError: the disk refuses.
        """
        assert contents.shape == self._shape[1:]
        assert contents.dtype == self._dtype
        try:
            self._file.write(np.ascontiguousarray(contents).data)
            self._file.flush()
        except OSError as error:
            raise disk_error(f"cannot write {self._path.parent}", error) from error
        self._n_added += 1

    def read(self, number: int) -> npt.NDArray[Any]:
        """Return what was added for an expert."""
        assert number < self._n_added
        n_items = int(np.prod(self._shape[1:]))
        offset = self._begin + number * n_items * self._dtype.itemsize
        return np.fromfile(self._path, self._dtype, n_items, offset=offset).reshape(self._shape[1:])

    def close(self) -> None:
        """Forget the file, which now holds all of the stack.

        Raises:
            ElutqError: the disk refuses.
        """
        assert self._n_added == self._shape[0]
        try:
            self._file.close()
        except OSError as error:
            raise disk_error(f"cannot write {self._path.parent}", error) from error
