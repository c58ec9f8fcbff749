"""The C runtime behind elutq: models, sessions and the quantizer's hot loops."""

from elutq_native.errors import CancelledError, ClosedError, ContextFullError, NativeError
from elutq_native.library import default_threads, ffi, lib, supported_kernels, survive_lost_pages
from elutq_native.model import CACHE_TYPES, Model, ModelInfo, Session

__all__ = [
    "CACHE_TYPES",
    "CancelledError",
    "ClosedError",
    "ContextFullError",
    "Model",
    "ModelInfo",
    "NativeError",
    "Session",
    "default_threads",
    "ffi",
    "lib",
    "supported_kernels",
    "survive_lost_pages",
]
