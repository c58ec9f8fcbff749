"""Sources of weights on the Hugging Face hub, by name: what is small first, and only the files needed."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from elutq_cli.hub import check_revision, find_model, is_repository, split_name
from elutq_cli.hub_client import (
    fetch,
    fetch_if_there,
    is_cached,
    is_offline,
    list_files,
    list_present,
    not_cached,
    read_bytes,
)
from elutq_cli.hub_gguf import check_parts, choose_file, gguf_files
from elutq_cli.hub_headers import RemotePyTorch, RemoteWeights, open_remote
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.errors import ElutqError
from elutq_formats.folder_texts import CHAT_TEMPLATE
from elutq_formats.gguf_parts import part_names
from elutq_formats.gguf_start import GGUF, START_BYTES, is_ours
from elutq_formats.open_source import open_source
from elutq_formats.other_folders import ADAPTER_CONFIG, check_names, refuse_adapter
from elutq_formats.quantized_settings import SETTINGS_FILES
from elutq_formats.source import ModelSource
from elutq_formats.stored_weights import INDEX, LAYOUTS, PYTORCH, PYTORCH_INDEX, SINGLE, read_weight_map

SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    CHAT_TEMPLATE,
    *SETTINGS_FILES,
    ADAPTER_CONFIG,
    INDEX,
    PYTORCH_INDEX,
)
"""What is read of a checkpoint beside its weights and its README.md, without which a run goes on."""


def find_checkpoint(
    model: Path,
    revision: str | None = None,
    offline: bool = False,
    check: Callable[[ModelSource], None] = lambda checkpoint: None,
    gguf_file: str | None = None,
) -> Path:
    """Return a source of weights on this disk, which is downloaded first when ``model`` names a repository.

    Args:
        model: a folder, a GGUF file, ``organisation/name``, or ``organisation/name:FILE`` with a GGUF file's name.
        revision: branch, tag or commit of the repository; None: its main branch.
        offline: use only what has been downloaded before.
        check: raises when the model is of no use; called before weights are downloaded, with all else.
        gguf_file: which GGUF file of the repository or folder, or a part of its name that no other has; of a split one
            the first part. None: its checkpoint.

    Raises:
        ElutqError: the hub has no such repository, revision or file, does not give it to this user, or cannot be
            reached; it is no model that can be used; or a revision is asked of what is on this disk.
    """
    model, gguf_file = split_name(model, gguf_file)
    if not is_repository(model):
        return _local(model, revision, gguf_file)
    found = _find(str(model), revision, offline, gguf_file)
    if found.missing:
        with found.open() as source:
            check(source)
        fetch(str(model), found.folder.name, found.missing, offline)
    return found.place


def find_evaluated(model: Path, offline: bool = False) -> Path:
    """Return a source of weights or a model file of elutq on this disk, downloaded first when it is one of the hub.

    Args:
        model: see ``find_checkpoint`` and ``find_model``. ``organisation/name`` is the repository's checkpoint; where
            it has none, its only GGUF file.
        offline: use only what has been downloaded before.

    Raises:
        ElutqError: see there.
    """
    repository, wanted = split_name(model, None)
    if not is_repository(repository):
        return model
    name = str(repository)
    if wanted is None and (fetch(name, None, SMALL_FILES, offline or is_offline(False)) / "config.json").exists():
        return find_checkpoint(repository, offline=offline)
    commit, present, where = list_present(name, None, offline)
    if wanted is None and not any(each.endswith(GGUF) for each in present):
        return find_checkpoint(repository, offline=offline)  # which says what it is instead
    file = choose_file(name, present, wanted or "", f"{name}:FILE", where)
    if is_cached(name, commit, file) or not is_ours(read_bytes(name, commit, file, START_BYTES)[0]):
        return find_checkpoint(repository, offline=offline, gguf_file=file)
    return find_model(name, file)


def open_headers(
    model: Path, revision: str | None = None, offline: bool = False, gguf_file: str | None = None
) -> ModelSource:
    """Open a model to look at everything but its weights, which are not downloaded.

    Args:
        model: see ``find_checkpoint``.
        revision: branch, tag or commit of the repository; None: its main branch.
        offline: use only what has been downloaded before.
        gguf_file: see ``find_checkpoint``.

    Raises:
        ElutqError: see ``find_checkpoint``.
    """
    model, gguf_file = split_name(model, gguf_file)
    if not is_repository(model):
        return open_source(_local(model, revision, gguf_file))
    return _find(str(model), revision, offline, gguf_file).open()


def _local(model: Path, revision: str | None, gguf_file: str | None) -> Path:
    check_revision(model, revision)
    if gguf_file is None:
        return model
    if not model.is_dir():
        raise ElutqError(f"{model} is neither a repository's name nor a folder: leave out the GGUF file (--gguf-file)")
    return model / choose_file(str(model), gguf_files(model), gguf_file, "the GGUF file (--gguf-file)")


@dataclass(frozen=True)
class _Found:
    """A model of a repository, as far as it is here.

    Attributes:
        folder: of the repository's files, named by the commit.
        place: of the model in it.
        missing: names of files that are not here yet.
        open: opens it, with what is not here looked at on the hub.
    """

    folder: Path
    place: Path
    missing: tuple[str, ...]
    open: Callable[[], ModelSource]


def _find(repository: str, revision: str | None, offline: bool, gguf_file: str | None) -> _Found:
    if gguf_file is None:
        folder, missing = _find_checkpoint(repository, revision, offline)
        return _Found(folder, folder, missing, lambda: _open(repository, folder, missing))
    some = () if is_offline(offline) else ("README.md", ".gitattributes")  # most have one or both
    folder = fetch(repository, revision, some, offline)
    _, present, where = list_present(repository, folder.name, offline)
    parts = part_names(choose_file(repository, present, gguf_file, f"{repository}:FILE", where))
    check_parts(repository, present, parts)
    place, missing = folder / parts[0], _missing(folder, parts)
    if not missing:
        return _Found(folder, place, (), lambda: open_source(place))
    return _Found(folder, place, missing, lambda: open_remote(repository, folder.name, parts))


def _find_checkpoint(repository: str, revision: str | None, offline: bool) -> tuple[Path, tuple[str, ...]]:
    """Return the folder of a repository's small files, and the names of the weight files that are not in it yet."""
    folder = fetch(repository, revision, SMALL_FILES, offline)
    fetch_if_there(repository, folder.name, "README.md", offline)
    refuse_adapter(folder, repository)
    if not _missing(folder, _weight_files(folder, [single for single, _ in LAYOUTS if (folder / single).exists()])):
        return folder, ()
    if is_offline(offline):
        raise not_cached(repository)
    _, names = list_files(repository, folder.name)
    check_names(repository, names)
    weights = _weight_files(folder, names)
    for name in weights:
        if name not in names:
            raise ElutqError(f"{repository} is incomplete: its index names {name!r:.80}, which it does not have")
    return folder, _missing(folder, weights)


def _weight_files(folder: Path, present: Collection[str]) -> tuple[str, ...]:
    """Return the names of a checkpoint's weight files: a single one that is present, or those of an index."""
    for single, index in LAYOUTS:
        if single in present:
            return (single,)
        if (folder / index).exists():
            return tuple(sorted(set(read_weight_map(folder / index).values())))
    return (SINGLE,)


def _missing(folder: Path, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if not (folder / name).exists())


def _open(repository: str, folder: Path, missing: tuple[str, ...]) -> Checkpoint:
    """Open a checkpoint of which some weight files are on the hub alone."""

    def look_at(name: str) -> RemoteWeights:
        return (RemotePyTorch if name.endswith(PYTORCH) else RemoteWeights)(repository, folder / name)

    return Checkpoint.open(folder, {name: look_at(name) for name in missing})
