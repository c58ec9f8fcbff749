"""The generation loop: prompt in, tokens and their text out, with the statistics of both halves."""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from elutq_cli.generation.context import ContextOverflowError
from elutq_cli.generation.language_model import LanguageModel
from elutq_cli.generation.sampling import Sampler, log_probabilities
from elutq_cli.generation.stopping import StoppableText
from elutq_formats.errors import ElutqError
from elutq_formats.tokenizer import TextStream
from elutq_native import CancelledError

FinishReason = Literal["stop", "length", "context", "cancelled"]


@dataclass(frozen=True)
class Alternative:
    """A token that could have come, and the logarithm of its probability."""

    token_id: int
    text: str
    logprob: float


@dataclass(frozen=True)
class GeneratedToken:
    """One generated token.

    Attributes:
        token_id: the token.
        text: the text it completes: often none, when a character spans tokens.
        logprob: natural logarithm of the probability that the model gave it, before penalties, temperature and
            filters; None unless asked for.
        alternatives: the likeliest tokens in its place, as many as asked for.
    """

    token_id: int
    text: str
    logprob: float | None = None
    alternatives: tuple[Alternative, ...] = ()


@dataclass(frozen=True)
class TextOptions:
    """Where a text ends, and what is reported of it.

    Attributes:
        n_predict: tokens to generate at most; -1: until the context is full.
        stop: strings that end the text; neither they nor what follows them is handed out.
        ignore_eos: go on past the model's end-of-text tokens.
        logprobs: report each token's probability, and those of so many of the likeliest; None: do not.
        stop_token_ids: tokens that end the text as the model's end-of-text tokens do, under ``ignore_eos`` too.
        min_tokens: tokens before which nothing but ``n_predict`` and a full context ends the text: those that would
            end it cannot be drawn, and stop strings are not looked for.
    """

    n_predict: int = -1
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0

    def __post_init__(self) -> None:
        """Check every option.

        Raises:
            ElutqError: one is out of range.
        """
        if self.n_predict < -1:
            raise ElutqError(f"-n is {self.n_predict}: give a number of tokens, or -1 for no limit")
        if self.logprobs is not None and self.logprobs < 0:
            raise ElutqError(f"logprobs is {self.logprobs}: it must be 0 or more")
        if self.min_tokens < 0:
            raise ElutqError(f"min_tokens is {self.min_tokens}: it must be 0 or more")
        if 0 <= self.n_predict < self.min_tokens:
            raise ElutqError(f"min_tokens is {self.min_tokens}, more than the {self.n_predict} tokens of -n")


