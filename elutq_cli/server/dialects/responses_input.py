"""The items that a request of OpenAI's /v1/responses begins from, as the messages of a chat."""

from collections.abc import Mapping
from typing import Any

from elutq_cli.server.errors import RequestError
from elutq_cli.server.response import Body

TEXTS = {
    **dict.fromkeys(("input_text", "output_text", "text", "reasoning_text", "summary_text"), "text"),
    "refusal": "refusal",
}
"""Types of parts, and the fields that their texts are."""

WHAT_A_TEXT_IS = "input may have texts, or lists of parts of type input_text or output_text"


def messages_of(given: object, instructions: object) -> list[Body]:
    """Return the messages of a chat.

    Args:
        given: ``input``: a text of the user's, or items.
        instructions: what comes before them, if anything.

    Raises:
        RequestError: one is wrong, or of a type that is not here.
    """
    if instructions is not None and not isinstance(instructions, str):
        raise RequestError("instructions must be a text", "instructions")
    conversation = _Conversation()
    if instructions:
        conversation.messages.append({"role": "system", "content": instructions})
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
        raise RequestError("input must be a text or a list of items", "input")
    for item in items:
        conversation.add(item)
    return conversation.messages


class _Conversation:
    """Messages in the making: thoughts, text and calls are items of their own, and one message of the assistant."""

    def __init__(self) -> None:
        self.messages: list[Body] = []
        self._called: dict[str, str] = {}
        self._thought = ""

    def add(self, item: Mapping[str, Any]) -> None:
        kind = item.get("type", "message")
        if kind == "message":
            self._say(item)
        elif kind == "reasoning":
            self._thought += _text(item.get("content") or item.get("summary") or [])
        elif kind == "function_call":
            self._call(item)
        elif kind == "function_call_output" and isinstance(identity := item.get("call_id"), str):
            result = {"role": "tool", "tool_call_id": identity, "content": _text(item.get("output"))}
            self.messages.append({**result, "name": self._called.get(identity)})
        else:
            raise RequestError(f"an item of type {kind!r:.40} is not supported here, or not whole", "input")

    def _say(self, item: Mapping[str, Any]) -> None:
        message = {"role": item.get("role"), "content": _text(item.get("content"))}
        if message["role"] == "assistant" and self._thought:
            message["reasoning_content"], self._thought = self._thought, ""
        self.messages.append(message)

    def _call(self, item: Mapping[str, Any]) -> None:
        identity, name, arguments = item.get("call_id"), item.get("name"), item.get("arguments")
        if not (isinstance(identity, str) and isinstance(name, str) and isinstance(arguments, str)):
            raise RequestError("an item of type function_call needs call_id, name and arguments", "input")
        if not self.messages or self.messages[-1]["role"] != "assistant" or self._thought:
            self._say({"role": "assistant", "content": ""})
        function = {"name": name, "arguments": arguments}
        call = {"id": identity, "type": "function", "function": function}
        self.messages[-1].setdefault("tool_calls", []).append(call)
        self._called[identity] = name


def _text(value: object) -> str:
    """Return a text, or the texts of parts."""
    parts = [{"type": "text", "text": value}] if isinstance(value, str) else value
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise RequestError(WHAT_A_TEXT_IS, "input")
    texts = [part.get(TEXTS.get(str(part.get("type")))) for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise RequestError(WHAT_A_TEXT_IS, "input")
    return "".join(texts)
