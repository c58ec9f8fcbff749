"""What a client gets: OpenAI's response bodies."""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from elutq_cli.generation import GeneratedToken, Generation
from elutq_formats.tokenizer import Tokenizer

Body = dict[str, Any]

FINISH_REASONS: Mapping[str | None, str | None] = {"stop": "stop", "length": "length", "context": "length", None: None}
"""OpenAI's names. A text that was cancelled is no answer: its client has left, or gets an error."""


def usage(generation: Generation) -> Body:
    """Return the number of tokens."""
    return {
        "prompt_tokens": generation.prompt_tokens,
        "completion_tokens": len(generation.tokens),
        "total_tokens": generation.prompt_tokens + len(generation.tokens),
        "prompt_tokens_details": {"cached_tokens": generation.reused_tokens},
    }


class Responder(ABC):
    """Makes the bodies that belong to one request.

    Args of every method that has them:
        tokens: tokens made.
        text: text to send.
        finish_reason: why it ended; None while it goes on.
    """

    kind: str
    prefix: str

    def __init__(self, model_name: str, tokenizer: Tokenizer) -> None:
        """Begin a response.

        Args:
            model_name: of the model.
            tokenizer: the model's.
        """
        self._tokenizer = tokenizer
        self._frame = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model_name,
        }

    def whole(self, generation: Generation, tokens: Sequence[GeneratedToken]) -> Body:
        """Return the body of an answer in one piece."""
        choice = self.choice(tokens, generation.text, FINISH_REASONS[generation.finish_reason])
        return self._frame | {"object": self.kind, "choices": [choice], "usage": usage(generation)}

    def opening(self) -> Iterable[Body]:
        """Yield what a stream begins with."""
        return ()

    def piece(self, token: GeneratedToken) -> Body:
        """Return one piece of a stream."""
        return self._chunk([self.chunk_choice([token], token.text, None)])

    def closing(self, generation: Generation, include_usage: bool) -> Iterable[Body]:
        """Yield what a stream ends with."""
        yield self._chunk([self.chunk_choice([], "", FINISH_REASONS[generation.finish_reason])])
        if include_usage:
            yield self._chunk([]) | {"usage": usage(generation)}

    @abstractmethod
    def choice(self, tokens: Sequence[GeneratedToken], text: str, finish_reason: str | None) -> Body:
        """Return the choice of a whole answer."""

    @abstractmethod
    def chunk_choice(self, tokens: Sequence[GeneratedToken], text: str, finish_reason: str | None) -> Body:
        """Return the choice of a piece."""

    def _chunk(self, choices: list[Body]) -> Body:
        return self._frame | {"object": self.kind, "choices": choices}

    def _token_body(self, token_id: int, logprob: float) -> Body:
        piece = list(self._tokenizer.token_bytes(token_id))
        return {"token": self._tokenizer.spell(token_id), "logprob": logprob, "bytes": piece}


class ChatResponder(Responder):
    """Bodies of /v1/chat/completions."""

    kind = "chat.completion"
    prefix = "chatcmpl"

    def opening(self) -> Iterable[Body]:
        """Yield the role."""
        delta = {"role": "assistant", "content": ""}
        yield self._chunk([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}])

    def choice(self, tokens: Sequence[GeneratedToken], text: str, finish_reason: str | None) -> Body:
        """Return a message."""
        message = {"role": "assistant", "content": text, "refusal": None}
        logprobs = self._logprobs(tokens)
        return {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": finish_reason}

    def chunk_choice(self, tokens: Sequence[GeneratedToken], text: str, finish_reason: str | None) -> Body:
        """Return a piece of a message."""
        delta = {"content": text} if finish_reason is None else {}
        logprobs = self._logprobs(tokens)
        return {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}

    def _chunk(self, choices: list[Body]) -> Body:
        return super()._chunk(choices) | {"object": "chat.completion.chunk"}

    def _logprobs(self, tokens: Sequence[GeneratedToken]) -> Body | None:
        scored = [(token, token.logprob) for token in tokens if token.logprob is not None]
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


class CompletionResponder(Responder):
    """Bodies of /v1/completions."""

    kind = "text_completion"
    prefix = "cmpl"

    def __init__(self, model_name: str, tokenizer: Tokenizer) -> None:
        """Begin a response; see the base class."""
        super().__init__(model_name, tokenizer)
        self._offset = 0

    def choice(self, tokens: Sequence[GeneratedToken], text: str, finish_reason: str | None) -> Body:
        """Return a text."""
        return {"index": 0, "text": text, "logprobs": self._logprobs(tokens), "finish_reason": finish_reason}

    chunk_choice = choice

    def _logprobs(self, tokens: Sequence[GeneratedToken]) -> Body | None:
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(token.text)
        if not any(token.logprob is not None for token in tokens):
            return None
        return {
            "tokens": [self._key(token.token_id) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [self._likeliest(token) for token in tokens],
            "text_offset": offsets,
        }

    def _likeliest(self, token: GeneratedToken) -> Body:
        """Return log-probabilities by text, as OpenAI has them: the token that came is always among them."""
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
