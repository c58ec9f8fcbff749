"""Models of the Hugging Face hub, by name: what is a repository's name, and which of its files is a model file."""

import re
from pathlib import Path

from elutq_cli.hub_gguf import choose_file
from elutq_formats.errors import ElutqError
from elutq_formats.gguf_start import GGUF, START_BYTES, is_ours

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


def is_repository(model: Path) -> bool:
    """Whether this can only be a repository's name: ``organisation/name``, not a model file's, and nothing on disk."""
    return _REPOSITORY.fullmatch(str(model)) is not None and model.suffix != GGUF and not model.exists()


def split_name(model: Path, gguf_file: str | None) -> tuple[Path, str | None]:
    """Return the repository and the file of ``organisation/name:FILE``; else what is given.

    Raises:
        ElutqError: a file is given twice.
    """
    repository, colon, tag = str(model).partition(":")
    if not colon or model.exists() or not is_repository(Path(repository)):
        return model, gguf_file
    if gguf_file is not None:
        raise ElutqError(f"{model} names a file already: leave out the other one (--gguf-file)")
    return Path(repository), tag


def find_model(model: str, filename: str | None = None, revision: str | None = None, offline: bool = False) -> Path:
    """Return a model file, which is downloaded first when ``model`` names a repository.

    Args:
        model: a file, ``organisation/name``, or ``organisation/name:FILE``.
        filename: FILE: which of the repository's, or a part of its name that no other has; None: the only one.
        revision: branch, tag or commit of the repository; None: its main branch.
        offline: use only what has been downloaded before.

    Raises:
        ElutqError: the hub has no such repository, revision or file, does not give it to this user, or cannot be
            reached; the repository holds several, or none made by elutq; or a file on this disk is given with FILE.
    """
    repository, _, tag = model.partition(":")
    if Path(model).exists() or not is_repository(Path(repository)):
        if filename is not None:
            raise ElutqError(f"{model} is not a repository's name: it has no {filename}")
        check_revision(Path(model), revision)
        return Path(model)
    from elutq_cli.hub_client import fetch, is_cached, list_present, read_bytes

    commit, names, where = list_present(repository, revision, offline)
    name = choose_file(repository, names, filename or tag, f"{repository}:FILE", where)
    if not is_cached(repository, commit, name) and not is_ours(read_bytes(repository, commit, name, START_BYTES)[0]):
        raise ElutqError(f"{repository}: {name!r:.80} is not a file that elutq made: elutq quantize makes one of it")
    return fetch(repository, revision, (name,), offline) / name


def check_revision(model: Path, revision: str | None) -> None:
    """Refuse a revision of what is on this disk.

    Raises:
        ElutqError: one is asked for.
    """
    if revision is not None and model.exists():
        raise ElutqError(f"{model} is on this disk and has no revisions: leave out the revision (--revision)")
