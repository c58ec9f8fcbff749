"""A text in the making, as a machine that is fed: it says what a context must hold, and makes tokens of the logits.

It knows nothing of models, sequences or threads: whoever evaluates (``Scheduler``) is told by it, and tells it.
"""

import time
from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from elutq_cli.generation.constraint import Rule, RuleState
from elutq_cli.generation.sampling import Sampler
from elutq_cli.generation.scoring import TokenMaker, scored
from elutq_cli.generation.stopping import StoppableText
from elutq_cli.generation.text import FinishReason, GeneratedToken, TextOptions
from elutq_formats.errors import ElutqError
from elutq_formats.tokenizer import Tokenizer


class Generation:
    """One text: wants tokens evaluated, is fed logits, and makes tokens, each once its text is certain.

    Tokens that end the text are not handed out, but where ``TextOptions.echo`` says so.

    Attributes:
        sampler: chooses the tokens.
        options: where the text ends, and what is reported of it.
        prompt_tokens: tokens of the prompt.
        reused_tokens: tokens of the prompt that the context held already.
        prompt_seconds: time that the others took.
        tokens: token ids generated, the one that ended the text included.
        thought_tokens: how many of them were thoughts, where a rule tells them from the answer.
        text: text handed out so far.
        seconds: time from the first generated token to the last.
        finish_reason: ``stop`` (the model or a stop string ended the text), ``length`` (as many tokens as asked for),
            ``context`` (the context is full), ``time`` (it took too long) or ``cancelled``; None while it goes on.
        error: what went wrong, where the text could not be made.
        stop_string: the one that ended the text, whose tokens go on past ``text``.
        ended_by_token: whether it was a token of its own that ended the text, the last of ``tokens``.
        cancelled: whether it is to end; whoever evaluates for it looks.
    """

    def __init__(
        self,
        prompt: list[int],
        sampler: Sampler,
        options: TextOptions,
        tokenizer: Tokenizer,
        ctx_size: int,
        rule: Rule | None = None,
    ) -> None:
        """Begin with a prompt.

        Args:
            prompt: one or more token ids, at most as many as a context holds: the whole context, from its first token.
            sampler: chooses the tokens.
            options: where the text ends.
            tokenizer: makes text of them.
            ctx_size: tokens that a context holds.
            rule: what the text has to match: only tokens that it allows are drawn, and the text ends when nothing
                can follow, before ``min_tokens`` and under ``ignore_eos`` too. All else that ends a text may end it in
                the middle.

        Raises:
            ElutqError: the prompt has no tokens.
        """
        if not prompt:
            raise ElutqError("the prompt has no tokens: give some text to continue")
        self.sampler, self.options = sampler, options
        self._prompt = prompt
        self._history = prompt
        self._tokenizer, self._ctx_size = tokenizer, ctx_size
        self._rule = rule
        self._constraint: RuleState | None = None
        self._last_tokens = frozenset[int]()
        self._stream: StoppableText | None = None
        self._held_back: deque[TokenMaker] = deque()
        self._made: deque[GeneratedToken] = deque()
        self._prompt_texts: deque[str] = deque()
        # Tokens of the prompt whose own log-probabilities are still to come: all but the first, where they are wanted.
        self._n_unscored = len(prompt) - 1 if options.echo and options.logprobs is not None else 0
        self._begun = self._first_made = 0.0
        self.prompt_tokens = len(prompt)
        self.reused_tokens = 0
        self.prompt_seconds = 0.0
        self.tokens: list[int] = []
        self.thought_tokens = 0
        self.text = ""
        self.seconds = 0.0
        self.finish_reason: FinishReason | None = None
        self.error: Exception | None = None
        self.stop_string: str | None = None
        self.ended_by_token = False
        self.cancelled = False

    @property
    def wants(self) -> Sequence[int]:
        """The tokens that a context must hold for the next one to be made."""
        return self._history

    @property
    def n_reusable(self) -> int:
        """How many of these the context may hold already; logits are wanted after every one that follows.

        The last one always has to be computed, and all of a prompt whose own log-probabilities are asked for.
        """
        return len(self._history) - 1 - self._n_unscored

    def hidden_room(self, n_tokens: int) -> NDArray[np.float32] | None:
        """Return where hidden states of so many tokens are to go, to be fed in the place of logits; None: nowhere."""
        return None

    @property
    def ended(self) -> bool:
        """Whether nothing more will be made."""
        return self.finish_reason is not None or self.error is not None

    @property
    def stop_string_found(self) -> bool:
        """Whether it was a stop string that ended the text."""
        return self.stop_string is not None

    @property
    def prompt_tokens_per_second(self) -> float:
        """Speed of prefill, what was reused left out; 0 before it ran."""
        return (self.prompt_tokens - self.reused_tokens) / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def seed(self) -> int:
        """The seed that the draws began with."""
        return self.sampler.options.seed

    @property
    def tokens_per_second(self) -> float:
        """Speed of decode, the first token (which prefill paid for) left out; 0 with fewer than two tokens."""
        return (len(self.tokens) - 1) / self.seconds if len(self.tokens) > 1 and self.seconds else 0.0

    def begin(self, n_held: int) -> None:
        """Tell that a context is there, and how many of the wanted tokens it holds; the first time counts."""
        if self._stream is not None:
            return
        # Not before: requests that wait in their hundreds take little memory.
        self._begun = time.perf_counter()
        self.reused_tokens = n_held
        tokenizer, options = self._tokenizer, self.options
        eos = () if options.ignore_eos else tokenizer.eos_token_ids
        self._last_tokens = frozenset(eos) | frozenset(options.stop_token_ids)
        # Special tokens alone are no text that could go on.
        continues = not options.reply and not all(map(tokenizer.is_hidden, reversed(self._prompt)))
        self._stream = StoppableText(tokenizer, options.stop, continues, frozenset(options.shown_token_ids))
        if self._rule is not None:
            self._constraint = self._rule.start()
        self._history = list(self._prompt)
        if options.echo:
            echoed = StoppableText(tokenizer, ())
            self._prompt_texts.extend(text for token in self._prompt for text in echoed.put(token))
            self._prompt_texts.extend(echoed.finish())
            # All of them, or the first, which no logits come before.
            for token in self._prompt[: len(self._prompt) - self._n_unscored]:
                self._made.append(GeneratedToken(token, self._prompt_texts.popleft()))

    def feed(self, logits: NDArray[np.float32]) -> None:
        """Make the next token, and those of the prompt that are to come before it.

        Args:
            logits: (n, vocab_size) float32 after the ``wants`` from ``n_reusable`` on, as far as these were evaluated.

        Raises:
            ElutqError: they are not finite.
        """
        n_own = min(len(logits), self._n_unscored)
        for row in logits[:n_own]:
            token = self._prompt[-self._n_unscored]
            self._made.append(self._scored(token, row)(self._prompt_texts.popleft()))
            self._n_unscored -= 1
        if n_own < len(logits):
            self._make(logits[-1])

    def _make(self, logits: NDArray[np.float32]) -> None:
        """Make the next token of (vocab_size,) logits."""
        self._end_prompt()
        if self.options.n_predict == 0 or (self._constraint is not None and self._constraint.complete):
            self._end("stop" if self.options.n_predict else "length")
            return
        last = self.sampler.sample(logits, self._history, self._allowed(len(logits)))
        self.tokens.append(last)
        self.seconds = time.perf_counter() - self._first_made
        if last in self._last_tokens:
            self.ended_by_token = True
            self._end("stop")
            if self.options.echo:
                self._made.append(self._scored(last, logits)(""))
            return
        if self._constraint is not None:
            self._constraint.advance(last)
            self.thought_tokens = self._constraint.thought_tokens
        self._history.append(last)
        self._held_back.append(self._scored(last, logits))
        if self._stream is not None:
            self._hand_out(self._stream.put(last, len(self.tokens) > self.options.min_tokens))
            self.stop_string = self._stream.stop_string
        if self.stop_string_found or (self._constraint is not None and self._constraint.complete):
            self._end("stop")
        elif len(self.tokens) == self.options.n_predict:
            self._end("length")
        elif len(self._history) > self._ctx_size:
            self._end("context")

    def _end_prompt(self) -> None:
        """Tell that the prompt is read; the first time counts."""
        if not self.prompt_seconds:
            self._first_made = time.perf_counter()
            self.prompt_seconds = self._first_made - self._begun

    def take(self) -> GeneratedToken | None:
        """Return the oldest token made that was not taken yet, if there is one."""
        if not self._made:
            return None
        token = self._made.popleft()
        self.text += token.text
        return token

    def cancel(self) -> None:
        """Ask for the text to end; nothing happens once it is over. Any thread may."""
        self.cancelled = True

    def end_cancelled(self) -> None:
        """End the text, which was cancelled; nothing happens once it is over."""
        if not self.ended:
            self._end("cancelled")

    def limit_time(self, seconds: float) -> None:
        """End the text if it has had a context for longer than that; nothing happens once it is over."""
        if self._stream is not None and time.perf_counter() - self._begun > seconds:
            self._end("time")

    def fail(self, error: Exception) -> None:
        """End the text, which cannot be made."""
        self.error = error

    def _end(self, reason: FinishReason) -> None:
        if self._stream is not None:
            self._hand_out(self._stream.finish())
        self._stream = self._constraint = None  # which take memory
        self.finish_reason = reason

    def _hand_out(self, texts: list[str]) -> None:
        """Hand out the oldest tokens held back, whose texts these are."""
        self._made.extend(self._held_back.popleft()(text) for text in texts)

    def _allowed(self, vocab_size: int) -> NDArray[np.int64] | None:
        """Return the tokens that may come next, where not all may: by the rule, and none that ends it too early."""
        early = len(self.tokens) < self.options.min_tokens
        allowed = None
        if self._constraint is not None:
            allowed = self._constraint.allowed(may_end=not (early or self.options.ignore_eos))
        if not early:
            return allowed
        later = self._without_ends(np.arange(vocab_size, dtype=np.int64) if allowed is None else allowed)
        return later if len(later) or allowed is None else allowed

    def _without_ends(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        return tokens[~np.isin(tokens, list(self._last_tokens))]

    def _scored(self, token: int, logits: NDArray[np.float32]) -> TokenMaker:
        return scored(token, logits, self.options.logprobs, self._tokenizer.spell)
