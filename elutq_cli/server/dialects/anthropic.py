"""Anthropic's /v1/messages, as Claude Code and Anthropic's own clients speak it."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from elutq_cli.generation import LanguageModel
from elutq_cli.server.dialects.blocks import Block, Blocks, Change, arguments_of, blocks_of
from elutq_cli.server.dialects.dialect import Dialect, typed_event
from elutq_cli.server.errors import Fault, RequestError
from elutq_cli.server.fields import Fields
from elutq_cli.server.limits import Limits
from elutq_cli.server.request import TextRequest
from elutq_cli.server.response import Body, usage
from elutq_cli.server.thinking import may_think

ERROR_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}

TOOL_CHOICES = {"auto": "auto", "any": "required", "none": "none"}

NO_PLACE = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "container": (),
    "mcp_servers": ([],),
    "context_management": ({"edits": []}, {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}),
    "compaction": (),
    "thread": (),
    "response_format": (),
}
"""Fields of Anthropic's that are not here, and of OpenAI's that its answer has no place for."""


class Messages(Dialect):
    """A request of /v1/messages."""

    silence = typed_event({"type": "ping"})
    names = {  # noqa: RUF012 (not changed)
        "stop": "stop_sequences",
        "enable_thinking": "thinking",
        "thinking_budget_tokens": "thinking",
        "response_format": "output_config",
    }

    def __init__(self, model: LanguageModel, name: str) -> None:
        """Begin; see the base class."""
        super().__init__(model, name)
        self._blocks: Blocks | None = None
        self._ending: Body = {}

    def translate(self, body: object) -> Body:
        """Return the body of a chat."""
        fields = Fields(body)
        fields.refuse(NO_PLACE)
        own = ("system", "messages", "tools", "tool_choice", "thinking", "metadata", "output_config", "output_format")
        messages = [*_system(fields.get("system")), *_messages(fields.get("messages"))]
        translated = fields.without(own) | {"messages": messages, "stream_options": {"include_usage": True}}
        if not messages:
            raise RequestError("the messages say nothing", "messages")
        if messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]:  # what the reply begins with
            translated["continue_final_message"] = True
        if (tools := fields.get("tools")) is not None:
            translated["tools"] = _tools(tools)
        if choice := fields.mapping("tool_choice"):
            translated |= _tool_choice(choice)
        translated |= self._output(fields)
        if thinking := fields.mapping("thinking"):
            translated |= self._thinking(Fields(thinking, "thinking"))
        return translated

    def _output(self, fields: Fields) -> Body:
        """Return OpenAI's form of what the text has to match, and how hard the model is to try."""
        config = Fields(fields.mapping("output_config"), "output_config")
        config.refuse(dict.fromkeys(config.without(("format", "effort")), ()))
        form, older = config.mapping("format"), fields.mapping("output_format")
        if older:
            if form not in ({}, older):
                raise RequestError(
                    "output_format and the format in output_config are one thing: give one of them", "output_format"
                )
            form, self.names = older, {**self.names, "response_format": "output_format"}
        translated: Body = {}
        if (effort := config.get("effort")) is not None:
            translated["reasoning_effort"] = effort
        if form:
            if form.get("type") != "json_schema":
                name = self.names["response_format"]
                raise RequestError(f"{name} takes a format of type json_schema only", name)
            schema = {"name": "output", "schema": form.get("schema")}
            translated["response_format"] = {"type": "json_schema", "json_schema": schema}
        return translated

    def _thinking(self, fields: Fields) -> Body:
        kind = fields.get("type")
        if kind not in ("enabled", "adaptive", "disabled"):
            raise RequestError("thinking must be of type enabled, adaptive or disabled", "thinking")
        if kind == "adaptive" and not may_think(self.model.required_chat_template):
            return {}  # the model is to think as it sees fit
        return {"enable_thinking": kind != "disabled", "thinking_budget_tokens": fields.get("budget_tokens")}

    def whole(self, answer: Body) -> Body:
        """Return a message."""
        (choice,) = answer["choices"]
        content = list(filter(None, map(_content, blocks_of(choice["message"]))))
        return self._message(answer["id"], content) | _end(choice) | {"usage": _usage(answer["usage"])}

    def opening(self) -> Iterable[bytes]:
        """Yield nothing: the message begins with the first chunk, which has its id."""
        return ()

    def piece(self, chunk: Body) -> Iterable[bytes]:
        """Yield the events of a chunk."""
        if not chunk["choices"]:
            yield typed_event({"type": "message_delta", "delta": self._ending, "usage": _usage(chunk["usage"])})
            yield typed_event({"type": "message_stop"})
            return
        (choice,) = chunk["choices"]
        if self._blocks is None:
            self._blocks = Blocks()
            message = self._message(chunk["id"], []) | {"stop_reason": None, "stop_sequence": None}
            message["usage"] = _usage(usage(self.generations, 1)) | {"output_tokens": 0}
            yield typed_event({"type": "message_start", "message": message})
        yield from map(_block_event, self._blocks.feed(choice["delta"]))
        if choice["finish_reason"] is not None:
            yield from map(_block_event, self._blocks.finish())
            self._ending = _end(choice)

    def failure(self, fault: Fault) -> bytes:
        """Return the error as an event."""
        return typed_event(error_body(fault))

    def _message(self, identity: str, content: list[Body]) -> Body:
        identity = f"msg_{identity.partition('-')[2]}"
        return {"id": identity, "type": "message", "role": "assistant", "model": self.name, "content": content}


