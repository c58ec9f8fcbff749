"""Models of the C runtime."""

import os
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from elutq_native.errors import NativeError
from elutq_native.handle import Handle
from elutq_native.library import MESSAGE_BYTES, check, default_threads, ffi, lib, unsigned

if TYPE_CHECKING:
    from elutq_native.session import Session

CACHE_TYPES = {"f16": lib.ELUTQ_CACHE_F16, "q8": lib.ELUTQ_CACHE_Q8}
"""How keys and values are kept: fp16, or int8 with one scale for each head and token, half the bytes."""


@dataclass(frozen=True)
class ModelInfo:
    """What a model file holds, as the runtime sees it. Sizes in bytes."""

    vocab_size: int
    context_length: int
    hidden_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    sliding_window: int
    n_sliding_layers: int
    file_bytes: int
    bytes_per_token: int
    isa: str


class Model:
    """A model file, mapped read-only; any number of engines and sequences may share it."""

    def __init__(self, path: str | os.PathLike[str], isa: str | None = None) -> None:
        """Maps and validates a model file.

        A file cut short beneath a running evaluation, or a disk that cannot be read, ends the process by SIGBUS, unless
        :func:`survive_lost_pages` was called.

        Args:
            path: An elutq GGUF file.
            isa: Kernels to use (``scalar``, ``avx2``, ...); the environment variable ``ELUTQ_ISA`` when None, and the
                best this CPU has when that is not set either.

        Raises:
            NativeError: The file cannot be used, or the kernels do not exist here.
        """
        isa = isa or os.environ.get("ELUTQ_ISA") or None
        handle, message = ffi.new("elutq_model **"), ffi.new("char[]", MESSAGE_BYTES)
        if "\0" in os.fsdecode(path) + (isa or ""):
            raise NativeError(lib.ELUTQ_ERROR_ARGUMENT, "no path or name of kernels has a NUL in it", bad_input=True)
        name = ffi.NULL if isa is None else os.fsencode(isa)
        check(lib.elutq_model_open(os.fsencode(path), name, handle, message, MESSAGE_BYTES), message, os.fspath(path))
        self._handle = Handle(handle[0], lib.elutq_model_close, "model")
        info = ffi.new("struct elutq_model_info *")
        lib.elutq_model_describe(handle[0], info)
        fields = {name: getattr(info, name) for name in ModelInfo.__dataclass_fields__ if name != "isa"}
        self.info = ModelInfo(**fields, isa=ffi.string(info.isa).decode())

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.info.vocab_size

    @property
    def context_length(self) -> int:
        """Tokens the model was trained for."""
        return self.info.context_length

    def kv_bytes_per_token(self, cache_type: str = "f16") -> int:
        """Bytes of a token's keys and values in all layers, for one of CACHE_TYPES."""
        with self._handle.use() as model:
            return int(lib.elutq_model_kv_bytes(model, CACHE_TYPES[cache_type]))

    def cache_bytes(self, context_size: int, cache_type: str = "f16") -> int:
        """Bytes that a sequence has for keys and values: layers that have a window hold little more than that."""
        context_size = unsigned(context_size, "a context's size")
        with self._handle.use() as model:
            return int(lib.elutq_model_cache_bytes(model, context_size, CACHE_TYPES[cache_type]))

    def attended_bytes(self, n_tokens: int, cache_type: str = "f16") -> int:
        """Bytes of keys and values that decoding a token reads after ``n_tokens`` others."""
        return self.state_bytes(n_tokens, min(n_tokens, self.info.sliding_window), cache_type)

    def state_bytes(self, n_tokens: int, n_recent: int, cache_type: str = "f16") -> int:
        """Bytes of the keys and values of tokens (``NativeSequence.export_state``).

        Args:
            n_tokens: Of layers without a window.
            n_recent: Of layers that have one.
            cache_type: One of CACHE_TYPES.
        """
        n_sliding = self.info.n_sliding_layers
        n_rows = (self.info.n_layers - n_sliding) * n_tokens + n_sliding * n_recent
        return self.kv_bytes_per_token(cache_type) // self.info.n_layers * n_rows

    def session(
        self, context_size: int | None = None, threads: int | None = None, cache_type: str = "f16"
    ) -> "Session":
        """Opens a session: an engine with one sequence.

        Args:
            context_size: Tokens that its context holds (default: the model's context length).
            threads: Threads (default: one for each physical core this process may use).
            cache_type: One of CACHE_TYPES.

        Raises:
            NativeError: The context or the number of threads is out of range, memory is short, or the model is closed.
        """
        from elutq_native.session import Session  # which is built on models

        return Session(self, context_size or self.context_length, threads or default_threads(), cache_type)

    def check_open(self) -> None:
        """Raises ClosedError when the model is closed."""
        self._handle.check()

    def close(self) -> None:
        """Gives the file up; engines and sequences go on, and it is unmapped when the last of them is closed."""
        self._handle.close()

    def __enter__(self) -> "Model":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
