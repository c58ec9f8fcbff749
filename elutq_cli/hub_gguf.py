"""GGUF files of the Hugging Face hub: which of a repository's is meant."""

from collections.abc import Sequence
from pathlib import Path

from elutq_formats.errors import ElutqError
from elutq_formats.gguf_parts import part_names
from elutq_formats.gguf_start import GGUF


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


def gguf_files(folder: Path) -> tuple[str, ...]:
    """Return the names of the GGUF files of a folder, and of those below it."""
    return tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*" + GGUF)))
