"""What is given in the place of a checkpoint folder, said by name: a file, an adapter, another format, its parent."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from elutq_formats.errors import CheckpointError, UnsupportedModelError
from elutq_formats.folder_texts import read_optional_json
from elutq_formats.pytorch_file import SAVE
from elutq_formats.stored_weights import INDEX, LAYOUTS, SINGLE

ADAPTER_CONFIG = "adapter_config.json"

_WEIGHTS = tuple(name for layout in LAYOUTS for name in layout)

_PYTORCH = (".bin", ".pth", ".pt", ".ckpt")
_OTHERS = {".h5": "TensorFlow", ".msgpack": "Flax", ".onnx": "ONNX", ".npz": "NumPy"}
_DEPTH, _MANY = 2, 10_000
"""Folders below the one that is given in which a checkpoint is looked for (the hub's cache has it under two); files."""


def refuse_path(path: Path) -> CheckpointError:
    """Return the error for what is no folder."""
    if not path.exists():
        return CheckpointError(f"{path} is not a checkpoint folder: there is nothing of that name")
    what = f"{path} is not a checkpoint folder"
    if path.suffix == ".safetensors":
        return CheckpointError(f"{what} but one of its files: give {path.parent}, with config.json and tokenizer.json")
    if path.suffix in (".gguf", *_PYTORCH):
        return CheckpointError(f"{what}: {_describe([path.name])}")
    return CheckpointError(f"{what} but a file")


def check_folder(folder: Path) -> None:
    """Check that a folder has a configuration, and weights or an index of them.

    Raises:
        CheckpointError: it has something else, which the message names.
    """
    weights = any((folder / name).is_file() for name in _WEIGHTS)
    if not weights or not (folder / "config.json").is_file():
        check_names(folder, _names(folder))


def refuse_adapter(folder: Path, place: object) -> None:
    """Refuse a LoRA adapter.

    Args:
        folder: with its files.
        place: what the user calls it.

    Raises:
        UnsupportedModelError: the folder is one.
    """
    if (folder / ADAPTER_CONFIG).exists():
        base = read_optional_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
        raise UnsupportedModelError(
            f"{place} is a LoRA adapter{f' of {base!r:.120}' if base else ''}: merge it into its base model first, "
            "with merge_and_unload of PEFT, and quantize the result"
        )


def check_names(place: object, names: Sequence[str]) -> None:
    """Check that files of these names may be a checkpoint.

    Args:
        place: where they are.
        names: with the folders that they are in.

    Raises:
        CheckpointError: they are something else.
    """
    weights = any(name in names for name in _WEIGHTS)
    if weights and "config.json" in names:
        return
    below = sorted({str(PurePosixPath(name).parent) for name in names if name.endswith("/config.json")})
    if weights:
        why = "it has weights, but no config.json: download that too"
    elif below:
        why = f"it has one in {_some(below)}: give that"
    else:
        why = _describe(names)
    raise CheckpointError(f"{place} is not a checkpoint: {why}")


def _describe(names: Sequence[str]) -> str:
    """Say what weights these files are, and what to do."""
    by_suffix: dict[str, list[str]] = {}
    for name in names:
        by_suffix.setdefault(PurePosixPath(name).suffix.lower(), []).append(name)
    if found := by_suffix.get(".safetensors"):
        return f"{_some(found)} belongs to neither {SINGLE} nor {INDEX}: download what is missing, or {SAVE}"
    if found := by_suffix.get(".gguf"):
        return f"{_some(found)} is GGUF: say which (--gguf-file), or give the file itself"
    if found := [name for suffix in _PYTORCH for name in by_suffix.get(suffix, ())]:
        return f"{_some(found)} is PyTorch's format: {SAVE}"
    for suffix, kind in _OTHERS.items():
        if found := by_suffix.get(suffix):
            return f"{_some(found)} is {kind}'s format: {SAVE}"
    if not names:
        return "it is empty"
    return f"it has neither {SINGLE} nor {INDEX}"


def _names(folder: Path) -> list[str]:
    """Return the files of a folder and of those below it, up to a limit."""
    found: list[str] = []
    for place, folders, files in os.walk(folder):
        here = Path(place).relative_to(folder)
        if len(here.parts) == _DEPTH or len(found) > _MANY:
            folders.clear()
        folders.sort()
        found += [(here / name).as_posix() for name in sorted(files)]
    return found


def _some(names: Iterable[str]) -> str:
    """Return the first few names."""
    first, *others = names
    return f"{first!r:.80}" + (f" (and {len(others)} more)" if others else "")
