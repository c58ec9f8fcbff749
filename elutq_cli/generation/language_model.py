"""A model ready to generate: file, tokenizer, and a scheduler whose contexts are reused from text to text."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elutq_cli.generation.context import Context
from elutq_cli.generation.context_size import (
    ContextOverflowError,
    check_context,
    checked_cache_type,
    choose_parallel,
    fit_context,
)
from elutq_cli.generation.grammar import Grammar, Schema, Vocabulary
from elutq_cli.generation.sampling import SamplingOptions
from elutq_cli.generation.scheduler import Scheduler
from elutq_cli.generation.template import ChatTemplate, Message
from elutq_cli.generation.text import TextOptions
from elutq_cli.generation.thread_counts import choose_decode_threads, choose_threads
from elutq_cli.machine.memory import available_memory, give_back_freed
from elutq_cli.model_path import refuse_folder
from elutq_cli.options import as_type
from elutq_formats.errors import ElutqError
from elutq_formats.model_file import ModelFile
from elutq_native import Engine, Model, NativeError, NativeSequence, default_threads

log = logging.getLogger(__name__)

WHAT_A_PROMPT_IS = "a prompt is a text, a sequence of token ids, or a list of messages"

MOST_PARALLEL = 1024
"""Texts at a time."""


class LanguageModel:
    """An open model file and the scheduler of the texts made with it; used by one thread at a time.

    Attributes:
        path: the file.
        status: its size and times when it was opened; it may be renamed or deleted since.
        file: its metadata.
        tokenizer: its tokenizer.
        native: the file, mapped by the C runtime.
        cache_type: how keys and values are kept.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        ctx_size: int | None = None,
        threads: int | None = None,
        cache_type: str = "f16",
        chat_template: str | None = None,
        parallel: int | None = 1,
    ) -> None:
        """Open a model file; the scheduler starts with the first text, so that its context can still be chosen.

        Args:
            path: a model file of elutq.
            ctx_size: tokens in the context; None: as many as the model and this machine's memory allow.
            threads: threads; None: one for each physical core this process may use, and on a large machine as many of
                them for decode as are measured to be fastest.
            cache_type: keys and values as f16, or as q8 in half the memory.
            chat_template: Jinja in the place of the file's chat template; None: that one, if there is any.
            parallel: texts that can be made at a time, each with a context of its own; None: as many as this machine's
                memory and cores allow.

        Raises:
            ElutqError: the file is damaged or not one of elutq, or the context or the type of cache is impossible.
            NativeError: the C runtime refuses the file.
        """
        ctx_size, threads = as_type("ctx_size", ctx_size, int | None), as_type("threads", threads, int | None)
        parallel = as_type("parallel", parallel, int | None)
        if threads is not None and threads < 1:
            raise ElutqError(f"threads is {threads}: it must be at least 1")
        if parallel is not None and not 1 <= parallel <= MOST_PARALLEL:
            raise ElutqError(f"parallel is {parallel}: it must be between 1 and {MOST_PARALLEL}")
        self.cache_type = checked_cache_type(cache_type)
        self.path = Path(path)
        refuse_folder(path)
        self.file = ModelFile.open(self.path)
        self.status = self.path.stat()
        self.tokenizer = self.file.tokenizer()
        give_back_freed()  # half of what a tokenizer of 150,000 tokens took as it was read
        self.native = Model(self.path)
        self._chat_template = chat_template
        self._threads, self._parallel = threads, parallel
        self._decode_threads: int | None = None
        self._scheduler: Scheduler | None = None
        if ctx_size is not None:
            self.start(ctx_size)

    @property
    def scheduler(self) -> Scheduler:
        """The scheduler, started when it is not yet."""
        return self._scheduler or self.start()

    @property
    def context(self) -> Context:
        """The context of the first slot, which is the only one where texts are made one at a time."""
        return self.scheduler.contexts[0]

    @property
    def ctx_size(self) -> int:
        """Tokens that a context holds."""
        return self.context.size

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens in the context."""
        return self.context.tokens

    @property
    def kv_bytes(self) -> int:
        """Bytes of all contexts' keys and values."""
        return len(self.scheduler.contexts) * self.native.cache_bytes(self.ctx_size, self.cache_type)

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

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The model's tokens, for grammars.

        Raises:
            ElutqError: llguidance is not installed.
        """
        return Vocabulary(self.tokenizer, self.native.vocab_size)

    def compile_grammar(self, json_schema: Schema | None, grammar: str | None) -> Grammar | None:
        """Return what a text has to match, if anything.

        Args:
            json_schema: it is JSON that this describes.
            grammar: in llama.cpp's notation (GBNF) or in Lark's.

        Raises:
            ElutqError: both are given, one cannot be honoured, or llguidance is not installed.
        """
        if json_schema is not None and grammar is not None:
            raise ElutqError("a text matches a JSON schema or a grammar: give one of them")
        if json_schema is not None:
            return Grammar.of_json_schema(self.vocabulary, json_schema)
        return None if grammar is None else Grammar.of_text(self.vocabulary, grammar)

    def start(self, ctx_size: int | None = None) -> Scheduler:
        """Start the scheduler, or start it again with other contexts.

        Args:
            ctx_size: tokens in each context; None: as many as the model and this machine's memory allow.

        Raises:
            ElutqError: the context is impossible.
            NativeError: memory or threads are short, or the model is closed.
        """
        info, memory = self.native.info, available_memory()
        cache_bytes = partial(self.native.cache_bytes, cache_type=self.cache_type)
        n_slots = self._parallel or choose_parallel(
            ctx_size, info.context_length, cache_bytes, info.file_bytes, memory, default_threads()
        )
        if ctx_size is None:
            ctx_size = fit_context(info.context_length, cache_bytes, info.file_bytes, memory, n_slots)
        check_context(ctx_size, info.context_length, cache_bytes, memory, n_slots)
        needed = info.file_bytes + n_slots * cache_bytes(ctx_size)
        if memory is not None and needed > memory:
            log.warning(
                "the model and its context need %.2f GB of memory, and %.2f GB are available: use a smaller context "
                "(-c) or a smaller model where it is slow, or ended by the system",
                needed / 1e9,
                memory / 1e9,
            )
        self._stop()
        engine = Engine(self.native, self._threads or choose_threads(self.native), n_slots)
        try:
            if self._threads is None:
                self._decode_threads = self._decode_threads or choose_decode_threads(engine)
                engine.use_for_decode(self._decode_threads)
            sequences = [NativeSequence(self.native, ctx_size, self.cache_type) for _ in range(n_slots)]
        except NativeError:
            engine.close()
            raise
        self._scheduler = Scheduler(engine, [Context(sequence) for sequence in sequences])
        return self._scheduler

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
        ctx_size = maximum if self._scheduler is None else self.ctx_size
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

    def check_text(self, prompt: Sequence[int], sampling: SamplingOptions, options: TextOptions) -> None:
        """Refuse a text that cannot be made.

        Args:
            prompt: its first tokens.
            sampling: how the others are chosen.
            options: where it ends.

        Raises:
            ContextOverflowError: the prompt is longer than the context.
            ElutqError: the options name a token that the model has not.
        """
        if len(prompt) > self.ctx_size:
            raise ContextOverflowError(len(prompt), self.ctx_size, self.native.context_length)
        self.check_tokens(options.stop_token_ids, "stop_token_ids")
        self.check_tokens([token for token, _ in sampling.logit_bias], "logit_bias")

    def clear(self) -> None:
        """Forget the context, so that the next text comes out as in a new process.

        Tokens that are evaluated together (prefill) round their activations otherwise than one after the other
        (decode), so logits depend on what the context held before: by up to 0.13 nats on a SmolLM2-135M at 4 bits. Now
        and then that changes a token, of greedy texts too.
        """
        self.scheduler.clear()

    def close(self) -> None:
        """Free the engine and unmap the file; safe in any thread, where it ends what runs in others.

        Whatever computes raises ClosedError after it.
        """
        self.native.close()  # first, so that no other thread starts an engine anew
        self._stop()

    def _stop(self) -> None:
        scheduler, self._scheduler = self._scheduler, None
        if scheduler is not None:
            scheduler.close()

    def __enter__(self) -> "LanguageModel":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
