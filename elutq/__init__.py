"""elutq: quantize LLaMA-family checkpoints with HLQ and run them on a CPU.

Three functions: ``quantize`` makes a model file by a ``Recipe``, ``load`` opens one, ``generate`` continues a text or a
conversation. What is wrong with the input is an ``ElutqError``, what the C runtime refuses a ``NativeError``.
"""

from elutq_cli.api import generate, load, quantize
from elutq_cli.pipeline.recipe import Recipe
from elutq_cli.version import __version__
from elutq_formats.errors import CheckpointError, ElutqError, FormatError, UnsupportedModelError
from elutq_native.errors import ClosedError, NativeError

__all__ = [
    "CheckpointError",
    "ClosedError",
    "ElutqError",
    "FormatError",
    "NativeError",
    "Recipe",
    "UnsupportedModelError",
    "__version__",
    "generate",
    "load",
    "quantize",
]
