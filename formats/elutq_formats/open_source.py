"""Opens a source of weights by what it is: one branch a container."""

from pathlib import Path

from elutq_formats.checkpoint import Checkpoint
from elutq_formats.gguf_source import GGUFSource
from elutq_formats.gguf_start import is_gguf
from elutq_formats.source import ModelSource


def open_source(path: Path) -> ModelSource:
    """Open a checkpoint folder or a GGUF file.

    Raises:
        UnsupportedModelError: the model needs something that is not implemented.
        CheckpointError: it is neither, is incomplete or damaged, or contradicts itself.
    """
    return GGUFSource.open(path) if is_gguf(path) else Checkpoint.open(path)
