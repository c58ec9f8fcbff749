"""What a client gets: OpenAI's response bodies."""

import math
import time
import uuid
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from elutq_cli.generation import GeneratedToken, Generation
from elutq_cli.server.reply import Reply
from elutq_formats.tokenizer import Tokenizer

Body = dict[str, Any]

FINISH_REASONS: Mapping[str | None, str | None] = {
    "stop": "stop",
    "length": "length",
    "context": "length",
    "time": "length",
    None: None,
}
"""OpenAI's names. A text that was cancelled is no answer: its client has left, or gets an error."""


Choice = tuple[Generation, Sequence[GeneratedToken]]
"""A text, and the tokens of it that were handed out."""


def usage(generations: Sequence[Generation], n_candidates: int) -> Body:
    """Return the number of tokens: of each prompt once, and of all texts that were made.

    Args:
        generations: all texts of a request, those of one prompt together.
        n_candidates: texts of each prompt.
    """
    firsts = generations[::n_candidates]
    n_prompt = sum(generation.prompt_tokens for generation in firsts)
    n_made = sum(len(generation.tokens) for generation in generations)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_made,
        "total_tokens": n_prompt + n_made,
        "completion_tokens_details": {"reasoning_tokens": sum(generation.thought_tokens for generation in generations)},
        "prompt_tokens_details": {"cached_tokens": sum(generation.reused_tokens for generation in firsts)},
    }


def best_choices(made: Sequence[Choice], n_candidates: int, n_choices: int) -> list[Choice]:
    """Return the texts of each prompt whose tokens are likeliest on average; all of them in the order they have.

    Args:
        made: all texts, those of one prompt together.
        n_candidates: texts of each prompt.
        n_choices: how many of them to return.
    """
    if n_candidates == n_choices:
        return list(made)
    chosen = []
    for first in range(0, len(made), n_candidates):
        chosen += sorted(made[first : first + n_candidates], key=_mean_logprob, reverse=True)[:n_choices]
    return chosen


def _mean_logprob(choice: Choice) -> float:
    generation, tokens = choice
    own = tokens[generation.prompt_tokens :] if generation.options.echo else tokens
    logprobs = [token.logprob for token in own if token.logprob is not None]
    return sum(logprobs) / len(logprobs) if logprobs else -math.inf


class Responder(ABC):
    """Makes the bodies that belong to one request.

    Args of every method that has them:
        index: of the text among those of the request.
        tokens: tokens made.
        text: text to send.
        finish_reason: why it ended; None while it goes on.
    """

    kind: str
    prefix: str

    def __init__(self, model_name: str, tokenizer: Tokenizer, scored: bool, begin_reply: Callable[[], Reply]) -> None:
        """Begin a response.

        Args:
            model_name: of the model.
            tokenizer: the model's.
            scored: whether log-probabilities were asked for.
            begin_reply: returns what tells the parts of a reply apart, at its start.
        """
        self._tokenizer = tokenizer
        self._scored = scored
        self._begin_reply = begin_reply
        self._frame = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model_name,
        }

    def whole(self, choices: Sequence[Choice], usage: Body) -> Body:
        """Return the body of an answer in one piece."""
        bodies = [
            self.choice(index, tokens, generation.text, FINISH_REASONS[generation.finish_reason])
            | {"stop_reason": generation.stop_string}
            for index, (generation, tokens) in enumerate(choices)
        ]
        return self._frame | {"object": self.kind, "choices": bodies, "usage": usage}

    def opening(self, n_choices: int) -> Iterable[Body]:
        """Yield what a stream of so many texts begins with."""
        return ()

    @abstractmethod
    def pieces(self, index: int, token: GeneratedToken) -> Iterable[Body]:
        """Yield the pieces of a stream that a token makes: often none, where it has no text."""

    @abstractmethod
    def end(self, index: int, generation: Generation) -> Iterable[Body]:
        """Yield the pieces of a stream by which one of its texts ends."""

    def closing(self, usage: Body) -> Body:
        """Return the piece by which a stream ends whose client asked for the number of tokens."""
        return self._chunk([]) | {"usage": usage}

    @abstractmethod
    def choice(self, index: int, tokens: Sequence[GeneratedToken], text: str, finish_reason: str | None) -> Body:
        """Return a choice of a whole answer."""

    def _chunk(self, choices: list[Body]) -> Body:
        return self._frame | {"object": self.kind, "choices": choices}

    def _token_body(self, token_id: int, logprob: float) -> Body:
        piece = list(self._tokenizer.token_bytes(token_id))
        return {"token": self._tokenizer.spell(token_id), "logprob": logprob, "bytes": piece}


