"""Sequences of the C runtime: the keys and values of one text each."""

from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from elutq_native.handle import Handle
from elutq_native.library import MESSAGE_BYTES, check, check_use, ffi, lib
from elutq_native.model import CACHE_TYPES, Model


class NativeSequence:
    """The keys and values of one text over a model; engines append to it. Used by one thread at a time.

    Attributes:
        model: The model whose keys and values these are.
        context_size: Tokens that it can hold.
        cache_type: One of CACHE_TYPES.
    """

    def __init__(self, model: Model, context_size: int, cache_type: str = "f16", name: str = "sequence") -> None:
        """Makes an empty one.

        Args:
            model: Whose keys and values it will hold.
            context_size: Tokens that it can hold, 1 to the model's context length.
            cache_type: One of CACHE_TYPES.
            name: What messages call it.

        Raises:
            NativeError: The context is out of range, memory is short, or the model is closed.
        """
        handle, message = ffi.new("elutq_sequence **"), ffi.new("char[]", MESSAGE_BYTES)
        arguments = (context_size, CACHE_TYPES[cache_type])
        self._row_bytes = model.kv_bytes_per_token(cache_type) // (2 * model.info.n_layers * model.info.n_kv_heads)
        with model._handle.use() as pointer:
            check(lib.elutq_sequence_create(pointer, *arguments, handle, message, MESSAGE_BYTES), message)
        self._handle = Handle(handle[0], lib.elutq_sequence_destroy, name)
        self._name = name
        self.model = model
        self.context_size = context_size
        self.cache_type = cache_type

    @property
    def position(self) -> int:
        """Number of tokens in the context."""
        with self._handle.use() as sequence:
            return int(lib.elutq_sequence_position(sequence))

    def rewind(self, position: int) -> None:
        """Forgets the tokens from ``position`` on.

        Raises:
            ValueError: ``position`` is negative or past the current one.
        """
        with self._handle.use() as sequence:
            status = lib.elutq_sequence_rewind(sequence, max(position, 0))
        check_use(status, self._name)
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
        with self._handle.use() as sequence:
            status = lib.elutq_sequence_export(sequence, first, n_tokens, ffi.from_buffer("uint8_t[]", state))
        check_use(status, self._name)
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
        with self._handle.use() as sequence:
            status = lib.elutq_sequence_import(sequence, ffi.from_buffer("uint8_t[]", state), state.shape[3])
        check_use(status, self._name)
        full = status == lib.ELUTQ_ERROR_CONTEXT
        check(status, ffi.new("char[]", b"the context is full" if full else b"keys or values are not finite"))

    def close(self) -> None:
        """Frees the keys and values; a pass that appends to it in another thread ends first."""
        self._handle.close()

    def __enter__(self) -> "NativeSequence":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
