"""Sequences of the C runtime: the keys and values of one text each."""

from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from elutq_native.handle import Handle
from elutq_native.library import LARGEST, MESSAGE_BYTES, check, check_use, ffi, lib, unsigned
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
        arguments = (unsigned(context_size, "a context's size"), CACHE_TYPES[cache_type])
        # A token's, of layers without a window and of those with one; the model may be closed before the sequence.
        self._token_bytes = model.state_bytes(1, 0, cache_type), model.state_bytes(0, 1, cache_type)
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

    @property
    def oldest(self) -> int:
        """The first position whose keys and values all layers hold: 0 until layers with a window give some up."""
        with self._handle.use() as sequence:
            return int(lib.elutq_sequence_oldest(sequence))

    def can_rewind(self, position: int) -> bool:
        """Whether ``rewind`` can forget the tokens from a position on: at least of REWIND_TOKENS, or all.

        Those are counted back from the furthest position that passes have come to.
        """
        with self._handle.use() as sequence:
            return position == 0 or position >= lib.elutq_sequence_earliest(sequence)

    def rewind(self, position: int) -> None:
        """Forgets the tokens from ``position`` on.

        Raises:
            OverwrittenError: Layers with a window no longer hold what the next token would attend to.
            ValueError: ``position`` is negative or past the current one.
        """
        with self._handle.use() as sequence:
            status = lib.elutq_sequence_rewind(sequence, position if 0 <= position <= LARGEST else LARGEST)
        check_use(status, self._name)
        if status == lib.ELUTQ_ERROR_ARGUMENT:
            raise ValueError(f"cannot rewind to {position}: the context holds {self.position} tokens")
        check(status, ffi.new("char[]", b"layers with a window no longer hold the keys before that position"))

    def state_bytes(self, first: int, n_tokens: int, oldest: int) -> int:
        """Bytes of the keys and values of ``n_tokens`` positions from ``first`` on.

        Args:
            first: First position.
            n_tokens: How many.
            oldest: First position of which layers with a window have them.
        """
        n_recent = min(n_tokens, max(0, first + n_tokens - oldest))
        return n_tokens * self._token_bytes[0] + n_recent * self._token_bytes[1]

    def export_state(self, first: int, n_tokens: int) -> NDArray[np.uint8]:
        """Returns the keys and values of ``n_tokens`` positions from ``first`` on.

        Returns:
            ``(state_bytes(first, n_tokens, oldest),)`` bytes as this type of cache keeps them: of each layer keys, then
            values, of each head those of the positions in order, in layers with a window of those from ``oldest`` on.

        Raises:
            ValueError: The context does not hold them.
        """
        if first < 0 or n_tokens < 0 or first + n_tokens > self.position:
            raise ValueError(
                f"positions {first} to {first + n_tokens} are not among the {self.position} in the context"
            )
        state = np.empty(self.state_bytes(first, n_tokens, self.oldest), np.uint8)
        with self._handle.use() as sequence:
            status = lib.elutq_sequence_export(
                sequence, first, n_tokens, ffi.from_buffer("uint8_t[]", state), state.size
            )
        check_use(status, self._name)
        check(status, ffi.new("char[]", b"the context does not hold these tokens any more"))
        return state

    def import_state(self, state: NDArray[np.uint8], n_tokens: int) -> None:
        """Appends tokens whose keys and values are known.

        The last states of some may lack what a next token attends to: ``can_rewind(position)`` tells.

        Args:
            state: From ``export_state`` of the same model, type of cache and positions.
            n_tokens: Of how many tokens it is.

        Raises:
            ValueError: It is not of as many bytes as ``export_state`` returns for some ``oldest``.
            ContextFullError: The context cannot hold them; it is left as it was.
            NativeError: A value is not finite; the context is left as it was.
        """
        state = np.ascontiguousarray(state, dtype=np.uint8)
        n_recent = self._recent_tokens(state.size, n_tokens)
        with self._handle.use() as sequence:
            status = lib.elutq_sequence_import(
                sequence, ffi.from_buffer("uint8_t[]", state), min(n_tokens, LARGEST), min(n_recent, LARGEST)
            )
        check_use(status, self._name)
        full = status == lib.ELUTQ_ERROR_CONTEXT
        check(status, ffi.new("char[]", b"the context is full" if full else b"keys or values are not finite"))

    def _recent_tokens(self, n_bytes: int, n_tokens: int) -> int:
        """Returns of how many of a state's tokens layers with a window have keys and values."""
        whole, recent = self._token_bytes
        n_recent = (n_bytes - n_tokens * whole) // recent if recent else n_tokens
        if not 0 <= n_recent <= n_tokens or n_tokens * whole + n_recent * recent != n_bytes:
            raise ValueError(f"a state of {n_bytes} bytes does not fit {n_tokens} tokens of the model")
        return n_recent

    def close(self) -> None:
        """Frees the keys and values; a pass that appends to it in another thread ends first."""
        self._handle.close()

    def __enter__(self) -> "NativeSequence":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