class Generation(Iterator[GeneratedToken]):
    """A text in the making: iterate over it, or ``read`` it to its end.

    Attributes:
        prompt_tokens: tokens of the prompt.
        reused_tokens: tokens of the prompt that the context held already.
        prompt_seconds: time that the others took.
        tokens: token ids generated, the one that ended the text included.
        text: text generated so far.
        seconds: time from the first generated token to the last.
        finish_reason: ``stop`` (the model or a stop string ended the text), ``length`` (as many tokens as asked for),
            ``context`` (the context is full) or ``cancelled``.
        stop_string_found: whether it was a stop string that ended the text; its tokens go on past ``text``.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompt: Sequence[int],
        sampler: Sampler,
        options: TextOptions | None = None,
    ) -> None:
        """Prepare; nothing is computed before the first token is asked for.

        Args:
            model: continues the prompt.
            prompt: one or more token ids: the whole context, from its first token.
            sampler: chooses the tokens.
            options: where the text ends; None: at the model's end-of-text token, or the context's end.

        Raises:
            ElutqError: the prompt is empty or longer than the context, or the options name a token that is not there.
        """
        if not prompt:
            raise ElutqError("the prompt has no tokens: give some text to continue")
        if len(prompt) > model.ctx_size:
            raise ContextOverflowError(len(prompt), model.ctx_size, model.native.context_length)
        options = options or TextOptions()
        model.check_tokens(options.stop_token_ids, "stop_token_ids")
        model.check_tokens([token for token, _ in sampler.options.logit_bias], "logit_bias")
        self._model, self._sampler = model, sampler
        self._history = list(prompt)
        self._options = options
        eos = () if options.ignore_eos else model.tokenizer.eos_token_ids
        self._last_tokens = frozenset(eos) | frozenset(options.stop_token_ids)
        self._cancelled = threading.Event()
        self._stream = StoppableText(TextStream(model.tokenizer), self._options.stop)
        self._run = self._generate()
        self.prompt_tokens = len(prompt)
        self.reused_tokens = 0
        self.prompt_seconds = 0.0
        self.tokens: list[int] = []
        self.text = ""
        self.seconds = 0.0
        self.finish_reason: FinishReason = "length"
        self.stop_string_found = False

    def __next__(self) -> GeneratedToken:
        """Return the next token; the last may carry only text that was held back."""
        token = next(self._run)
        self.text += token.text
        return token

    def read(self) -> str:
        """Generate to the end and return the whole text."""
        for _ in self:
            pass
        return self.text

    def cancel(self) -> None:
        """End the text at once, in the middle of the prompt too; nothing happens once it is over. Any thread may."""
        self._model.cancel(self._cancelled)

    @property
    def prompt_tokens_per_second(self) -> float:
        """Speed of prefill, what was reused left out; 0 before it ran."""
        return (self.prompt_tokens - self.reused_tokens) / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Speed of decode, the first token (which prefill paid for) left out; 0 with fewer than two tokens."""
        return (len(self.tokens) - 1) / self.seconds if len(self.tokens) > 1 and self.seconds else 0.0

    def _generate(self) -> Iterator[GeneratedToken]:
        options, begin = self._options, time.perf_counter()
        self.reused_tokens = self._model.reusable(self._history)
        logits = self._evaluate()
        self.prompt_seconds = time.perf_counter() - begin
        begin = time.perf_counter()
        last: int | None = None
        while logits is not None and (options.n_predict < 0 or len(self.tokens) < options.n_predict):
            last = self._sampler.sample(self._allowed(logits), self._history)
            self.tokens.append(last)
            self.seconds = time.perf_counter() - begin
            if last in self._last_tokens:
                self.finish_reason = "stop"
                break
            self._history.append(last)
            yield self._describe(last, self._stream.put(last, len(self.tokens) > options.min_tokens), logits)
            if self._stream.stopped:
                self.finish_reason, self.stop_string_found = "stop", True
                return
            if len(self.tokens) == options.n_predict:
                break
            if len(self._history) > self._model.ctx_size:
                self.finish_reason = "context"
                break
            logits = self._evaluate()
        if (rest := self._stream.finish()) and last is not None:
            yield GeneratedToken(last, rest)

    def _evaluate(self) -> NDArray[np.float32] | None:
        """Return the logits after the history, or None when cancelled."""
        model = self._model
        try:
            if not self._cancelled.is_set():
                if model.user is self:
                    return model.append(self._history[-1], self._cancelled)
                model.user = self
                return model.evaluate(self._history, self._cancelled)
        except CancelledError:
            pass
        self.finish_reason = "cancelled"
        return None

    def _allowed(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits without the tokens that would end the text too early."""
        ends = [token for token in self._last_tokens if token < len(logits)]
        if len(self.tokens) >= self._options.min_tokens or not ends:
            return logits
        allowed: NDArray[np.float32] = logits.copy()
        allowed[ends] = -np.inf
        return allowed

    def _describe(self, token: int, text: str, logits: NDArray[np.float32]) -> GeneratedToken:
        if self._options.logprobs is None:
            return GeneratedToken(token, text)
        logprobs = log_probabilities(logits)
        likeliest = np.argsort(-logprobs, kind="stable")[: self._options.logprobs]
        decode = self._model.tokenizer.decode
        alternatives = tuple(
            Alternative(int(other), decode([int(other)], skip_special_tokens=False), float(logprobs[other]))
            for other in likeliest
        )
        return GeneratedToken(token, text, float(logprobs[token]), alternatives)
