"""OpenAI's /v1/responses, as far as it keeps nothing: every request brings its whole conversation."""

from collections.abc import Iterable, Mapping
from typing import Any

from elutq_cli.generation import LanguageModel
from elutq_cli.server.dialects.blocks import Block, Blocks, Change, blocks_of
from elutq_cli.server.dialects.dialect import Dialect, typed_event
from elutq_cli.server.dialects.responses_input import messages_of
from elutq_cli.server.errors import Fault, RequestError
from elutq_cli.server.fields import Fields
from elutq_cli.server.response import Body

NO_PLACE: Mapping[str, tuple[object, ...]] = {
    "previous_response_id": (),
    "conversation": (),
    "background": (False,),
    "prompt": (),
    "truncation": ("disabled", "auto"),  # a prompt that does not fit is refused as such
    "max_tool_calls": (),
    "context_management": ([],),
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "messages": (),
    "response_format": (),
}
"""What needs a server that keeps things or has tools of its own, and what an answer has no place for."""

OWN = ("input", "instructions", "text", "tools", "tool_choice", "reasoning", "include", "truncation", "stream_options")

ECHOED = ("instructions", "metadata", "parallel_tool_calls", "temperature", "top_p", "user")

PREFIXES = {"thinking": "rs", "text": "msg", "call": "fc"}


class Responses(Dialect):
    """A request of /v1/responses."""

    names = {  # noqa: RUF012 (not changed)
        "response_format": "text.format",
        "verbosity": "text.verbosity",
        "reasoning_effort": "reasoning",
    }

    def __init__(self, model: LanguageModel, name: str) -> None:
        """Begin; see the base class."""
        super().__init__(model, name)
        self._frame: Body = {}
        self._blocks, self._items = Blocks(), list[Body]()
        self._last: Body = {}
        self._sequence = 0

    def translate(self, body: object) -> Body:
        """Return the body of a chat."""
        fields = Fields(body)
        fields.refuse(NO_PLACE)
        # Thoughts come as they are, and go back so.
        if fields.get("include") not in (None, [], ["reasoning.encrypted_content"]):
            raise RequestError("include is not supported here", "include", "unsupported_parameter")
        self._tools, self._choice = fields.get("tools") or [], fields.get("tool_choice") or "auto"
        self._text, self._reasoning = fields.mapping("text"), fields.mapping("reasoning")
        self._echoed = {name: fields.get(name) for name in ECHOED} | {"max_output_tokens": fields.get("max_tokens")}
        return {
            **fields.without((*OWN, *NO_PLACE)),
            "messages": messages_of(fields.get("input"), fields.get("instructions")),
            "stream_options": {"include_usage": True},
            **_format(Fields(self._text, "text")),
            **self._effort(Fields(self._reasoning, "reasoning")),
            **_tools(self._tools, self._choice),
        }

    def _effort(self, fields: Fields) -> Body:
        fields.refuse({"summary": ("auto",), "generate_summary": ("auto",)})
        effort = fields.get("effort")
        return {} if effort is None else {"reasoning_effort": effort}

    def whole(self, answer: Body) -> Body:
        """Return a response."""
        (choice,) = answer["choices"]
        self._begin(answer)
        self._items = [self._item(block) for block in blocks_of(choice["message"])]
        if self._items and choice["finish_reason"] == "length":
            self._items[-1]["status"] = "incomplete"
        return self._ended(choice, answer["usage"])

    def opening(self) -> Iterable[bytes]:
        """Yield nothing: the first chunk has the response's id."""
        return ()

    def piece(self, chunk: Body) -> Iterable[bytes]:
        """Yield the events of a chunk."""
        if not chunk["choices"]:
            response = self._ended(self._last, chunk["usage"])
            yield self._event({"type": f"response.{response['status']}", "response": response})
            return
        if not self._frame:
            self._begin(chunk)
            for what in ("created", "in_progress"):
                yield self._event({"type": f"response.{what}", "response": self._response("in_progress")})
        (self._last,) = chunk["choices"]
        reason = self._last["finish_reason"]
        ends = [(self._blocks.feed(self._last["delta"]), "completed")]
        if reason is not None:
            ends.append((self._blocks.finish(), "incomplete" if reason == "length" else "completed"))
        for changes, end in ends:
            for change in changes:
                for body in self._changed(change, end):  # before the next change: a block grows by it
                    yield self._event(body)

    def failure(self, fault: Fault) -> bytes:
        """Return the event of a response that failed."""
        error = {"code": fault.code or "server_error", "message": fault.message}
        return self._event({"type": "response.failed", "response": self._response("failed") | {"error": error}})

    def _begin(self, answer: Mapping[str, Any]) -> None:
        self._identity = answer["id"].partition("-")[2]
        self._frame = {"id": f"resp_{self._identity}", "object": "response", "created_at": answer["created"]}

    def _event(self, body: Body) -> bytes:
        self._sequence += 1
        return typed_event(body | {"sequence_number": self._sequence - 1})

    def _changed(self, change: Change, end: str) -> Iterable[Body]:
        """Yield what is said when something happens to a block; ``end`` is the status of one that ends."""
        what, block, text = change
        kind = {"thinking": "reasoning_text", "text": "output_text", "call": "function_call_arguments"}[block.kind]
        item = self._item(block, end if what == "ends" else "in_progress")
        place: Body = {"item_id": item["id"], "output_index": block.index}
        content = {"content_index": 0} if block.kind != "call" else {}
        more: Body = {"logprobs": []} if block.kind == "text" else {}
        if what == "goes on":
            yield {"type": f"response.{kind}.delta", **place, **content, **more, "delta": text}
        elif what == "begins":
            empty = item if block.kind == "call" else item | {"content": []}
            yield {"type": "response.output_item.added", "output_index": block.index, "item": empty}
            if content:
                yield {"type": "response.content_part.added", **place, **content, "part": _part(block)}
        else:
            name = "arguments" if block.kind == "call" else "text"
            named = {"name": block.name} if block.kind == "call" else {}
            yield {"type": f"response.{kind}.done", **place, **content, **more, **named, name: block.text}
            if content:
                yield {"type": "response.content_part.done", **place, **content, "part": _part(block)}
            yield {"type": "response.output_item.done", "output_index": block.index, "item": item}
            self._items.append(item)

    def _item(self, block: Block, status: str = "completed") -> Body:
        item: Body = {"id": f"{PREFIXES[block.kind]}_{self._identity}{block.index}", "status": status}
        match block.kind:
            case "thinking":
                return item | {"type": "reasoning", "summary": [], "content": [_part(block)]}
            case "text":
                return item | {"type": "message", "role": "assistant", "content": [_part(block)]}
        called = {"call_id": block.call_id, "name": block.name, "arguments": block.text}
        return item | {"type": "function_call", **called}

    def _response(self, status: str) -> Body:
        return {
            **self._frame,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self.name,
            "output": self._items,
            **self._echoed,
            "parallel_tool_calls": self._echoed["parallel_tool_calls"] is not False,
            "previous_response_id": None,
            "reasoning": {"effort": self._reasoning.get("effort"), "summary": None},
            "store": False,
            "text": {"format": {"type": "text"}, **self._text},
            "tool_choice": self._choice,
            "tools": self._tools,
            "truncation": "disabled",
            "usage": None,
        }

    def _ended(self, choice: Mapping[str, Any], usage: Mapping[str, Any]) -> Body:
        cut = choice["finish_reason"] == "length"
        response = self._response("incomplete" if cut else "completed") | {"usage": _usage(usage)}
        return response | {"incomplete_details": {"reason": "max_output_tokens"} if cut else None}


