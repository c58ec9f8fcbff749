"""What a path has to be that is to be opened as a model file."""

import os
from pathlib import Path

from elutq_formats.errors import ElutqError


def refuse_folder(path: str | os.PathLike[str]) -> None:
    """Tell those who give a checkpoint where a model file is wanted how one is made of it.

    Raises:
        ElutqError: the path is a folder.
    """
    if Path(path).is_dir():
        raise ElutqError(f"{path} is not a model file: elutq quantize {path} -o model.gguf makes one of a checkpoint")
