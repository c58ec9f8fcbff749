"""Models and sessions of the C runtime."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from elutq_native.errors import ClosedError
from elutq_native.handle import Handle
from elutq_native.library import MESSAGE_BYTES, check, check_use, default_threads, ffi, lib

CACHE_TYPES = {"f16": lib.ELUTQ_CACHE_F16, "q8": lib.ELUTQ_CACHE_Q8}
"""How a session keeps keys and values: fp16, or int8 with one scale for each head and token, half the bytes."""

OPERATIONS = ("embed", "prepare", "qkv", "position", "attend", "attn_output", "gate_up", "down", "head")
"""What :meth:`Session.profile` tells apart, in the order of a pass (``elutq_operation`` in elutq.h)."""


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
    file_bytes: int
    bytes_per_token: int
    isa: str


class Model:
    """A model file, mapped read-only; any number of sessions may share it."""

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
        name = ffi.NULL if isa is None else isa.encode()
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

    def session(
        self, context_size: int | None = None, threads: int | None = None, cache_type: str = "f16"
    ) -> "Session":
        """Opens a session with a KV cache of ``context_size`` tokens (default: the model's context length).

        Args:
            context_size: Tokens that the cache holds.
            threads: Threads (default: one for each physical core this process may use).
            cache_type: One of CACHE_TYPES.

        Raises:
            NativeError: The context or the number of threads is out of range, memory is short, or the model is closed.
        """
        return Session(self, context_size or self.context_length, threads or default_threads(), cache_type)

    def check_open(self) -> None:
        """Raises ClosedError when the model is closed."""
        self._handle.check()

    def close(self) -> None:
        """Gives the file up; sessions over it go on, and it is unmapped when the last of them is closed."""
        self._handle.close()

    def __enter__(self) -> "Model":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Session:
    """One conversation over a model: KV cache, scratch and threads. Used by one thread at a time.

    A second thread gets a NativeError; ``cancel`` and ``close`` are safe in any. In a process forked from the one that
    opened it, a session of several threads cannot evaluate: open another one there.
    """

    def __init__(self, model: Model, context_size: int, threads: int, cache_type: str) -> None:
        handle, message = ffi.new("elutq_session **"), ffi.new("char[]", MESSAGE_BYTES)
        arguments = (context_size, CACHE_TYPES[cache_type], threads)
        self._row_bytes = model.kv_bytes_per_token(cache_type) // (2 * model.info.n_layers * model.info.n_kv_heads)
        with model._handle.use() as pointer:
            check(lib.elutq_session_create(pointer, *arguments, handle, message, MESSAGE_BYTES), message)
        self._handle = Handle(handle[0], lib.elutq_session_destroy, "session", lib.elutq_session_cancel)
        self._counters = ffi.new("struct elutq_profile *")
        self.model = model
        self.context_size = context_size
        self.threads = threads
        self.cache_type = cache_type

    @property
    def position(self) -> int:
        """Number of tokens in the context."""
        with self._handle.use() as session:
            return int(lib.elutq_session_position(session))

    def eval(self, tokens: Sequence[int] | NDArray[np.int32], all_logits: bool = False) -> NDArray[np.float32]:
        """Appends tokens to the context and computes logits.

        Args:
            tokens: One or more token ids.
            all_logits: Logits of every given token, instead of the last one's.

        Returns:
            ``(vocab_size,)`` float32, or ``(len(tokens), vocab_size)`` with ``all_logits``.

        Raises:
            ContextFullError: The context cannot hold the tokens; it is left as it was.
            CancelledError: :meth:`cancel` was called; the context is left as it was.
            ClosedError: The session is closed, or was closed meanwhile.
            NativeError: No tokens, a token outside the vocabulary, or another thread uses the session.
        """
        ids = np.ascontiguousarray(tokens, dtype=np.int32)
        logits = np.empty((len(ids) if all_logits else 1, self.model.vocab_size), np.float32)
        message = ffi.new("char[]", MESSAGE_BYTES)
        with self._handle.use() as session:
            status = lib.elutq_session_eval(
                session,
                ffi.from_buffer("int32_t[]", ids),
                len(ids),
                ffi.from_buffer("float[]", logits),
                len(logits),
                message,
                MESSAGE_BYTES,
            )
        if status == lib.ELUTQ_ERROR_CANCELLED:
            self._handle.check()  # close() cancels too
        check(status, message)
        return logits if all_logits else logits[0]

    def rewind(self, position: int) -> None:
        """Forgets the tokens from ``position`` on.

        Raises:
            ValueError: ``position`` is negative or past the current one.
        """
        with self._handle.use() as session:
            status = lib.elutq_session_rewind(session, max(position, 0))
        check_use(status, "session")
        if position < 0 or status != lib.ELUTQ_OK:
            raise ValueError(f"cannot rewind to {position}: the context holds {self.position} tokens")

    def state_shape(self, n_tokens: int) -> tuple[int, int, int, int, int]:
        """Shape of what ``export_state`` returns: ``(n_layers, 2, n_kv_heads, n_tokens, row_bytes)``."""
        return (self.model.info.n_layers, 2, self.model.info.n_kv_heads, n_tokens, self._row_bytes)

    def export_state(self, first: int, n_tokens: int) -> NDArray[np.uint8]:
        """Returns the keys and values of ``n_tokens`` positions from ``first`` on.

        Returns:
            Bytes as this type of cache keeps them, of shape ``state_shape(n_tokens)``: keys, then values of each layer.

        Raises:
            ValueError: The context does not hold them.
        """
        if first < 0 or n_tokens < 0 or first + n_tokens > self.position:
            raise ValueError(
                f"positions {first} to {first + n_tokens} are not among the {self.position} in the context"
            )
        state = np.empty(self.state_shape(n_tokens), np.uint8)
        with self._handle.use() as session:
            status = lib.elutq_session_export(session, first, n_tokens, ffi.from_buffer("uint8_t[]", state))
        check_use(status, "session")
        check(status, ffi.new("char[]", b"the context does not hold these tokens"))
        return state

    def import_state(self, state: NDArray[np.uint8]) -> None:
        """Appends tokens whose keys and values are known.

        Args:
            state: From ``export_state`` of the same model, type of cache and positions.

        Raises:
            ValueError: The shape is not one that ``export_state`` returns.
            ContextFullError: The context cannot hold them; it is left as it was.
            NativeError: A value is not finite; the context is left as it was.
        """
        if state.ndim != 5 or state.shape != self.state_shape(state.shape[3]):
            raise ValueError(f"a state of shape {state.shape} does not fit the model")
        state = np.ascontiguousarray(state, dtype=np.uint8)
        with self._handle.use() as session:
            status = lib.elutq_session_import(session, ffi.from_buffer("uint8_t[]", state), state.shape[3])
        check_use(status, "session")
        full = status == lib.ELUTQ_ERROR_CONTEXT
        check(status, ffi.new("char[]", b"the context is full" if full else b"keys or values are not finite"))

    def cancel(self) -> None:
        """Makes a running or the next :meth:`eval` raise CancelledError. Safe in any thread; nothing when closed."""
        with suppress(ClosedError), self._handle.use() as session:
            lib.elutq_session_cancel(session)

    def read_weights(self) -> int:
        """Reads the bytes that decoding a token reads and does nothing with them; returns how many."""
        with self._handle.use() as session:
            status = lib.elutq_session_read_weights(session, ffi.new("float *"))
        check_use(status, "session")
        return self.model.info.bytes_per_token

    @contextmanager
    def profile(self) -> Iterator[dict[str, float]]:
        """Measures the passes within: the dict holds seconds per operation when the context ends."""
        seconds = dict[str, float]()
        with self._handle.use() as session:
            ffi.buffer(self._counters)[:] = bytes(ffi.sizeof("struct elutq_profile"))
            lib.elutq_session_profile(session, self._counters)
        try:
            yield seconds
        finally:
            with suppress(ClosedError), self._handle.use() as session:
                lib.elutq_session_profile(session, ffi.NULL)
            for name in OPERATIONS:
                operation = getattr(lib, f"ELUTQ_{name.upper()}")
                seconds[name] = self._counters.nanoseconds[operation] / 1e9

    def close(self) -> None:
        """Stops the threads and frees the cache; a call under way in another thread ends first, as if cancelled."""
        self._handle.close()

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
