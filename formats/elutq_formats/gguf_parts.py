"""The parts of a split GGUF file, named NAME-00001-of-00003.gguf and so on as llama.cpp's gguf-split does."""

import re
from collections.abc import Sequence
from pathlib import Path

from elutq_formats.errors import FormatError
from elutq_formats.gguf_reader import GGUFReader
from elutq_formats.gguf_start import GGUF

PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")

_COUNT, _NUMBER, _TENSORS = "split.count", "split.no", "split.tensors.count"


def part_names(name: str) -> tuple[str, ...]:
    """Return the names of all parts of the file that this one begins, or is alone."""
    part = PART.fullmatch(name)
    return (name,) if part is None else tuple(f"{part[1]}-{n:05}-of-{part[3]}.gguf" for n in range(1, int(part[3]) + 1))


def bare_name(name: str) -> str:
    """Return what a file is called without ``.gguf``, in letters of any size, and without a part's number."""
    bare = name[: -len(GGUF)] if name.lower().endswith(GGUF) else name
    part = PART.fullmatch(bare + GGUF)
    return bare if part is None else part[1]


def open_parts(path: Path) -> list[GGUFReader]:
    """Open a file, or every part of a split one, of which ``path`` is the first.

    Raises:
        FormatError: a part is missing or damaged, is of another file, or is not the first.
    """
    first = GGUFReader(path)
    n_parts = first.metadata.get(_COUNT, 1)
    if n_parts == 1 or not isinstance(n_parts, int):
        return [first]
    names = part_names(path.name)
    if len(names) != n_parts:
        raise FormatError(f"{path} is a part of {n_parts}, but is not called so: NAME-00001-of-{n_parts:05}.gguf")
    if path.name != names[0]:
        raise FormatError(f"{path} is a part of {n_parts}: give the first, {names[0]}")
    readers = [first]
    for name in names[1:]:
        other = path.with_name(name)
        if not other.exists():
            raise FormatError(f"{path} is incomplete: part {name} of {n_parts} is missing; download it again")
        readers.append(GGUFReader(other))
    _check_parts(readers)
    return readers


def _check_parts(readers: Sequence[GGUFReader]) -> None:
    path, wanted = readers[0].path, readers[0].metadata.get(_TENSORS)
    names: set[str] = set()
    for number, reader in enumerate(readers):
        if reader.metadata.get(_COUNT) != len(readers) or reader.metadata.get(_NUMBER) != number:
            raise FormatError(f"{reader.path} is not part {number + 1} of {len(readers)} of {path.name}")
        if twice := names & reader.tensors.keys():
            raise FormatError(f"{reader.path} holds tensor {min(twice)}, which another part holds too")
        names |= reader.tensors.keys()
    if len(names) != wanted:
        raise FormatError(f"{path} has {wanted} tensors by its own account, but its parts have {len(names)}")