def _format(fields: Fields) -> Body:
    """Return OpenAI's older form of what a text has to be like."""
    translated = {"verbosity": fields.get("verbosity")}
    form = fields.get("format")
    if form is not None and not isinstance(form, dict):
        raise RequestError("text.format must be a JSON object", "text.format")
    if form is not None and form.get("type") == "json_schema":
        if form.get("schema") is None:
            raise RequestError("text.format needs a schema", "text.format")
        return translated | {"response_format": {"type": "json_schema", "json_schema": Fields(form).without(("type",))}}
    return translated | ({"response_format": form} if form else {})


def _tools(tools: object, choice: object) -> Body:
    """Return OpenAI's older form of tools: a function is a level deeper."""
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RequestError("tools must be a list of objects", "tools")
    if others := [tool.get("type") for tool in tools if tool.get("type") != "function"]:
        raise RequestError(f"a tool of type {others[0]!r:.40} is not supported here", "tools")
    functions = [{"type": "function", "function": Fields(tool).without(("type",))} for tool in tools]
    if isinstance(choice, dict):
        if choice.get("type") != "function":
            raise RequestError("tool_choice must be auto, none, required or a function", "tool_choice")
        choice = {"type": "function", "function": {"name": choice.get("name")}}
    return {"tools": functions, "tool_choice": choice}


def _part(block: Block) -> Body:
    if block.kind == "thinking":
        return {"type": "reasoning_text", "text": block.text}
    return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": []}


def _usage(usage: Mapping[str, Any]) -> Body:
    n_cached = usage["prompt_tokens_details"]["cached_tokens"]
    thought = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens", 0)
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": n_cached, "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": usage["total_tokens"],
    }