class CountTokens(Messages):
    """A request of /v1/messages/count_tokens."""

    def read(self, body: object, limits: Limits) -> TextRequest | None:
        """Read the request, and ask for no text."""
        super().read(body, limits)
        return None

    def nothing(self) -> Body:
        """Return a number."""
        return {"input_tokens": sum(generation.prompt_tokens for generation in self.generations)}


def error_body(fault: Fault) -> Body:
    """Return Anthropic's body of an error."""
    kind = ERROR_TYPES.get(fault.status, "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": fault.named_message}}


def _system(value: object) -> list[Body]:
    return [] if value in (None, "", []) else [{"role": "system", "content": _text(value, "system")}]


def _messages(value: object) -> list[Body]:
    if not isinstance(value, list) or not value:
        raise RequestError("messages must be a list with at least one message", "messages")
    called: dict[str, str] = {}
    return [message for entry in value for message in _turn(entry, called)]


def _turn(entry: object, called: dict[str, str]) -> Iterator[Body]:
    """Yield the messages that a turn is in OpenAI's form: results of tools have messages of their own.

    Args:
        entry: of the client's.
        called: names of tools by their calls; filled.
    """
    if not isinstance(entry, dict) or entry.get("role") not in ("user", "assistant", "system"):
        raise RequestError("every message needs a role: user or assistant", "messages")
    content = entry.get("content")
    if isinstance(content, str):
        yield {"role": entry["role"], "content": content}
        return
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise RequestError("the content of every message must be text or a list of blocks", "messages")
    texts: list[str] = []
    message: Body = {"role": entry["role"]}
    for block in content:
        match block.get("type"):
            case "text":
                texts.append(_text([block], "messages"))
            case "thinking" if isinstance(block.get("thinking"), str):
                message["reasoning_content"] = message.get("reasoning_content", "") + block["thinking"]
            case "redacted_thinking":
                pass  # of another model: nobody here can read it
            case "tool_use":
                call = _call(block)
                called[call["id"]] = call["function"]["name"]
                message.setdefault("tool_calls", []).append(call)
            case "tool_result":
                if not isinstance(identity := block.get("tool_use_id"), str):
                    raise RequestError("a block of type tool_result needs tool_use_id", "messages")
                result = _text(block.get("content") or "", "messages")
                yield {"role": "tool", "tool_call_id": identity, "name": called.get(identity), "content": result}
            case kind:
                raise RequestError(f"a message may not have a block of type {kind!r:.40} here", "messages")
    if texts or len(message) > 1 or not content:
        yield message | {"content": "".join(texts)}


