"""GGUF files of the Hugging Face hub: which of a repository's is meant, and what its header says before it is here."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from elutq_formats.errors import CheckpointError, ElutqError
from elutq_formats.gguf_parts import part_names
from elutq_formats.gguf_reader import GGUFReader, TruncatedHeaderError
from elutq_formats.gguf_source import GGUFSource
from elutq_formats.open_source import GGUF

HEADER_BYTES = 1 << 21
"""What is asked for first of a file whose header is looked at: all of it, for vocabularies up to some 50,000 tokens."""

_MOST_HEADER_BYTES = 1 << 28


def choose_file(repository: str, names: Sequence[str], wanted: str, how: str, where: str = "") -> str:
    """Return the one GGUF file among these that is wanted; of a split one the first part.

    Args:
        repository: that has the files.
        names: of all its files.
        wanted: a name, or a part of it that no other has.
        how: to say which is wanted.
        where: the files are; for messages.

    Raises:
        ElutqError: there is none, or several.
    """
    files = [name for name in names if name.endswith(GGUF) and part_names(name)[0] == name]
    exact = [name for name in files if name in (wanted, wanted + GGUF)]
    found = exact or [name for name in files if wanted.lower() in name.lower()]
    if len(found) == 1:
        return found[0]
    some = ", ".join(f"{name!r:.80}" for name in (found or files)[:5])
    if found:
        raise ElutqError(f"{repository} has {len(found)} GGUF files{where} ({some}): choose one, as {how}")
    if files:
        raise ElutqError(f"{repository} has no GGUF file {wanted!r:.80}{where}: it has {some}")
    if "config.json" in names:
        raise ElutqError(
            f"{repository} is a checkpoint, not a model file: elutq quantize {repository} -o model.gguf makes one of it"
        )
    raise ElutqError(f"{repository} has no GGUF file{where}")


def check_parts(repository: str, names: Sequence[str], wanted: Sequence[str]) -> None:
    """Check that a repository has all parts of a file.

    Raises:
        ElutqError: it lacks one.
    """
    for name in wanted:
        if name not in names:
            raise ElutqError(f"{repository} is incomplete: it has no {name!r:.80}, a part of {wanted[0]!r:.80}")


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
    from elutq_cli.hub_client import read_start

    n_bytes = HEADER_BYTES
    while True:
        start, size = read_start(repository, commit, name, n_bytes)
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
