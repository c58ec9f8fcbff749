"""The generation loop: prompt in, tokens and their text out, with the statistics of both halves."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from elutq_cli.generation.sampling import Sampler
from elutq_formats.tokenizer import TextStream, Tokenizer
from elutq_native import Session


@dataclass(frozen=True)
class GeneratedToken:
    """One generated token and the text it completes (often none, when a character spans tokens)."""

    token_id: int
    text: str


@dataclass
class Generation:
    """What one generation did; filled in while it runs.

    Attributes:
        prompt_tokens: Tokens evaluated before the first was drawn.
        prompt_seconds: Time that took.
        tokens: Token ids generated, the one that ended the text included.
        seconds: Time from the first generated token to the last.
        finish_reason: ``stop`` (the model or a stop string ended the text), ``length`` (as many tokens as asked for) or
            ``context`` (the context is full).
    """

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    tokens: list[int] = field(default_factory=list)
    seconds: float = 0.0
    finish_reason: str = "length"

    @property
    def prompt_tokens_per_second(self) -> float:
        """Speed of prefill; 0 before it ran."""
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Speed of decode, the first token (which prefill paid for) left out; 0 with fewer than two tokens."""
        return (len(self.tokens) - 1) / self.seconds if len(self.tokens) > 1 and self.seconds else 0.0


def generate(
    session: Session,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    sampler: Sampler,
    n_predict: int,
    generation: Generation,
    stop: Sequence[str] = (),
    ignore_eos: bool = False,
) -> Iterator[GeneratedToken]:
    """Continues a prompt, token by token.

    Args:
        session: Holds the context so far; the prompt is appended to it.
        tokenizer: The model's.
        prompt: One or more token ids.
        sampler: Chooses the tokens.
        n_predict: Tokens to generate at most; -1: until the context is full.
        generation: Receives the statistics.
        stop: Strings that end the text; neither they nor what follows them is handed out.
        ignore_eos: Go on past the model's end-of-text tokens.

    Yields:
        Tokens as they are generated. The last may carry only text that was held back.

    Raises:
        ContextFullError: The prompt does not fit into the context.
    """
    start = time.perf_counter()
    logits = session.eval(prompt)
    generation.prompt_tokens, generation.prompt_seconds = len(prompt), time.perf_counter() - start
    history = list(prompt)
    text = _StoppableText(TextStream(tokenizer), stop)
    start = time.perf_counter()
    while n_predict < 0 or len(generation.tokens) < n_predict:
        token = sampler.sample(logits, history)
        history.append(token)
        generation.tokens.append(token)
        generation.seconds = time.perf_counter() - start
        if token in tokenizer.eos_token_ids and not ignore_eos:
            generation.finish_reason = "stop"
            break
        piece = text.put(token)
        yield GeneratedToken(token, piece)
        if text.stopped:
            generation.finish_reason = "stop"
            return
        if session.position == session.context_size:
            generation.finish_reason = "context"
            break
        if len(generation.tokens) != n_predict:
            logits = session.eval([token])
    if rest := text.finish():
        yield GeneratedToken(history[-1], rest)


class _StoppableText:
    """A text stream that ends at the first of several stop strings, holding back what may become one."""

    def __init__(self, stream: TextStream, stop: Sequence[str]) -> None:
        self._stream = stream
        self._stop = tuple(string for string in stop if string)
        self._pending = ""
        self.stopped = False

    def put(self, token: int) -> str:
        return self._release(self._stream.put(token), final=False)

    def finish(self) -> str:
        return "" if self.stopped else self._release(self._stream.finish(), final=True)

    def _release(self, text: str, final: bool) -> str:
        self._pending += text
        found = [at for string in self._stop if (at := self._pending.find(string)) >= 0]
        if found:
            self.stopped = True
            text, self._pending = self._pending[: min(found)], ""
            return text
        n_kept = 0 if final else self._possible_start()
        split = len(self._pending) - n_kept
        text, self._pending = self._pending[:split], self._pending[split:]
        return text

    def _possible_start(self) -> int:
        """Length of the longest end of the pending text that begins a stop string."""
        longest = max((len(string) for string in self._stop), default=1) - 1
        for length in range(min(longest, len(self._pending)), 0, -1):
            if any(string.startswith(self._pending[-length:]) for string in self._stop):
                return length
        return 0
