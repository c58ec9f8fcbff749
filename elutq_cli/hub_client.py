"""What is asked of the Hugging Face hub, through its own client: a failure is one line that says what to do."""

import glob
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from elutq_formats.errors import CheckpointError, ElutqError
from elutq_formats.safetensors_file import ALL_ROWS, DTYPES, Run


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
    with _explaining(repository, revision, offline):
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns, local_files_only=offline))


def list_files(repository: str, revision: str | None) -> tuple[str, tuple[str, ...]]:
    """Return the commit that a revision stands for, and the files that it has.

    Raises:
        ElutqError: see ``fetch``.
    """
    from huggingface_hub import HfApi

    with _explaining(repository, revision, False):
        info = HfApi().model_info(repository, revision=revision)
        return str(info.sha), tuple(file.rfilename for file in info.siblings or ())


def is_cached(repository: str, commit: str, name: str) -> bool:
    """Whether a file is here already."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repository, name, revision=commit), str)


def read_start(repository: str, commit: str, name: str, n_bytes: int) -> tuple[bytes, int]:
    """Return the first bytes of a file on the hub, and the size of the whole.

    Raises:
        ElutqError: see ``fetch``.
    """
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented there, and not declared
        build_hf_headers,
        get_session,
        hf_raise_for_status,
    )

    with _explaining(repository, commit, False):
        headers = {**build_hf_headers(), "Range": f"bytes=0-{n_bytes - 1}"}
        url = hf_hub_url(repository, name, revision=commit)
        answer = get_session().get(url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
        hf_raise_for_status(answer)
        content = bytes(answer.content)
        size = answer.headers.get("Content-Range", "").rpartition("/")[2]
        return content[:n_bytes], int(size) if size.isdecimal() else len(content)


class RemoteWeights:
    """A weight file on the hub, of which its header alone is asked for, when it is looked at: some kilobytes.

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
        with _explaining(self._repository, commit, False):
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
        raise CheckpointError(f"{self.path.name} of {self._repository} has not been downloaded")

    def pieces(self, name: str) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield nothing: until its bytes are here, a head that is declared to be the embedding counts as equal."""
        return iter(())


@contextmanager
def _explaining(repository: str, revision: str | None, offline: bool) -> Iterator[None]:
    """Turn whatever the client raises into one line."""
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except ElutqError:
        raise
    except HFValidationError as error:
        raise ElutqError(f"{repository} is neither on this disk nor the name of a repository") from error
    except Exception as error:  # the HTTP library, and so the class of its errors, changes with huggingface_hub
        raise ElutqError(_explain(error, repository, revision, offline)) from error


def not_cached(repository: str) -> ElutqError:
    """Return the error of a run without the hub that lacks files."""
    from huggingface_hub import constants

    return ElutqError(
        f"{repository} is not in the cache {constants.HF_HUB_CACHE}, or not all of it: run once without --offline"
        + (" and HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else "")
    )


def _explain(error: Exception, repository: str, revision: str | None, offline: bool) -> str:
    """Say in one line why a request failed, and what to do."""
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
            f"{repository} is neither on this disk nor a repository that {endpoint} lets you see: check the name, "
            "and log in with `hf auth login` if it is private"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{repository} has no revision {revision}: check --revision"
    if is_offline(offline):
        return str(not_cached(repository))
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return f"{endpoint} answers {error.response.status_code} for {repository}: try again later"
    if isinstance(error, OSError) and not isinstance(error, LocalEntryNotFoundError) and error.strerror:
        return f"cannot download {repository} to {constants.HF_HUB_CACHE}: {error.strerror}"
    return (
        f"{repository} is not on this disk, and {endpoint} cannot be reached: check the network and run the same "
        "command again, what was downloaded is kept (--offline uses no more than that)"
    )
