"""What is asked of the Hugging Face hub, through its own client: a failure is one line that says what to do."""

import glob
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from elutq_formats.errors import ElutqError, FailureError, disk_error


def is_offline(wanted: bool) -> bool:
    """Whether the hub must not be asked: it is wanted so, or HF_HUB_OFFLINE says so."""
    from huggingface_hub import constants

    return wanted or constants.HF_HUB_OFFLINE


def fetch(repository: str, revision: str | None, names: Iterable[str], offline: bool) -> Path:
    """Bring files of a repository into the hub's cache, those that it has; return their folder, named by the commit.

    Files that have arrived whole are not fetched again, whatever interrupts the download.

    Args:
        repository: ``organisation/name``.
        revision: branch, tag or commit; None: the main branch.
        names: of the files.
        offline: use only what has been fetched before.

    Raises:
        ElutqError: the hub has no such repository or revision, does not give it to this user, or cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    patterns = [glob.escape(name) for name in names]
    with explaining(repository, revision, offline):
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns, local_files_only=offline))


def fetch_if_there(repository: str, commit: str, name: str, offline: bool) -> None:
    """Bring a file into the hub's cache that a model can do without."""
    with suppress(ElutqError):
        fetch(repository, commit, (name,), offline)


def list_files(repository: str, revision: str | None) -> tuple[str, tuple[str, ...]]:
    """Return the commit that a revision stands for, and the files that it has.

    Raises:
        ElutqError: see ``fetch``.
    """
    from huggingface_hub import HfApi

    with explaining(repository, revision, False):
        info = HfApi().model_info(repository, revision=revision)
        return str(info.sha), tuple(file.rfilename for file in info.siblings or ())


def list_present(repository: str, revision: str | None, offline: bool) -> tuple[str, tuple[str, ...], str]:
    """Return the commit, the files that can be had of it, and where they are, for messages: all, or those in the cache.

    Raises:
        ElutqError: see ``fetch``.
    """
    if not is_offline(offline):
        return *list_files(repository, revision), ""
    folder = fetch(repository, revision, (), offline)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return folder.name, tuple(names), " in the cache"


def is_cached(repository: str, commit: str, name: str) -> bool:
    """Whether a file is here already."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repository, name, revision=commit), str)


def read_bytes(repository: str, commit: str, name: str, n_bytes: int, first: int = 0) -> tuple[bytes, int]:
    """Return some bytes of a file on the hub, from ``first`` on, and the size of the whole.

    Raises:
        ElutqError: see ``fetch``.
    """
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented there, and not declared
        build_hf_headers,
        get_session,
        hf_raise_for_status,
    )

    with explaining(repository, commit, False):
        headers = {**build_hf_headers(), "Range": f"bytes={first}-{first + n_bytes - 1}"}
        url = hf_hub_url(repository, name, revision=commit)
        answer = get_session().get(url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
        hf_raise_for_status(answer)
        content = bytes(answer.content)
        size = answer.headers.get("Content-Range", "").rpartition("/")[2]
        if not size.isdecimal():  # a server that knows no ranges sends the whole
            return content[first : first + n_bytes], len(content)
        return content[:n_bytes], int(size)


@contextmanager
def explaining(repository: str, revision: str | None, offline: bool) -> Iterator[None]:
    """Turn whatever the client raises into one line."""
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except ElutqError:
        raise
    except HFValidationError as error:
        raise ElutqError(f"{repository} is neither on this disk nor the name of a repository") from error
    except Exception as error:  # the HTTP library, and so the class of its errors, changes with huggingface_hub
        raise _explain(error, repository, revision, offline) from error


def not_cached(repository: str) -> ElutqError:
    """Return the error of a run without the hub that lacks files."""
    from huggingface_hub import constants

    return ElutqError(
        f"{repository} is not in the cache {constants.HF_HUB_CACHE}, or not all of it: run once online "
        f"(without --offline{' and HF_HUB_OFFLINE' if constants.HF_HUB_OFFLINE else ''})"
    )


def _explain(error: Exception, repository: str, revision: str | None, offline: bool) -> ElutqError:
    """Return an error that says in one line why a request failed, and what to do."""
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
        return ElutqError(
            f"{repository} is gated: accept its terms at {endpoint}/{repository}, then log in with `hf auth login` "
            "or set HF_TOKEN"
        )
    if isinstance(error, RepositoryNotFoundError):
        return ElutqError(
            f"{repository} is neither on this disk nor a repository that {endpoint} lets you see: check the name, "
            "and log in with `hf auth login` if it is private"
        )
    if isinstance(error, RevisionNotFoundError):
        return ElutqError(f"{repository} has no revision {revision}: check its name (--revision)")
    if is_offline(offline):
        return not_cached(repository)
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return FailureError(f"{endpoint} answers {error.response.status_code} for {repository}: try again later")
    if isinstance(error, OSError) and not isinstance(error, LocalEntryNotFoundError) and error.strerror:
        return disk_error(f"cannot download {repository} to {constants.HF_HUB_CACHE}", error)
    return FailureError(
        f"{repository} is not on this disk, and {endpoint} cannot be reached: check the network and run the same "
        "command again, what was downloaded is kept (--offline uses no more than that)"
    )
