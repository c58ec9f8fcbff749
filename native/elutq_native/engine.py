"""Engines of the C runtime: the threads that evaluate tokens of many sequences in one pass."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from numbers import Integral
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from elutq_native.errors import ClosedError, NativeError
from elutq_native.handle import Handle
from elutq_native.library import LARGEST, MESSAGE_BYTES, check, check_use, default_threads, ffi, lib, unsigned
from elutq_native.model import Model
from elutq_native.sequence import NativeSequence

OPERATIONS = ("embed", "prepare", "qkv", "position", "attend", "attn_output", "route", "gate_up", "down", "head")
"""What :meth:`Engine.profile` tells apart, in the order of a pass (``elutq_operation`` in elutq.h)."""


PIECE_TOKENS: int = lib.ELUTQ_PIECE_TOKENS
"""Tokens of a run that a pass takes at a time, counted from the run's first."""

MANY_ROWS: int = lib.ELUTQ_MANY_ROWS
"""Rows of a pass from which it takes all threads."""

REWIND_TOKENS: int = lib.ELUTQ_REWIND_TOKENS
"""A sequence of a model with windows can be taken back to so many tokens before the furthest position that it had."""


@dataclass(frozen=True)
class Run:
    """Tokens to append to a sequence.

    Attributes:
        sequence: Of the engine's model, in one run of a call at most.
        tokens: One or more token ids.
        n_logits: Logits of so many of the last tokens are wanted; 0: of none.
        hidden: ``(len(tokens), hidden_size)`` float32 to write the final hidden states of all tokens to, as the output
            norm leaves them; None: they are not wanted.
    """

    sequence: NativeSequence
    tokens: Sequence[int] | NDArray[np.int32]
    n_logits: int = 1
    hidden: NDArray[np.float32] | None = None


