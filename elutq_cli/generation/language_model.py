"""A model ready to generate: file, tokenizer, and one session whose context is reused from text to text."""

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elutq_cli.generation.context import ContextOverflowError, check_context, checked_cache_type, fit_context
from elutq_cli.generation.template import ChatTemplate, Message
from elutq_cli.machine.memory import available_memory
from elutq_cli.token_prefix import common_length
from elutq_formats.errors import ElutqError
from elutq_formats.model_file import ModelFile
from elutq_native import CancelledError, Model, Session, default_threads, lib

WHAT_A_PROMPT_IS = "a prompt is a text, a sequence of token ids, or a list of messages"

PREFILL_TOKENS = 512
"""Tokens of a prompt that are evaluated at once: what was done before an interruption is kept."""

BYTES_PER_THREAD = 4 << 20
"""Weights that a token reads, for another thread to gain more than the threads lose by waiting for each other."""


def choose_threads(model: Model) -> int:
    """Return how many threads generate best: one for each physical core, fewer for a very small model."""
    return max(1, min(default_threads(), model.info.bytes_per_token // BYTES_PER_THREAD))


class LanguageModel:
    """An open model file with one session; used by one thread at a time, except for ``cancel``.

    Attributes:
        path: the file.
        file: its metadata.
        tokenizer: its tokenizer.
        native: the file, mapped by the C runtime.
        cache_type: how keys and values are kept.
        user: whoever evaluated last, so that texts that take turns notice.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        ctx_size: int | None = None,
        threads: int | None = None,
        cache_type: str = "f16",
        chat_template: str | None = None,
    ) -> None:
        """Open a model file; the session starts with the first text, so that its context can still be chosen.

        Args:
            path: a model file of elutq.
            ctx_size: tokens in the context; None: as many as the model and this machine's memory allow.
            threads: threads; None: one for each physical core this process may use.
            cache_type: keys and values as f16, or as q8 in half the memory.
            chat_template: Jinja in the place of the file's chat template; None: that one, if there is any.

        Raises:
            ElutqError: the file is damaged or not one of elutq, or the context or the type of cache is impossible.
            NativeError: the C runtime refuses the file.
        """
        if threads is not None and threads < 1:
            raise ElutqError(f"threads is {threads}: it must be at least 1")
        self.cache_type = checked_cache_type(cache_type)
        self.path = Path(path)
        if self.path.is_dir():
            raise ElutqError(
                f"{path} is not a model file: elutq quantize {path} -o model.gguf makes one of a checkpoint"
            )
        self.file = ModelFile.open(self.path)
        self.tokenizer = self.file.tokenizer()
        self.native = Model(self.path)
        self._chat_template = chat_template
        self._threads = threads
        self._session: Session | None = None
        self._tokens: list[int] = []
        self._cancelling = threading.Lock()
        self._evaluating: threading.Event | None = None
        self.user: object = None
        if ctx_size is not None:
            self.start(ctx_size)

    @property
    def session(self) -> Session:
        """The session, started when it is not yet."""
        return self._session or self.start()

    @property
    def ctx_size(self) -> int:
        """Tokens that the context holds."""
        return self.session.context_size

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens in the context."""
        return tuple(self._tokens)

    @property
    def kv_bytes(self) -> int:
        """Bytes of the whole context's keys and values."""
        return self.ctx_size * self.native.kv_bytes_per_token(self.cache_type)

    @cached_property
    def chat_template(self) -> ChatTemplate | None:
        """The chat template that was given, or the file's own.

        Raises:
            ElutqError: it is not valid Jinja.
        """
        source = self.file.chat_template if self._chat_template is None else self._chat_template
        return None if source is None else ChatTemplate.for_tokenizer(source, self.tokenizer)

    @property
    def required_chat_template(self) -> ChatTemplate:
        """The chat template, for those who cannot do without.

        Raises:
            ElutqError: there is none, or it is not valid Jinja.
        """
        if self.chat_template is None:
            raise ElutqError(f"{self.path.name} has no chat template: give a text instead of messages")
        return self.chat_template

    def start(self, ctx_size: int | None = None) -> Session:
        """Start the session, or start it again with another context.

        Args:
            ctx_size: tokens in the context; None: as many as the model and this machine's memory allow.

        Raises:
            ElutqError: the context is impossible.
            NativeError: memory or threads are short, or the model is closed.
        """
        info, memory = self.native.info, available_memory()
        kv_bytes_per_token = self.native.kv_bytes_per_token(self.cache_type)
        if ctx_size is None:
            ctx_size = fit_context(info.context_length, kv_bytes_per_token, info.file_bytes, memory)
        check_context(ctx_size, info.context_length, kv_bytes_per_token, memory)
        if self._session is not None:
            self._session.close()
            self._session, self._tokens = None, []
        self._session = self.native.session(ctx_size, self._threads or choose_threads(self.native), self.cache_type)
        return self._session

    def encode(self, prompt: str | Sequence[int] | NDArray[np.integer[Any]] | Sequence[Message]) -> list[int]:
        """Return the tokens of a prompt: a text, token ids as they are, or messages.

        Raises:
            ContextOverflowError: it is so long that there is no need to count its tokens.
            ElutqError: the text has a token that the model has not, or the model has no chat template.
            ClosedError: the model is closed.
        """
        self.native.check_open()
        if isinstance(prompt, str):
            return self.encode_text(prompt, add_special_tokens=True)
        if not isinstance(prompt, Sequence | np.ndarray) or isinstance(prompt, bytes | bytearray):
            raise ElutqError(WHAT_A_PROMPT_IS)
        ids = [int(entry) for entry in prompt if isinstance(entry, int | np.integer) and not isinstance(entry, bool)]
        messages = [entry for entry in prompt if isinstance(entry, Mapping)]
        if len(ids) + len(messages) != len(prompt):
            raise ElutqError(WHAT_A_PROMPT_IS)
        if not messages:
            self.check_tokens(ids, "the prompt")
            return ids
        if ids:
            raise ElutqError("a prompt is either token ids or messages, not both")
        return self.encode_text(self.required_chat_template.render(messages))

    def encode_text(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Return the tokens of a text, as ``Tokenizer.encode`` does; errors are those of ``encode``."""
        maximum = self.native.context_length
        ctx_size = maximum if self._session is None else self.ctx_size
        if (least := self.tokenizer.least_tokens(text, ctx_size)) > ctx_size:
            raise ContextOverflowError(least, ctx_size, maximum, at_least=True)
        return self.tokenizer.encode(text, add_special_tokens)

    def check_tokens(self, tokens: Iterable[int], subject: str) -> None:
        """Refuse tokens that the model has not.

        Args:
            tokens: their ids.
            subject: what they are, for the message.

        Raises:
            ElutqError: one is not in the vocabulary.
        """
        for token in tokens:
            if not 0 <= token < self.native.vocab_size:
                raise ElutqError(f"{subject} has token {token}, and the model's are 0 to {self.native.vocab_size - 1}")

    def evaluate(self, tokens: Sequence[int], cancelled: threading.Event | None = None) -> NDArray[np.float32]:
        """Make the context hold exactly these tokens; what it holds of them already is not computed again.

        Args:
            tokens: one or more.
            cancelled: what ``cancel`` ends this call by; None: nothing does.

        Returns:
            (vocab_size,) logits after the last token.

        Raises:
            CancelledError: it was cancelled; the context holds what was evaluated until then.
            ContextFullError: the context cannot hold them.
        """
        cancelled = cancelled or threading.Event()
        n_kept = self.reusable(tokens)
        self.session.rewind(n_kept)
        del self._tokens[n_kept:]
        for start in range(n_kept, len(tokens), PREFILL_TOKENS):
            batch = tokens[start : start + PREFILL_TOKENS]
            logits = self._evaluate_batch(batch, cancelled)
            self._tokens.extend(batch)
        return logits

    def append(self, token: int, cancelled: threading.Event | None = None) -> NDArray[np.float32]:
        """Add one token to the context; returns and raises as ``evaluate``."""
        logits = self._evaluate_batch([token], cancelled or threading.Event())
        self._tokens.append(token)
        return logits

    def adopt(self, tokens: Sequence[int], state: NDArray[np.uint8]) -> None:
        """Append tokens whose keys and values are known (``Session.import_state``) to the context.

        Raises:
            NativeError: the context cannot hold them, or a value is not finite.
        """
        self.session.import_state(state)
        self._tokens.extend(tokens)

    def reusable(self, tokens: Sequence[int]) -> int:
        """Return how many of these tokens the context holds already; the last one always has to be computed."""
        return min(common_length(self._tokens, tokens), len(tokens) - 1)

    def clear(self) -> None:
        """Forget the context, so that the next text comes out as in a new process.

        Tokens that are evaluated together (prefill) round their activations otherwise than one after the other
        (decode), so logits depend on what the context held before: by up to 0.13 nats on a SmolLM2-135M at 4 bits. Now
        and then that changes a token, of greedy texts too.
        """
        self.session.rewind(0)
        self._tokens = []
        self.user = None

    def cancel(self, cancelled: threading.Event) -> None:
        """End the ``evaluate`` or ``append`` that was given this event, now or when it begins; no other one.

        Safe in any thread.
        """
        with self._cancelling:
            cancelled.set()
            session = self._session  # which close() may take away meanwhile
            if self._evaluating is cancelled and session is not None:
                session.cancel()

    def close(self) -> None:
        """Free the session and unmap the file; safe in any thread, where it ends what runs in others.

        Whatever computes raises ClosedError after it.
        """
        self.native.close()  # first, so that no other thread starts a session anew
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _evaluate_batch(self, batch: Sequence[int], cancelled: threading.Event) -> NDArray[np.float32]:
        with self._cancelling:
            self._evaluating = cancelled
        try:
            while not cancelled.is_set():
                try:
                    return self.session.eval(batch)
                except CancelledError:  # for whoever ran before, when it came as that one ended: no work is lost
                    continue
            raise CancelledError(lib.ELUTQ_ERROR_CANCELLED, "cancelled", bad_input=False)
        finally:
            with self._cancelling:
                self._evaluating = None

    def __enter__(self) -> "LanguageModel":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
