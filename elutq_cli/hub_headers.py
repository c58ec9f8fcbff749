"""Models on the hub of which the headers alone are looked at, so that what is of no use is not downloaded."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from elutq_cli.hub_client import explaining, read_bytes
from elutq_formats.errors import CheckpointError, ElutqError
from elutq_formats.gguf_reader import GGUFReader, TruncatedHeaderError
from elutq_formats.gguf_source import GGUFSource
from elutq_formats.pytorch_file import TORCH_BYTES, PyTorchFile
from elutq_formats.safetensors_file import ALL_ROWS, DTYPES, Run

HEADER_BYTES = 1 << 21
"""What is asked for first of a GGUF file: all of its header, for vocabularies up to some 50,000 tokens."""

_MOST_HEADER_BYTES = 1 << 28


END_BYTES = 1 << 20
"""Of a file in PyTorch's format, from its beginning and from its end: the pickle, and the list of what is in the file,
of some thousand tensors."""


class RemoteWeights:
    """A safetensors file on the hub, of which its header alone is asked for, when it is looked at: some kilobytes.

    Attributes:
        path: where it will be.
        identity: nothing: it is not here.
    """

    identity = ""
    dtypes = tuple(DTYPES)
    package_bytes = 0

    def __init__(self, repository: str, path: Path) -> None:
        """Ask for nothing yet; ``path`` is in the folder that ``fetch`` returned."""
        self.path = path
        self._repository = repository

    @cached_property
    def _tensors(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import SafetensorsParsingError

        commit = self.path.parent.name
        with explaining(self._repository, commit, False):
            try:
                found = HfApi().parse_safetensors_file_metadata(self._repository, self.path.name, revision=commit)
                return {name: (str(info.dtype), tuple(map(int, info.shape))) for name, info in found.tensors.items()}
            except (SafetensorsParsingError, AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
                raise CheckpointError(
                    f"{self._repository}: {self.path.name!r:.80} is damaged or no safetensors file"
                ) from error

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape, by name."""
        return {name: shape for name, (_, shape) in self._tensors.items()}

    def dtype(self, name: str) -> str:
        """Return a tensor's dtype as the header names it."""
        return self._tensors[name][0]

    def load(self, name: str, run: Run = map, rows: slice = ALL_ROWS) -> npt.NDArray[np.float32]:
        """Refuse to: the tensors are not here.

        Raises:
            CheckpointError: always.
        """
        raise self._not_here()

    def read(self, name: str) -> npt.NDArray[Any]:
        """Refuse to: see ``load``.

        Raises:
            CheckpointError: always.
        """
        raise self._not_here()

    def _not_here(self) -> CheckpointError:
        return CheckpointError(f"{self.path.name} of {self._repository} has not been downloaded")

    def pieces(self, name: str) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield nothing: until its bytes are here, a head that is declared to be the embedding counts as equal."""
        return iter(())


class RemotePyTorch(RemoteWeights):
    """A file of PyTorch's format on the hub, of which both ends are asked for, when it is looked at."""

    package_bytes = TORCH_BYTES

    @cached_property
    def _tensors(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """The file is laid on disk with nothing between its ends, so that torch finds the same faults in it."""
        commit, name = self.path.parent.name, self.path.name
        start, size = read_bytes(self._repository, commit, name, END_BYTES)
        rest = max(len(start), size - END_BYTES)
        end = read_bytes(self._repository, commit, name, END_BYTES, rest)[0] if rest < size else b""
        with TemporaryDirectory(prefix="elutq-") as folder:
            path = Path(folder) / name
            with path.open("wb") as file:
                file.write(start)
                file.seek(rest)
                file.write(end)
            try:
                found = PyTorchFile(path)
            except ElutqError as error:
                raise type(error)(str(error).replace(folder, self._repository)) from error
            return {tensor: (found.dtype(tensor), shape) for tensor, shape in found.shapes.items()}


def open_remote(repository: str, commit: str, names: Sequence[str]) -> GGUFSource:
    """Open a file on the hub, or all parts of one, to look at everything but its weights.

    Only headers are asked for. They are laid in files of the right size that hold nothing else, so that whoever reads
    a file on disk finds the same faults.

    Raises:
        ElutqError: the hub cannot be reached, or the file is of no use.
    """
    with TemporaryDirectory(prefix="elutq-") as folder:
        paths = [Path(folder) / PurePosixPath(name).name for name in names]
        try:
            for name, path in zip(names, paths, strict=True):
                _lay_header(repository, commit, name, path)
            source = GGUFSource.open(paths[0])
        except ElutqError as error:
            raise type(error)(str(error).replace(folder, repository)) from error
    source.path = source.tokenizer_place = source.chat_template_place = Path(repository) / names[0]
    return source


def _lay_header(repository: str, commit: str, name: str, path: Path) -> None:
    n_bytes = HEADER_BYTES
    while True:
        start, size = read_bytes(repository, commit, name, n_bytes)
        path.write_bytes(start)
        with path.open("r+b") as file:
            file.truncate(size)
        try:
            GGUFReader(path, available=len(start))
        except TruncatedHeaderError as error:
            if n_bytes >= min(size, _MOST_HEADER_BYTES):
                raise CheckpointError(f"{path} is truncated, or has a header of more than {n_bytes} bytes") from error
            n_bytes *= 4
            continue
        return
