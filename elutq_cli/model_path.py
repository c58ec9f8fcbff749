"""What a path has to be that is to be opened as a model file."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from elutq_formats.errors import ElutqError


def refuse_folder(path: str | os.PathLike[str]) -> None:
    """Tell those who give a folder where a model file is wanted which file to give, or how one is made.

    Raises:
        ElutqError: the path is a folder.
    """
    if Path(path).is_dir():
        raise ElutqError(f"{path} is not a model file: {_advice(Path(path))}")


def _advice(folder: Path) -> str:
    from elutq_formats.errors import CheckpointError
    from elutq_formats.folder_texts import read_optional_json
    from elutq_formats.gguf_start import GGUF, is_foreign_gguf, is_gguf

    files = [file for file in sorted(folder.glob(f"*{GGUF}")) if is_gguf(file) and file.stat().st_size]
    if ours := [file for file in files if not is_foreign_gguf(file)]:
        return f"it is a folder; give {ours[0]}"
    if files and not (folder / "config.json").exists():
        return f"elutq quantize {files[0]} -o model.gguf makes one of a GGUF file"
    config: Mapping[str, object] = {}
    with suppress(CheckpointError):  # quantize says what is wrong with it
        config = read_optional_json(folder / "config.json")
    if "quantization_config" in config:
        return f"elutq import {folder} -o model.gguf makes one of a quantized checkpoint"
    return f"elutq quantize {folder} -o model.gguf makes one of a checkpoint"
