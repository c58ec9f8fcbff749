"""The generation loop: prompt in, tokens and their text out, with the statistics of both halves."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from elutq_cli.generation.context import ContextOverflowError
from elutq_cli.generation.language_model import LanguageModel
from elutq_cli.generation.sampling import Sampler, largest, log_probabilities
from elutq_cli.generation.stopping import StoppableText
from elutq_formats.errors import ElutqError
from elutq_native import CancelledError, ClosedError

MOST_STOP_CHARACTERS = 1 << 16
"""Of all stop strings together: more are no stop strings, and would take memory a hundred times their size."""

FinishReason = Literal["stop", "length", "context", "cancelled"]


@dataclass(frozen=True)
class Alternative:
    """A token that could have come, its own text (``Tokenizer.spell``), and the logarithm of its probability."""

    token_id: int
    text: str
    logprob: float


@dataclass(frozen=True)
class GeneratedToken:
    """One generated token.

    Attributes:
        token_id: the token.
        text: the text it completes: none where it is special, or a part of a character that spans tokens.
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
    """Where a text begins and ends, and what is reported of it.

    Attributes:
        n_predict: tokens to generate at most; -1: until the context is full.
        stop: strings that end the text; neither they nor what follows them is handed out.
        ignore_eos: go on past the model's end-of-text tokens.
        logprobs: report each token's probability, and those of so many of the likeliest; None: do not.
        stop_token_ids: tokens that end the text as the model's end-of-text tokens do, under ``ignore_eos`` too.
        min_tokens: tokens before which nothing but ``n_predict`` and a full context ends the text: those that would
            end it cannot be drawn, and stop strings are not looked for.
        reply: the text answers a prompt that a chat template made, and does not go on where the prompt ends: the space
            by which SentencePiece marks the start of a text is not part of it.
    """

    n_predict: int = -1
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    reply: bool = False

    def __post_init__(self) -> None:
        """Check every option.

        Raises:
            ElutqError: one is out of range.
        """
        for name, value in (("-n", self.n_predict), ("min_tokens", self.min_tokens)):
            if not float(value).is_integer():
                raise ElutqError(f"{name} is {value}: give a whole number of tokens")
        if self.n_predict < -1:
            raise ElutqError(f"-n is {self.n_predict}: give a number of tokens, or -1 for no limit")
        if self.logprobs is not None and self.logprobs < 0:
            raise ElutqError(f"logprobs is {self.logprobs}: it must be 0 or more")
        if (n_characters := sum(map(len, self.stop))) > MOST_STOP_CHARACTERS:
            raise ElutqError(f"the stop strings have {n_characters} characters: {MOST_STOP_CHARACTERS} are the most")
        if self.min_tokens < 0:
            raise ElutqError(f"min_tokens is {self.min_tokens}: it must be 0 or more")
        if 0 <= self.n_predict < self.min_tokens:
            raise ElutqError(f"min_tokens is {self.min_tokens}, but the text may have no more than {self.n_predict}")


class Generation(Iterator[GeneratedToken]):
    """A text in the making: iterate over it, or ``read`` it to its end.

    Tokens come one by one, each once its text is certain; those that end the text do not come.

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
        # Special tokens alone are no text that could go on.
        continues = not options.reply and not all(map(model.tokenizer.is_hidden, reversed(prompt)))
        self._stream = StoppableText(model.tokenizer, options.stop, continues)
        self._held_back: deque[Callable[[str], GeneratedToken]] = deque()
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
        """Return the next token."""
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
    def seed(self) -> int:
        """The seed that the draws began with."""
        return self._sampler.options.seed

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
        while logits is not None and (options.n_predict < 0 or len(self.tokens) < options.n_predict):
            last = self._sampler.sample(self._allowed(logits), self._history)
            self.tokens.append(last)
            self.seconds = time.perf_counter() - begin
            if last in self._last_tokens:
                self.finish_reason = "stop"
                break
            self._history.append(last)
            self._held_back.append(self._describe(last, logits))
            yield from self._certain(self._stream.put(last, len(self.tokens) > options.min_tokens))
            if self._stream.stopped:
                self.finish_reason, self.stop_string_found = "stop", True
                return
            if len(self.tokens) == options.n_predict:
                break
            if len(self._history) > self._model.ctx_size:
                self.finish_reason = "context"
                break
            logits = self._evaluate()
        yield from self._certain(self._stream.finish())

    def _certain(self, texts: list[str]) -> Iterator[GeneratedToken]:
        """Yield the oldest tokens held back, whose texts these are."""
        for text in texts:
            yield self._held_back.popleft()(text)

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
        except ClosedError:
            model.native.check_open()  # the session was closed with it: the model is what the caller knows
            raise
        self.finish_reason = "cancelled"
        return None

    def _allowed(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits without the tokens that would end the text too early."""
        if len(self.tokens) >= self._options.min_tokens:
            return logits
        ends = [token for token in self._last_tokens if token < len(logits)]
        allowed: NDArray[np.float32] = logits.copy()
        allowed[ends] = -np.inf
        return allowed

    def _describe(self, token: int, logits: NDArray[np.float32]) -> Callable[[str], GeneratedToken]:
        """Return what makes a token of its text, which is not known yet."""
        if self._options.logprobs is None:
            return partial(GeneratedToken, token)
        logprobs = log_probabilities(logits)
        likeliest = largest(logprobs, self._options.logprobs)
        spell = self._model.tokenizer.spell
        alternatives = tuple(Alternative(int(other), spell(int(other)), float(logprobs[other])) for other in likeliest)
        return partial(GeneratedToken, token, logprob=float(logprobs[token]), alternatives=alternatives)