def _text(value: object, name: str) -> str:
    """Return a text, or the texts of blocks."""
    blocks = [{"type": "text", "text": value}] if isinstance(value, str) else value
    if not isinstance(blocks, list) or not all(
        isinstance(block, dict) and block.get("type") == "text" and isinstance(block.get("text"), str)
        for block in blocks
    ):
        raise RequestError(f"{name} may have text, or a list of blocks of type text, where a text belongs", name)
    return "".join(block["text"] for block in blocks)


def _call(block: Mapping[str, Any]) -> Body:
    identity, name, given = block.get("id"), block.get("name"), block.get("input")
    if not (isinstance(identity, str) and isinstance(name, str) and isinstance(given, dict)):
        raise RequestError("a block of type tool_use needs id, name and input", "messages")
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": given}}


def _tools(value: object) -> list[Body]:
    """Return OpenAI's form of tools."""
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise RequestError("tools must be a list of objects", "tools")
    translated = []
    for tool in value:
        if tool.get("type") not in (None, "custom"):
            raise RequestError(f"a tool of type {tool['type']!r:.40} is not supported here", "tools")
        function = {"name": tool.get("name"), "parameters": tool.get("input_schema")}
        function |= {name: tool[name] for name in ("description", "strict") if tool.get(name) is not None}
        translated.append({"type": "function", "function": function})
    return translated


def _tool_choice(choice: Mapping[str, Any]) -> Body:
    kind = choice.get("type")
    if kind == "tool" and isinstance(choice.get("name"), str):
        chosen: object = {"type": "function", "function": {"name": choice["name"]}}
    elif isinstance(kind, str) and kind in TOOL_CHOICES:
        chosen = TOOL_CHOICES[kind]
    else:
        raise RequestError("tool_choice must be of type auto, any, none, or tool with a name", "tool_choice")
    alone = Fields(choice).flag("disable_parallel_tool_use")
    return {"tool_choice": chosen, **({"parallel_tool_calls": False} if alone else {})}


def _content(block: Block) -> Body | None:
    """Return a block as it is when it is over; None: it is a call that was cut in the middle."""
    match block.kind:
        case "thinking":
            return {"type": "thinking", "thinking": block.text, "signature": ""}
        case "text":
            return {"type": "text", "text": block.text}
    if (given := arguments_of(block.text)) is None:
        return None
    return {"type": "tool_use", "id": block.call_id, "name": block.name, "input": given}


def _block_event(change: Change) -> bytes:
    what, block, text = change
    match what:
        case "begins":
            begun = _content(block)
            return typed_event({"type": "content_block_start", "index": block.index, "content_block": begun})
        case "goes on":
            kind, name = {
                "thinking": ("thinking_delta", "thinking"),
                "text": ("text_delta", "text"),
                "call": ("input_json_delta", "partial_json"),
            }[block.kind]
            delta = {"type": kind, name: text}
            return typed_event({"type": "content_block_delta", "index": block.index, "delta": delta})
    return typed_event({"type": "content_block_stop", "index": block.index})


def _end(choice: Mapping[str, Any]) -> Body:
    """Return why a message ended."""
    sequence = choice["stop_reason"] if isinstance(choice["stop_reason"], str) else None
    reason = STOP_REASONS[choice["finish_reason"]] if sequence is None else "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": sequence}


def _usage(counted: Mapping[str, Any]) -> Body:
    """Return the numbers of tokens; Anthropic's input is without what was cached."""
    n_cached = counted["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": counted["prompt_tokens"] - n_cached,
        "cache_read_input_tokens": n_cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": counted["completion_tokens"],
    }
