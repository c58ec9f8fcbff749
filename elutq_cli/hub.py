"""Checkpoints and model files of the Hugging Face hub, by name: what is small first, and only the files needed."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from elutq_formats.checkpoint import Checkpoint
from elutq_formats.errors import ElutqError
from elutq_formats.open_source import GGUF, START_BYTES, is_ours, open_source
from elutq_formats.other_folders import ADAPTER_CONFIG, check_names, refuse_adapter
from elutq_formats.source import ModelSource
from elutq_formats.stored_weights import INDEX, SINGLE, read_weight_map

SMALL_FILES = (
    "README.md",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    ADAPTER_CONFIG,
    INDEX,
)
"""What is read of a checkpoint beside its weights."""

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


def is_repository(model: Path) -> bool:
    """Whether this can only be a repository's name: ``organisation/name``, not a model file's, and nothing on disk."""
    return _REPOSITORY.fullmatch(str(model)) is not None and model.suffix != GGUF and not model.exists()


def find_checkpoint(
    model: Path,
    revision: str | None = None,
    offline: bool = False,
    check: Callable[[ModelSource], None] = lambda checkpoint: None,
) -> Path:
    """Return the folder of a checkpoint, which is downloaded first when ``model`` names a repository.

    Args:
        model: a folder, or ``organisation/name``.
        revision: branch, tag or commit of the repository; None: its main branch.
        offline: use only what has been downloaded before.
        check: raises when the checkpoint is of no use; called before weights are downloaded, with all else.

    Raises:
        ElutqError: the hub has no such repository or revision, does not give it to this user, or cannot be reached; it
            is no checkpoint that can be used; or a revision is asked of a folder.
    """
    if not is_repository(model):
        return _local(model, revision)
    from elutq_cli.hub_client import fetch

    folder, missing = _find(str(model), revision, offline)
    if missing:
        with _open(str(model), folder, missing) as checkpoint:
            check(checkpoint)
        fetch(str(model), folder.name, missing, offline)
    return folder


def open_headers(model: Path, revision: str | None = None, offline: bool = False) -> ModelSource:
    """Open a checkpoint to look at everything but its weights, which are not downloaded.

    Args:
        model: a folder, or ``organisation/name``.
        revision: branch, tag or commit of the repository; None: its main branch.
        offline: use only what has been downloaded before.

    Raises:
        ElutqError: see ``find_checkpoint``.
    """
    if not is_repository(model):
        return open_source(_local(model, revision))
    return _open(str(model), *_find(str(model), revision, offline))


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
        return _local(Path(model), revision)
    from elutq_cli.hub_client import fetch, is_cached, is_offline, list_files, read_start

    offline = is_offline(offline)
    if offline:
        folder = fetch(repository, revision, (), offline)
        return folder / _choose(repository, _model_files(folder), filename or tag, " in the cache")
    commit, names = list_files(repository, revision)
    name = _choose(repository, names, filename or tag)
    if not is_cached(repository, commit, name) and not is_ours(read_start(repository, commit, name, START_BYTES)):
        raise ElutqError(f"{repository}: {name!r:.80} is not a file that elutq made: quantize the original checkpoint")
    return fetch(repository, revision, (name,), offline) / name


def _model_files(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*" + GGUF)))


def _choose(repository: str, names: Sequence[str], wanted: str, where: str = "") -> str:
    """Return the one GGUF file among these that is wanted.

    Raises:
        ElutqError: there is none, or several.
    """
    files = [name for name in names if name.endswith(GGUF)]
    exact = [name for name in files if name in (wanted, wanted + GGUF)]
    found = exact or [name for name in files if wanted.lower() in name.lower()]
    if len(found) == 1:
        return found[0]
    some = ", ".join(f"{name!r:.80}" for name in (found or files)[:5])
    if found:
        raise ElutqError(f"{repository} has {len(found)} GGUF files{where} ({some}): choose one, as {repository}:FILE")
    if files:
        raise ElutqError(f"{repository} has no GGUF file {wanted!r:.80}{where}: it has {some}")
    if "config.json" in names:
        raise ElutqError(
            f"{repository} is a checkpoint, not a model file: elutq quantize {repository} -o model.gguf makes one of it"
        )
    raise ElutqError(f"{repository} has no GGUF file{where}")


def _local(model: Path, revision: str | None) -> Path:
    if revision is not None and model.exists():
        raise ElutqError(f"{model} is on this disk and has no revisions: leave out --revision")
    return model


def _find(repository: str, revision: str | None, offline: bool) -> tuple[Path, tuple[str, ...]]:
    """Return the folder of a repository's small files, and the names of the weight files that are not in it yet."""
    from elutq_cli.hub_client import fetch, is_offline, list_files, not_cached

    folder = fetch(repository, revision, (*SMALL_FILES, SINGLE) if is_offline(offline) else SMALL_FILES, offline)
    refuse_adapter(folder, repository)
    if not _missing(folder, _weight_files(folder, (folder / SINGLE).exists())):
        return folder, ()
    if is_offline(offline):
        raise not_cached(repository)
    _, names = list_files(repository, folder.name)
    check_names(repository, names)
    weights = _weight_files(folder, SINGLE in names)
    for name in weights:
        if name not in names:
            raise ElutqError(f"{repository} is incomplete: its index names {name!r:.80}, which it does not have")
    return folder, _missing(folder, weights)


def _weight_files(folder: Path, single: bool) -> tuple[str, ...]:
    """Return the names of a checkpoint's weight files: the single one, where there is one, or those of the index."""
    if single or not (folder / INDEX).exists():
        return (SINGLE,)
    return tuple(sorted(set(read_weight_map(folder / INDEX).values())))


def _missing(folder: Path, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if not (folder / name).exists())


def _open(repository: str, folder: Path, missing: tuple[str, ...]) -> Checkpoint:
    """Open a checkpoint of which some weight files are on the hub alone."""
    from elutq_cli.hub_client import RemoteWeights

    return Checkpoint.open(folder, {name: RemoteWeights(repository, folder / name) for name in missing})
