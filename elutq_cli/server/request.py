"""What a client asks for: OpenAI's request bodies, checked field by field."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from elutq_cli.generation import LanguageModel, Message, SamplingOptions, TextOptions
from elutq_formats.errors import ElutqError

DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default for /v1/completions; a reply in a chat goes on to its end."""

NO_LIMIT = -1
"""Front ends of other servers write no limit, no seed and every token as -1."""

MOST_LOGPROBS = 20

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


class RequestError(ElutqError):
    """A request is wrong.

    Attributes:
        parameter: the field at fault, if it is one.
    """

    def __init__(self, message: str, parameter: str | None = None) -> None:
        """Describe it."""
        super().__init__(message)
        self.parameter = parameter


@dataclass(frozen=True)
class TextRequest:
    """One text to make.

    Attributes:
        tokens: the prompt.
        sampling: how tokens are chosen, but for the seed.
        options: where the text ends.
        seed: of the draws, if the client named one.
        stream: send the text while it is made.
        include_usage: end a stream with the number of tokens.
    """

    tokens: list[int]
    sampling: SamplingOptions
    options: TextOptions
    seed: int | None
    stream: bool
    include_usage: bool


class Fields:
    """A request body, read field by field; null is the same as nothing."""

    def __init__(self, body: object) -> None:
        """Wrap a parsed body.

        Raises:
            RequestError: it is not an object.
        """
        if not isinstance(body, dict):
            raise RequestError("the body must be a JSON object")
        self._body: Mapping[str, Any] = body

    def get(self, name: str) -> Any:  # noqa: ANN401 (whatever the client sent)
        """Return a field as it came."""
        return self._body.get(name)

    def number(self, name: str, default: float) -> float:
        """Return a number."""
        value = self.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise RequestError(f"{name} must be a number", name)
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise RequestError(f"{name} must be a finite number", name)
        return number

    def integer(self, name: str, least: int, most: int) -> int | None:
        """Return a whole number between two others, or None."""
        value = self.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise RequestError(f"{name} must be a whole number from {least} to {most}", name)
        return value

    def flag(self, name: str) -> bool:
        """Return a truth value; nothing is false."""
        value = self.get(name)
        if value is not None and not isinstance(value, bool):
            raise RequestError(f"{name} must be true or false", name)
        return bool(value)

    def strings(self, name: str) -> tuple[str, ...]:
        """Return a string, or several."""
        value = self.get(name)
        if value is None:
            return ()
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(entry, str) for entry in values):
            raise RequestError(f"{name} must be a string or a list of strings", name)
        return tuple(values)

    def refuse_unsupported(self, unsupported: Mapping[str, tuple[object, ...]]) -> None:
        """Refuse fields that would change the result and are not implemented, unless they ask for the default."""
        for name, harmless in unsupported.items():
            if self.get(name) not in (None, *harmless):
                raise RequestError(f"{name} is not supported here", name)


def read_chat(body: object, model: LanguageModel) -> TextRequest:
    """Read the body of /v1/chat/completions.

    Raises:
        RequestError: it is wrong, or the prompt does not fit.
        ElutqError: the chat template refuses the messages.
    """
    fields = Fields(body)
    fields.refuse_unsupported(
        {
            "n": (1,),
            "logit_bias": ({},),
            "tools": ([],),
            "functions": ([],),
            "response_format": ({"type": "text"},),
            "audio": (),
            "modalities": (["text"],),
        }
    )
    messages = _messages(fields.get("messages"))
    limits = [fields.integer(name, NO_LIMIT, 1 << 31) for name in ("max_completion_tokens", "max_tokens")]
    n_predict = next((limit for limit in limits if limit is not None), NO_LIMIT)
    top = fields.integer("top_logprobs", 0, MOST_LOGPROBS) or 0
    logprobs = top if fields.flag("logprobs") else None
    if top and logprobs is None:
        raise RequestError("top_logprobs needs logprobs", "top_logprobs")
    tokens = model.encode(messages)
    return _request(fields, model, tokens, n_predict, logprobs, "messages")


def read_completion(body: object, model: LanguageModel) -> TextRequest:
    """Read the body of /v1/completions.

    Raises:
        RequestError: it is wrong, or the prompt does not fit.
    """
    fields = Fields(body)
    fields.refuse_unsupported({"n": (1,), "best_of": (1,), "echo": (False,), "suffix": ("",), "logit_bias": ({},)})
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        prompt = prompt[0]
    if isinstance(prompt, str):
        tokens = model.encode(prompt)
    elif isinstance(prompt, list) and all(type(entry) is int for entry in prompt):
        tokens = prompt
        if not all(0 <= token < model.native.vocab_size for token in tokens):
            raise RequestError(f"prompt has a token that is not among the {model.native.vocab_size}", "prompt")
    else:
        raise RequestError("prompt must be one text, or the token ids of one", "prompt")
    n_predict = fields.integer("max_tokens", NO_LIMIT, 1 << 31)
    logprobs = fields.integer("logprobs", 0, MOST_LOGPROBS)
    default = DEFAULT_COMPLETION_TOKENS
    return _request(fields, model, tokens, default if n_predict is None else n_predict, logprobs, "prompt")


def _request(
    fields: Fields, model: LanguageModel, tokens: list[int], n_predict: int, logprobs: int | None, source: str
) -> TextRequest:
    """Read what both kinds of request share."""
    if not tokens:
        raise RequestError("the prompt has no tokens", source)
    if len(tokens) > model.ctx_size:
        raise RequestError(f"the prompt has {len(tokens)} tokens, the context holds {model.ctx_size}", source)
    defaults = SamplingOptions.of(model.file.sampling)
    sampling = SamplingOptions(
        repeat_penalty=fields.number("repeat_penalty", defaults.repeat_penalty),
        presence_penalty=fields.number("presence_penalty", defaults.presence_penalty),
        frequency_penalty=fields.number("frequency_penalty", defaults.frequency_penalty),
        top_k=defaults.top_k if (top_k := fields.integer("top_k", NO_LIMIT, 1 << 31)) is None else max(top_k, 0),
        top_p=fields.number("top_p", defaults.top_p),
        min_p=fields.number("min_p", defaults.min_p),
        temp=fields.number("temperature", defaults.temp),
    )
    seed = fields.integer("seed", NO_LIMIT, (1 << 63) - 1)
    stream_options = Fields(fields.get("stream_options") or {})
    return TextRequest(
        tokens,
        sampling,
        TextOptions(n_predict, fields.strings("stop"), logprobs=logprobs, reply=source == "messages"),
        None if seed == NO_LIMIT else seed,
        fields.flag("stream"),
        stream_options.flag("include_usage"),
    )


def _messages(value: object) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise RequestError("messages must be a list with at least one message", "messages")
    return [_message(entry) for entry in value]


def _message(entry: object) -> Message:
    if not isinstance(entry, dict) or not isinstance(entry.get("role"), str) or entry["role"] not in ROLES:
        raise RequestError(f"every message needs a role: {', '.join(ROLES)}", "messages")
    content = entry.get("content")
    if isinstance(content, list):
        texts = [part["text"] for part in content if _is_text(part)]
        if len(texts) != len(content):
            raise RequestError("a message may have parts of type text only", "messages")
        content = "".join(texts)
    if not isinstance(content, str):
        raise RequestError("the content of every message must be text", "messages")
    return {"role": ROLES[entry["role"]], "content": content}


def _is_text(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
