"""Checkpoints of the Hugging Face hub, by name: downloaded into its cache, only the files that are needed."""

import re
import sys
from pathlib import Path

from elutq_formats.errors import ElutqError

WANTED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*.safetensors",
)
"""What ``Checkpoint`` reads. Repositories often hold the same weights again in other formats."""

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def is_repository(model: Path) -> bool:
    """Whether this can only be a repository's name: ``organisation/name``, not a model file's, and nothing on disk."""
    return _REPOSITORY.fullmatch(str(model)) is not None and model.suffix != ".gguf" and not model.exists()


def find_checkpoint(model: Path, revision: str | None = None, offline: bool = False) -> Path:
    """Return the folder of a checkpoint, which is downloaded first when ``model`` names a repository.

    Files that have arrived whole are kept in the cache and not fetched again, whatever interrupts the download.

    Args:
        model: a folder, or ``organisation/name``.
        revision: branch, tag or commit of the repository; None: its main branch.
        offline: use only what has been downloaded before.

    Raises:
        ElutqError: the hub has no such repository or revision, does not give it to this user, or cannot be reached; or
            a revision is asked of a folder.
    """
    if is_repository(model):
        return download(str(model), revision, offline)
    if revision is not None and model.exists():
        raise ElutqError(f"{model} is on this disk and has no revisions: leave out --revision")
    return model


def download(repository: str, revision: str | None, offline: bool) -> Path:
    """Download a checkpoint into the hub's cache; return its folder there.

    Raises:
        ElutqError: see ``find_checkpoint``.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        return Path(
            snapshot_download(repository, revision=revision, allow_patterns=list(WANTED), local_files_only=offline)
        )
    except HFValidationError as error:
        raise ElutqError(f"{repository} is neither a folder nor the name of a repository") from error
    except Exception as error:  # the HTTP library, and so the class of its errors, changes with huggingface_hub
        raise ElutqError(_explain(error, repository, revision, offline)) from error


def _explain(error: Exception, repository: str, revision: str | None, offline: bool) -> str:
    """Say in one line why a download failed, and what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    endpoint = constants.ENDPOINT
    if isinstance(error, GatedRepoError):
        return (
            f"{repository} is gated: accept its terms at {endpoint}/{repository}, then log in with `hf auth login` "
            "or set HF_TOKEN"
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{repository} is neither a folder here nor a repository that {endpoint} lets you see: check the name, "
            "and log in with `hf auth login` if it is private"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{repository} has no revision {revision}: check --revision"
    if offline or constants.HF_HUB_OFFLINE:
        return (
            f"{repository} is not in the cache {constants.HF_HUB_CACHE}, or not all of it: run once without --offline"
        )
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return f"{endpoint} answers {error.response.status_code} for {repository}: try again later"
    if isinstance(error, OSError) and not isinstance(error, LocalEntryNotFoundError) and error.strerror:
        return f"cannot download {repository} to {constants.HF_HUB_CACHE}: {error.strerror}"
    return (
        f"{repository} is not a folder here, and {endpoint} cannot be reached: check the network and run the same "
        "command again, what was downloaded is kept"
    )
