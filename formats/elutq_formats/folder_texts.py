"""The small files of a checkpoint folder: text and JSON, or a line that says what is in their place."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elutq_formats.errors import CheckpointError
from elutq_formats.lfs_pointer import refuse_pointer

CHAT_TEMPLATE = "chat_template.json"
"""Where checkpoints of several media have it, at times alone."""

NFC_CLASSES = ("Qwen2Tokenizer", "Qwen2TokenizerFast")


def read_text(path: Path) -> str:
    """Read a UTF-8 file, its byte order mark left out.

    Raises:
        CheckpointError: it cannot be read, is a Git LFS pointer, or is no text.
    """
    try:
        contents = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    refuse_pointer(path, contents)
    try:
        return contents.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is damaged: it is not UTF-8 text") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: see ``read_text``; or it is something else.
    """
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: it is not JSON") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged: it is not a JSON object")
    return value


def read_optional_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a file that is not there says nothing.

    Raises:
        CheckpointError: see ``read_json``.
    """
    return read_json(path) if path.exists() else {}


def read_tokenizer(folder: Path) -> str:
    """Read ``tokenizer.json``.

    Some that were made of other formats lost their normalizer. Where ``tokenizer_config.json`` names a class that
    composes characters (NFC) whatever the file says, as transformers builds it, it is put back.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        raise CheckpointError(
            f"{folder} has no tokenizer.json: write one with transformers' "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    text = read_text(path)
    if read_optional_json(folder / "tokenizer_config.json").get("tokenizer_class") not in NFC_CLASSES:
        return text
    settings = read_json(path)
    if settings.get("normalizer") is not None:
        return text
    return json.dumps(settings | {"normalizer": {"type": "NFC"}}, ensure_ascii=False)


def read_chat_template(folder: Path) -> tuple[str | None, Path]:
    """Read ``chat_template.jinja``, or the entry of ``tokenizer_config.json`` or of ``chat_template.json``.

    Of several templates it is the default one.

    Returns:
        The template, if there is one, and the file that has it, or would.

    Raises:
        CheckpointError: see ``read_json``.
    """
    own, place = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if own.exists():
        return read_text(own), own
    template = read_optional_json(place).get("chat_template")
    if template is None:
        template = read_optional_json(folder / CHAT_TEMPLATE).get("chat_template")
        place = place if template is None else folder / CHAT_TEMPLATE
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[0].get("template") if named else None
    return template if isinstance(template, str) else None, place


def read_card(folder: Path) -> Mapping[str, Any]:
    """Return what a checkpoint's README.md has in its front matter, as the hub reads it; nothing where it cannot be."""
    if not (folder / "README.md").exists():
        return {}
    from huggingface_hub import metadata_load

    try:
        return metadata_load(folder / "README.md") or {}
    except Exception:  # no text, or whatever a parser of YAML raises: then it says nothing
        return {}


def card_license(card: Mapping[str, Any]) -> str | None:
    """Return the licence that a card names, as the hub spells it."""
    found = card.get("license")
    if found == "other":
        found = card.get("license_name", found)
    return found if isinstance(found, str) and found else None


def card_base_models(card: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the repositories of the models that a card says its own was made from."""
    found = card.get("base_model")
    return tuple(name for name in (found if isinstance(found, list) else [found]) if isinstance(name, str) and name)
