"""A reply in OpenAI's form: its thoughts, its text and calls of tools, told apart while it comes."""

from collections.abc import Iterable, Iterator
from typing import Any

from elutq_cli.server.calls.notation import Call
from elutq_cli.server.calls.reader import CallReader, Part
from elutq_cli.server.thinking import Thoughts
from elutq_cli.server.tools import ToolUse

Delta = dict[str, Any]


class Reply:
    """The deltas of one reply, and the message that they make.

    Attributes:
        calls_tools: whether there is a whole call.
    """

    def __init__(self, tools: ToolUse | None = None, thoughts: Thoughts | None = None) -> None:
        """Begin.

        Args:
            tools: that it may call; None: none.
            thoughts: that it may begin with; None: none.
        """
        self._shows_thoughts = thoughts is not None and thoughts.shown
        self._thoughts = None if thoughts is None else thoughts.reader()
        self._reasoning = ""
        self._tools = tools
        self._reader = None if tools is None else CallReader(tools.notation, tools.names, tools.forced)
        self._content = ""
        self._calls: list[Call] = []
        self._arguments: list[str] = []

    @property
    def calls_tools(self) -> bool:
        """Whether there is a whole call."""
        return any(call.complete for call in self._calls)

    @property
    def message(self) -> Delta:
        """The whole message, as far as it came."""
        message: Delta = {"role": "assistant", "content": self._content, "refusal": None}
        if self._reasoning:
            message["reasoning_content"] = self._reasoning
        if self._calls:
            message["content"] = self._content or None
            message["tool_calls"] = [
                _call(call) | {"function": {"name": call.name, "arguments": arguments}}
                for call, arguments in zip(self._calls, self._arguments, strict=True)
            ]
        return message

    def put(self, text: str) -> Iterator[Delta]:
        """Append text; yield the deltas that it settles."""
        for is_thought, part in [(False, text)] if self._thoughts is None else self._thoughts.put(text):
            yield from self._piece(is_thought, part)

    def finish(self) -> Iterator[Delta]:
        """Yield the deltas that were held back."""
        for is_thought, part in () if self._thoughts is None else self._thoughts.finish():
            yield from self._piece(is_thought, part)
        yield from self._deltas(() if self._reader is None else self._reader.finish())

    def _piece(self, is_thought: bool, text: str) -> Iterator[Delta]:
        if not is_thought:
            yield from self._deltas([text] if self._reader is None else self._reader.put(text))
        elif self._shows_thoughts:
            self._reasoning += text
            yield {"reasoning_content": text}

    def _deltas(self, parts: Iterable[Part]) -> Iterator[Delta]:
        for part in parts:
            if isinstance(part, str):
                if part:
                    self._content += part
                    yield {"content": part}
                continue
            call, arguments = part
            begins = not self._calls or self._calls[-1] is not call
            if begins and self._calls and self._tools is not None and not self._tools.parallel:
                continue
            if begins:
                self._calls.append(call)
                self._arguments.append("")
            self._arguments[-1] += arguments
            delta: Delta = {"index": len(self._calls) - 1, "function": {"arguments": arguments}}
            if begins:
                delta = _call(call) | {"index": len(self._calls) - 1}
                delta["function"] = {"name": call.name, "arguments": arguments}
            yield {"tool_calls": [delta]}


def _call(call: Call) -> Delta:
    return {"id": call.call_id, "type": "function"}
