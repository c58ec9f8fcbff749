"""How a GGUF file begins: whether one is GGUF, and whether elutq made it, told by its first bytes alone."""

from pathlib import Path

from elutq_formats.constants import GGUF_MAGIC
from elutq_formats.tensor_record import HLQ_VERSION_KEY

GGUF = ".gguf"

START_BYTES = 1 << 16
"""Of a model file, in which the keys before the tokenizer lie."""


def is_gguf(path: Path) -> bool:
    """Whether a path leads to a GGUF file by its name or, as in some caches, its contents alone."""
    return not path.is_dir() and path.exists() and (path.suffix == GGUF or _begins_as_gguf(_read_start(path)))


def is_foreign_gguf(path: Path) -> bool:
    """Whether a file is a GGUF file that other tools made: a source of weights, and no model file of elutq."""
    start = _read_start(path)
    return _begins_as_gguf(start) and not is_ours(start)


def is_ours(start: bytes) -> bool:
    """Whether a file that begins so is a GGUF file of elutq, which names the version of its matrices before all else.

    ``ModelFile`` says so for sure; this is to know before gigabytes are downloaded, or the whole header is read.
    """
    return _begins_as_gguf(start) and HLQ_VERSION_KEY.encode() in start


def _begins_as_gguf(start: bytes) -> bool:
    return start.startswith(GGUF_MAGIC.to_bytes(4, "little"))


def _read_start(path: Path) -> bytes:
    """Return how a file begins; nothing of what is no file or cannot be read."""
    if not path.is_file():
        return b""
    try:
        with path.open("rb") as file:
            return file.read(START_BYTES)
    except OSError:
        return b""
