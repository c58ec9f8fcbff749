"""An engine with one sequence: for those who evaluate one text at a time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from elutq_native.engine import Engine, Run
from elutq_native.errors import NativeError
from elutq_native.library import check_use
from elutq_native.model import Model
from elutq_native.sequence import NativeSequence


class Session:
    """One text over a model, and the threads that evaluate it. Used by one thread at a time.

    Attributes:
        model: Evaluated.
        context_size: Tokens that the context holds.
        threads: Threads.
        cache_type: One of CACHE_TYPES.
    """

    def __init__(self, model: Model, context_size: int, threads: int, cache_type: str) -> None:
        """Starts it; arguments and errors are those of ``Model.session``."""
        self._sequence = NativeSequence(model, context_size, cache_type, "session")
        self._engine = Engine(model, threads, name="session")
        self.rewind, self.can_rewind = self._sequence.rewind, self._sequence.can_rewind
        self.export_state, self.import_state = self._sequence.export_state, self._sequence.import_state
        self.cancel, self.read_weights = self._engine.cancel, self._engine.read_weights
        self.model = model
        self.context_size = context_size
        self.threads = threads
        self.cache_type = cache_type

    @property
    def position(self) -> int:
        """Number of tokens in the context."""
        return self._sequence.position

    def eval(self, tokens: Sequence[int] | NDArray[np.int32], all_logits: bool = False) -> NDArray[np.float32]:
        """Appends tokens to the context and computes logits; errors are those of ``Engine.eval``.

        Args:
            tokens: One or more token ids.
            all_logits: Logits of every given token, instead of the last one's.

        Returns:
            ``(vocab_size,)`` float32, or ``(len(tokens), vocab_size)`` with ``all_logits``.
        """
        try:
            logits = self._engine.eval([Run(self._sequence, tokens, len(tokens) if all_logits else 1)])[0]
        except NativeError as error:
            check_use(error.status, "session")  # whose engine and sequence both are
            raise
        return logits if all_logits else logits[0]

    @contextmanager
    def profile(self) -> Iterator[dict[str, float]]:
        """Measures the passes within; see ``Engine.profile``."""
        with self._engine.profile() as seconds:
            yield seconds

    def close(self) -> None:
        """Stops the threads and frees the cache; a call under way in another thread ends first, as if cancelled."""
        self._engine.close()
        self._sequence.close()

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