class ChatResponder(Responder):
    """Bodies of /v1/chat/completions."""

    kind = "chat.completion"
    prefix = "chatcmpl"

    def opening(self, n_choices: int) -> Iterable[Body]:
        """Yield the role of each text."""
        delta = {"role": "assistant", "content": ""}
        for index in range(n_choices):
            yield self._chunk([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}])

    def __init__(self, model_name: str, tokenizer: Tokenizer, scored: bool, begin_reply: Callable[[], Reply]) -> None:
        """Begin a response; see the base class."""
        super().__init__(model_name, tokenizer, scored, begin_reply)
        self._replies = defaultdict[int, Reply](begin_reply)

    def choice(self, index: int, tokens: Sequence[GeneratedToken], text: str, finish_reason: str | None) -> Body:
        """Return a message."""
        reply = self._begin_reply()
        for _ in (*reply.put(text), *reply.finish()):
            pass
        reason = _reason(reply, finish_reason)
        return {"index": index, "message": reply.message, "logprobs": self._logprobs(tokens), "finish_reason": reason}

    def pieces(self, index: int, token: GeneratedToken) -> Iterable[Body]:
        """Yield the deltas that a token settles; its log-probabilities come with the first."""
        logprobs = self._logprobs([token])
        deltas = list(self._replies[index].put(token.text))
        for delta in deltas or ([] if logprobs is None else [{"content": ""}]):
            yield self._delta(index, delta, logprobs)
            logprobs = None

    def end(self, index: int, generation: Generation) -> Iterable[Body]:
        """Yield the deltas that were held back, and the reason why the text ends."""
        reply = self._replies[index]
        for delta in reply.finish():
            yield self._delta(index, delta, None)
        reason = _reason(reply, FINISH_REASONS[generation.finish_reason])
        last = {"index": index, "delta": {}, "logprobs": None, "finish_reason": reason}
        yield self._chunk([last | {"stop_reason": generation.stop_string}])

    def _delta(self, index: int, delta: Body, logprobs: Body | None) -> Body:
        return self._chunk([{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}])

    def _chunk(self, choices: list[Body]) -> Body:
        return super()._chunk(choices) | {"object": "chat.completion.chunk"}

    def _logprobs(self, tokens: Sequence[GeneratedToken]) -> Body | None:
        scored = [(token, token.logprob) for token in tokens if token.logprob is not None and self._scored]
        if not scored:
            return None
        return {
            "content": [
                self._token_body(token.token_id, logprob)
                | {"top_logprobs": [self._token_body(other.token_id, other.logprob) for other in token.alternatives]}
                for token, logprob in scored
            ],
            "refusal": None,
        }


def _reason(reply: Reply, finish_reason: str | None) -> str | None:
    return "tool_calls" if reply.calls_tools and finish_reason == "stop" else finish_reason


class CompletionResponder(Responder):
    """Bodies of /v1/completions."""

    kind = "text_completion"
    prefix = "cmpl"

    def __init__(self, model_name: str, tokenizer: Tokenizer, scored: bool, begin_reply: Callable[[], Reply]) -> None:
        """Begin a response; see the base class."""
        super().__init__(model_name, tokenizer, scored, begin_reply)
        self._offsets = Counter[int]()

    def choice(self, index: int, tokens: Sequence[GeneratedToken], text: str, finish_reason: str | None) -> Body:
        """Return a text."""
        logprobs = self._logprobs(index, tokens)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}

    def pieces(self, index: int, token: GeneratedToken) -> Iterable[Body]:
        """Yield a token's text."""
        if token.text or self._scored:
            yield self._chunk([self.choice(index, [token], token.text, None)])

    def end(self, index: int, generation: Generation) -> Iterable[Body]:
        """Yield the reason why the text ends."""
        choice = self.choice(index, [], "", FINISH_REASONS[generation.finish_reason])
        yield self._chunk([choice | {"stop_reason": generation.stop_string}])

    def _logprobs(self, index: int, tokens: Sequence[GeneratedToken]) -> Body | None:
        offsets = []
        for token in tokens:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(token.text)
        if not (tokens and self._scored):
            return None
        return {
            "tokens": [self._key(token.token_id) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [self._likeliest(token) for token in tokens],
            "text_offset": offsets,
        }

    def _likeliest(self, token: GeneratedToken) -> Body | None:
        """Return log-probabilities by text, as OpenAI has them: the token that came is always among them."""
        if token.logprob is None:  # the first of a prompt, which nothing comes before
            return None
        keys = {self._key(token.token_id): token.token_id}
        values = {self._key(token.token_id): token.logprob}
        for other in token.alternatives:
            key = self._key(other.token_id)
            # Another token that is spelled alike has its id for a key.
            if keys.setdefault(key, other.token_id) != other.token_id:
                key = f"token_id:{other.token_id}"
            values[key] = other.logprob
        return values

    def _key(self, token_id: int) -> str:
        """Return a token's text, or where bytes are no whole character the form that OpenAI has for these."""
        piece = self._tokenizer.token_bytes(token_id)
        text = self._tokenizer.spell(token_id)
        return text if text.encode() == piece else f"bytes:{text}"
