"""elutq: quantize LLaMA-family checkpoints with HLQ and run them on a CPU.

Three functions: ``quantize`` makes a model file, ``load`` opens one, ``generate`` continues a text or a conversation.
"""

from elutq_cli.api import generate, load, quantize
from elutq_cli.version import __version__

__all__ = ["__version__", "generate", "load", "quantize"]
