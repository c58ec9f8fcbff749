"""The C runtime behind elutq: models, engines and the quantizer's hot loops."""

from elutq_native.engine import MANY_ROWS, PIECE_TOKENS, REWIND_TOKENS, Engine, Run
from elutq_native.errors import (
    CancelledError,
    ClosedError,
    ContextFullError,
    ForkedError,
    NativeError,
    OverwrittenError,
)
from elutq_native.library import default_threads, ffi, lib, supported_kernels, survive_lost_pages
from elutq_native.model import CACHE_TYPES, Model, ModelInfo
from elutq_native.sequence import NativeSequence
from elutq_native.session import Session

__all__ = [
    "CACHE_TYPES",
    "MANY_ROWS",
    "PIECE_TOKENS",
    "REWIND_TOKENS",
    "CancelledError",
    "ClosedError",
    "ContextFullError",
    "Engine",
    "ForkedError",
    "Model",
    "ModelInfo",
    "NativeError",
    "NativeSequence",
    "OverwrittenError",
    "Run",
    "Session",
    "default_threads",
    "ffi",
    "lib",
    "supported_kernels",
    "survive_lost_pages",
]