class Engine:
    """Threads and scratch for passes over a model. Used by one thread at a time; ``cancel`` and ``close`` by any.

    A second thread gets a NativeError. In a process forked from the one that opened it, an engine of several threads
    cannot evaluate: open another one there.

    Attributes:
        model: Evaluated.
        threads: Threads.
        decode_threads: Those of them that run passes of less than MANY_ROWS rows.
    """

    def __init__(self, model: Model, threads: int | None = None, n_sequences: int = 1, name: str = "engine") -> None:
        """Starts the threads.

        Args:
            model: To evaluate.
            threads: Threads (default: one for each physical core this process may use).
            n_sequences: How many decode in one pass, beside a piece of a prompt; more can be evaluated, in more passes.
            name: What messages call it.

        Raises:
            NativeError: A number is out of range, memory or threads are short, or the model is closed.
        """
        threads = unsigned(threads or default_threads(), "the number of threads")
        n_sequences = unsigned(n_sequences, "the number of sequences")
        handle, message = ffi.new("elutq_engine **"), ffi.new("char[]", MESSAGE_BYTES)
        with model._handle.use() as pointer:
            status = lib.elutq_engine_create(pointer, n_sequences, threads, handle, message, MESSAGE_BYTES)
            check(status, message)
        self._handle = Handle(handle[0], lib.elutq_engine_destroy, name, lib.elutq_engine_retire)
        self._counters: object = ffi.NULL
        self._name = name
        self.model = model
        self.threads = self.decode_threads = threads

    def use_for_decode(self, threads: int) -> None:
        """Has passes of less than MANY_ROWS rows run on so many of the threads; the others sleep. Changes no result.

        Raises:
            NativeError: There are not so many, or another thread uses the engine.
        """
        with self._handle.use() as engine:
            status = lib.elutq_engine_use_for_decode(engine, min(max(threads, 0), LARGEST))
        check_use(status, self._name)
        if status != lib.ELUTQ_OK:
            raise NativeError(status, f"{threads} threads of {self.threads} cannot be used", bad_input=True)
        self.decode_threads = threads

    def eval(self, runs: Sequence[Run]) -> list[NDArray[np.float32]]:
        """Appends tokens to sequences, all in the same passes, and computes logits.

        What a run computes does not depend on the others: it gets the same bits as alone.

        Args:
            runs: Each of another sequence.

        Returns:
            ``(n_logits, vocab_size)`` float32 for each run.

        Raises:
            ContextFullError: A context cannot hold its tokens.
            OverwrittenError: A call on more than REWIND_TOKENS failed, and left too little of a sequence to go on from.
            CancelledError: :meth:`cancel` was called.
            ClosedError: The engine or a sequence is closed, or the engine was closed meanwhile.
            NativeError: No tokens, a token outside the vocabulary, a sequence twice, another thread uses one of these,
                or the process was forked. No sequence has changed, whatever the error.
            ValueError: Tokens are no list of whole numbers, or an array for hidden states is of another shape or type
                or cannot be written to.
        """
        tokens = [_checked_tokens(run) for run in runs]
        logits = [np.empty((run.n_logits, self.model.vocab_size), np.float32) for run in runs]
        native, message = ffi.new("struct elutq_run[]", len(runs)), ffi.new("char[]", MESSAGE_BYTES)
        with ExitStack() as in_use:
            for run, entry, ids, wanted in zip(runs, native, tokens, logits, strict=True):
                entry.sequence = in_use.enter_context(run.sequence._handle.use())
                entry.tokens, entry.n_tokens = ffi.from_buffer("int32_t[]", ids), len(ids)
                entry.logits, entry.n_logits = ffi.from_buffer("float[]", wanted), len(wanted)
                if run.hidden is not None:
                    entry.hidden = ffi.from_buffer("float[]", self._checked_hidden(run))
            engine = in_use.enter_context(self._handle.use())
            status = lib.elutq_engine_eval(engine, native, len(runs), message, MESSAGE_BYTES)
        if status == lib.ELUTQ_ERROR_CANCELLED:
            self._handle.check()  # close() cancels too
        check(status, message)
        return logits

    def _checked_hidden(self, run: Run) -> NDArray[np.float32]:
        hidden, shape = run.hidden, (len(run.tokens), self.model.info.hidden_size)
        is_fit = hidden is not None and hidden.shape == shape and hidden.dtype == np.float32
        if hidden is None or not (is_fit and hidden.flags.c_contiguous and hidden.flags.writeable):
            raise ValueError(f"hidden states need a contiguous float32 array of shape {shape} to write to")
        return hidden

    def cancel(self) -> None:
        """Makes the :meth:`eval` under way raise CancelledError; nothing when there is none. Safe in any thread."""
        with suppress(ClosedError), self._handle.use() as engine:
            lib.elutq_engine_cancel(engine)

    def rehearse(self, first_layer: int, n_layers: int) -> float:
        """Takes a token through some layers, with the last ones through the head too, and forgets it.

        Returns:
            The seconds that it took.

        Raises:
            ClosedError: The engine is closed, or was meanwhile.
            CancelledError: :meth:`cancel` was called.
            NativeError: The model has not these layers, memory is short, or another thread uses the engine.
        """
        nanoseconds, message = ffi.new("uint64_t *"), ffi.new("char[]", MESSAGE_BYTES)
        first, number = unsigned(first_layer, "the first layer"), unsigned(n_layers, "the number of layers")
        with self._handle.use() as engine:
            status = lib.elutq_engine_rehearse(engine, first, number, nanoseconds, message, MESSAGE_BYTES)
        if status == lib.ELUTQ_ERROR_CANCELLED:
            self._handle.check()  # close() cancels too
        check(status, message)
        return int(nanoseconds[0]) / 1e9

    def read_weights(self) -> int:
        """Reads the bytes that decoding a token reads and does nothing with them; returns how many."""
        with self._handle.use() as engine:
            status = lib.elutq_engine_read_weights(engine, ffi.new("float *"))
        check_use(status, self._name)
        return self.model.info.bytes_per_token

    @contextmanager
    def profile(self) -> Iterator[dict[str, float]]:
        """Measures the passes within: the dict holds seconds per operation when the context ends.

        Raises:
            NativeError: Another thread uses the engine, at the begin or at the end.
        """
        seconds, counters = dict[str, float](), ffi.new("struct elutq_profile *")
        self._book(counters)
        self._counters = counters  # what C adds to lives as long as the engine, or until another takes its place
        try:
            yield seconds
        finally:
            for name in OPERATIONS:
                operation = getattr(lib, f"ELUTQ_{name.upper()}")
                seconds[name] = counters.nanoseconds[operation] / 1e9
            with suppress(ClosedError):
                self._book(ffi.NULL)

    def _book(self, counters: object) -> None:
        with self._handle.use() as engine:
            status = lib.elutq_engine_profile(engine, counters)
        check_use(status, self._name)

    def close(self) -> None:
        """Stops the threads; a call under way in another thread ends first, as if cancelled. Sequences go on."""
        self._handle.close()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _checked_tokens(run: Run) -> NDArray[np.int32]:
    """Returns a run's tokens as C takes them: what 32 bits do not hold is in no vocabulary either way."""
    tokens = run.tokens
    if not isinstance(tokens, np.ndarray):  # numpy makes floats of whole numbers that no type of its own holds together
        whole = isinstance(tokens, Sequence) and all(isinstance(token, Integral) for token in tokens)
        if not whole or any(isinstance(token, bool) for token in tokens):
            raise ValueError("tokens need a list of whole numbers")
        tokens = np.array([min(max(int(token), -1), np.iinfo(np.int32).max) for token in tokens], np.int32)
    if tokens.ndim != 1 or (tokens.size > 0 and tokens.dtype.kind not in "iu"):
        raise ValueError("tokens need a list of whole numbers")
    if tokens.dtype != np.int32:
        tokens = np.clip(tokens, 0 if tokens.dtype.kind == "u" else -1, np.iinfo(np.int32).max)
    return np.ascontiguousarray(tokens, dtype=np.int32)
