"""The model file that a command runs: a path, or a name on the Hugging Face hub."""

from pathlib import Path
from typing import Annotated

import typer

from elutq_formats.errors import ElutqError

ModelArgument = Annotated[
    str | None, typer.Argument(metavar="MODEL", help="Model file of elutq, or org/name[:FILE] on the hub.")
]

HubRepository = Annotated[
    str | None,
    typer.Option("-hf", "--hf-repo", metavar="ORG/NAME[:FILE]", help="Model file on the hub, instead of MODEL."),
]

Offline = Annotated[bool, typer.Option("--offline", help="Use only what the hub's cache holds.")]


def check_given(model: str | None, hf_repo: str | None) -> None:
    """Refuse no model, or two.

    Raises:
        ElutqError: none or two are given.
    """
    if (model is None) == (hf_repo is None):
        raise ElutqError("give one model: a file of elutq, or org/name[:FILE] on the hub with -hf")


def find_model_file(model: str | None, hf_repo: str | None, offline: bool) -> Path:
    """Return the model file, which is downloaded first when it is one on the hub.

    Raises:
        ElutqError: none or two are given, or it cannot be had.
    """
    from elutq_cli.hub import find_model, is_repository

    check_given(model, hf_repo)
    if hf_repo is not None and not is_repository(Path(hf_repo.partition(":")[0])):
        raise ElutqError(f"-hf {hf_repo} is not a repository's name: write org/name, or org/name:FILE")
    return find_model(hf_repo or model or "", offline=offline)
