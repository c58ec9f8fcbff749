"""Ollama's /api, which many editors and front ends know a local server by."""

import json
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import Any

from elutq_cli.generation import LanguageModel
from elutq_cli.server.dialects.blocks import arguments_of
from elutq_cli.server.dialects.dialect import COMPLETION, Dialect
from elutq_cli.server.errors import Fault, RequestError
from elutq_cli.server.fields import Fields
from elutq_cli.server.response import Body

OPTIONS = {"num_predict": "max_tokens"}
"""Ollama's names of options that OpenAI has under others; the rest have the same."""

NO_MATTER = ("num_ctx", "num_keep", "num_batch", "num_gpu", "main_gpu", "num_thread", "use_mmap", "use_mlock", "numa")
"""Options that change no text: how a machine is used, and what is cut from prompts that are too long, which none is."""

NO_PLACE = {"n": (1,), "logprobs": (False,), "top_logprobs": (0,)}
"""Fields of OpenAI's that an answer has no place for."""


class OllamaText(Dialect):
    """A request for a text."""

    media_type = "application/x-ndjson"
    silence = b""
    names = {"max_tokens": "num_predict", "response_format": "format", "enable_thinking": "think"}  # noqa: RUF012 (not changed)

    def __init__(self, model: LanguageModel, name: str) -> None:
        """Begin; see the base class."""
        super().__init__(model, name)
        self._leaves = False
        self._last: Body = {}
        self._calls: list[Body] = []

    def translate(self, body: object) -> Body | None:
        """Return the body of a chat or a completion; None: the model is to be loaded, as it is, or to leave."""
        fields = Fields(body)
        fields.refuse(NO_PLACE)
        self._leaves = fields.get("keep_alive") in (0, "0", "0s")
        translated = self._text(fields)
        if translated is None:
            return None
        own = ("options", "keep_alive", "format", "think", "stream", "messages", "prompt", "system", "raw")
        options = {
            OPTIONS.get(name, name): value
            for name, value in self._options(Fields(fields.mapping("options"), "options")).items()
        }
        translated = {"max_tokens": -1, **fields.without(own), **options, **translated, **_format(fields.get("format"))}
        if (think := fields.get("think")) is not None:
            translated |= self._think(think)
        return translated | {"stream": fields.flag("stream", True), "stream_options": {"include_usage": True}}

    def _options(self, fields: Fields) -> Body:
        fields.refuse(NO_PLACE)
        check_context(fields, self.model)
        options = fields.without(NO_MATTER)
        if options.get("num_predict") == -2:  # to the context's end
            options["num_predict"] = -1
        return options

    def _think(self, think: object) -> Body:
        is_effort = isinstance(think, str) and think in ("low", "medium", "high")
        if not (is_effort or isinstance(think, bool)):
            raise RequestError("think must be true, false, low, medium or high", "think")
        if self.kind is COMPLETION:
            return {"think": think} if think else {}
        return {"enable_thinking": bool(think)} | ({"reasoning_effort": think} if is_effort else {})

    def nothing(self) -> Body:
        """Return what loading a model is answered with."""
        return self._frame(self._said("", {})) | {"done": True, "done_reason": "unload" if self._leaves else "load"}

    def whole(self, answer: Body) -> Body:
        """Return the text and what it cost."""
        (choice,) = answer["choices"]
        message = choice.get("message", {})
        said = self._said(choice.get("text") or message.get("content") or "", message)
        return self._frame(said) | self._end(choice, answer["usage"])

    def opening(self) -> Iterable[bytes]:
        """Yield nothing."""
        return ()

    def piece(self, chunk: Body) -> Iterable[bytes]:
        """Yield the line of a chunk; the last one has what the text cost."""
        if not chunk["choices"]:
            yield _line(self._frame(self._said("", {})) | self._end(self._last, chunk["usage"]))
            return
        (self._last,) = chunk["choices"]
        delta = self._last.get("delta", {})
        self._gather(delta.get("tool_calls") or ())
        text, thought = self._last.get("text") or delta.get("content") or "", delta.get("reasoning_content")
        if self._last["finish_reason"] is not None and self._calls:
            yield _line(self._frame(self._said(text, {"tool_calls": self._calls})) | {"done": False})
        elif text or thought:
            yield _line(self._frame(self._said(text, {"reasoning_content": thought})) | {"done": False})

    def failure(self, fault: Fault) -> bytes:
        """Return the error as a line."""
        return _line(error_body(fault))

    @abstractmethod
    def _text(self, fields: Fields) -> Body | None:
        """Return what a body says of its text, in OpenAI's form; None: there is none to make."""

    @abstractmethod
    def _said(self, text: str, message: Mapping[str, Any]) -> Body:
        """Return what was said, in a message of OpenAI's, where it belongs in an answer."""

    def _gather(self, deltas: Iterable[Mapping[str, Any]]) -> None:
        """Put calls together, which come whole here."""
        for delta in deltas:
            function = delta["function"]
            if delta["index"] == len(self._calls):
                self._calls.append({"id": delta.get("id"), "function": {"name": function["name"], "arguments": ""}})
            self._calls[delta["index"]]["function"]["arguments"] += function.get("arguments") or ""

    def _frame(self, said: Body) -> Body:
        return {"model": self.name, "created_at": datetime.now(timezone.utc).isoformat(), **said}

    def _end(self, choice: Mapping[str, Any], usage: Mapping[str, Any]) -> Body:
        generation = self.generations[0]
        reading, making = int(1e9 * generation.prompt_seconds), int(1e9 * generation.seconds)
        return {
            "done": True,
            "done_reason": "length" if choice["finish_reason"] == "length" else "stop",
            "total_duration": reading + making,
            "load_duration": 0,
            "prompt_eval_count": usage["prompt_tokens"],
            "prompt_eval_duration": reading,
            "eval_count": usage["completion_tokens"],
            "eval_duration": making,
        }


class Chat(OllamaText):
    """A request of /api/chat."""

    def _text(self, fields: Fields) -> Body | None:
        messages = fields.get("messages")
        if messages in (None, []):
            return None
        if not isinstance(messages, list) or not all(isinstance(entry, dict) for entry in messages):
            raise RequestError("messages must be a list of objects", "messages")
        return {"messages": [_message(entry) for entry in messages]}

    def _said(self, text: str, message: Mapping[str, Any]) -> Body:
        said: Body = {"role": "assistant", "content": text}
        if thought := message.get("reasoning_content"):
            said["thinking"] = thought
        if calls := message.get("tool_calls"):
            called = [(call["function"]["name"], arguments_of(call["function"]["arguments"])) for call in calls]
            whole = [(name, arguments) for name, arguments in called if arguments is not None]
            said["tool_calls"] = [{"function": {"name": name, "arguments": arguments}} for name, arguments in whole]
        return {"message": said}


class Generate(OllamaText):
    """A request of /api/generate: a prompt of the user's, or a text as it is (``raw``)."""

    def _text(self, fields: Fields) -> Body | None:
        fields.refuse({"tools": ([],)})
        prompt, system = fields.get("prompt"), fields.get("system") or ""
        if prompt in (None, ""):
            return None
        if not isinstance(prompt, str) or not isinstance(system, str):
            raise RequestError("prompt and system must be texts", "prompt")
        if fields.flag("raw") or self.model.chat_template is None:
            if system:
                raise RequestError("system is not supported with raw, or without a chat template", "system")
            self.kind = COMPLETION
            return {"prompt": prompt}
        messages = [{"role": "system", "content": system}] if system else []
        return {"messages": [*messages, {"role": "user", "content": prompt}]}

    def _said(self, text: str, message: Mapping[str, Any]) -> Body:
        thought = message.get("reasoning_content")
        return {"response": text, "thinking": thought} if thought else {"response": text}


def check_context(options: Fields, model: LanguageModel) -> None:
    """Refuse options that want a larger context than there is.

    Raises:
        RequestError: they do.
    """
    asked = options.integer("num_ctx", 0, 1 << 31) or 0
    if asked > model.ctx_size:
        room = f"the context of this server has {model.ctx_size} tokens"
        raise RequestError(f"num_ctx is {asked}: {room}; see elutq serve -c", "num_ctx")


def error_body(fault: Fault) -> Body:
    """Return Ollama's body of an error."""
    return {"error": fault.named_message}


def _message(entry: Mapping[str, Any]) -> Body:
    """Return OpenAI's form of a message."""
    if entry.get("images"):
        raise RequestError("images in messages are not supported here", "messages")
    named = {"name": entry["tool_name"]} if entry.get("tool_name") else {}
    return {name: value for name, value in entry.items() if name not in ("images", "tool_name")} | named


def _format(value: object) -> Body:
    """Return OpenAI's form of what a text has to match."""
    if value in (None, ""):
        return {}
    if value == "json":
        return {"response_format": {"type": "json_object"}}
    if not isinstance(value, dict):
        raise RequestError("format must be json or a JSON schema", "format")
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "format", "schema": value}}}


def _line(body: Body) -> bytes:
    return json.dumps(body, ensure_ascii=False).encode() + b"\n"
