"""The messages of a conversation: from OpenAI's form to what a chat template reads."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from elutq_cli.generation import ChatTemplate, Message
from elutq_cli.server.errors import RequestError
from elutq_cli.server.fields import Fields
from elutq_cli.server.thinking import has_effort_switch, thinking_variables
from elutq_formats.errors import ElutqError

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}

OWN_VARIABLES = ("messages", "add_generation_prompt", "continue_final_message")
"""What a template is given from fields of their own, not from chat_template_kwargs."""


def render(fields: Fields, template: ChatTemplate, tools: Sequence[Mapping[str, Any]] | None) -> str:
    """Return the text of the conversation that a body holds.

    Args:
        fields: of the body.
        template: writes the text.
        tools: that the reply may call, as the client described them.

    Raises:
        RequestError: the body is wrong.
        ElutqError: the template refuses the messages.
    """
    messages = _messages(fields.get("messages"))
    goes_on = fields.flag("continue_final_message")
    begins = fields.flag("add_generation_prompt", not goes_on)
    if goes_on and begins:
        raise RequestError(
            "the last message cannot go on and a new one begin: set add_generation_prompt to false",
            "continue_final_message",
        )
    variables = fields.mapping("chat_template_kwargs")
    if wrong := [name for name in OWN_VARIABLES if name in variables]:
        raise RequestError(f"{wrong[0]} is no variable: give it as a field of the body", "chat_template_kwargs")
    if variables.get("enable_thinking") is None:  # null asks for nothing, and templates would take it for something
        variables = {name: value for name, value in variables.items() if name != "enable_thinking"}
    if tools:
        variables = {**variables, "tools": tools}
    if fields.get("enable_thinking") is not None:
        thinks = fields.flag("enable_thinking")
        variables = {**thinking_variables(template, thinks, "enable_thinking"), **variables}
    elif "enable_thinking" in variables:
        thinking_variables(template, bool(variables["enable_thinking"]), "chat_template_kwargs.enable_thinking")
    elif fields.get("reasoning_effort") == "none" and has_effort_switch(template):
        variables = {**thinking_variables(template, False, "reasoning_effort"), **variables}
    for name in ("documents", "reasoning_effort"):
        if (value := fields.get(name)) is not None:
            variables = {name: value, **variables}

    def text(of: Sequence[Message]) -> str:
        return template.render(of, add_generation_prompt=begins, continue_final_message=goes_on, variables=variables)

    parsed = [_with_arguments(message) for message in messages]
    try:
        return text(parsed)
    except ElutqError:
        if parsed == messages:
            raise
        try:
            return text(messages)  # a few templates put the arguments into the prompt as the text that they came as
        except ElutqError:
            pass
        raise


def _messages(value: object) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise RequestError("messages must be a list with at least one message", "messages")
    return [_message(entry) for entry in value]


def _message(entry: object) -> Message:
    """Return one message: its content as one text, everything else as it came."""
    if not isinstance(entry, dict) or not isinstance(entry.get("role"), str) or entry["role"] not in ROLES:
        raise RequestError(f"every message needs a role: {', '.join(ROLES)}", "messages")
    if entry.get("function_call") is not None:
        raise RequestError("function_call in a message is not supported here: use tool_calls", "messages")
    calls = entry.get("tool_calls")
    if calls is not None and not (isinstance(calls, list) and all(_is_call(call) for call in calls)):
        raise RequestError("tool_calls must be a list of functions with name and arguments", "messages")
    content = entry.get("content")
    if content is None and (calls or ("content" in entry and entry["role"] in ("assistant", "tool"))):
        content = ""  # nothing was said: clients send such turns back as they came
    if isinstance(content, list):
        texts = [text for part in content if (text := _text_of(part)) is not None]
        if len(texts) != len(content):
            raise RequestError("a message may have parts of type text only", "messages")
        content = "".join(texts)
    if not isinstance(content, str):
        raise RequestError("the content of every message must be text", "messages")
    return {**entry, "role": ROLES[entry["role"]], "content": content}


def _text_of(part: object) -> str | None:
    """Return what a part says; None: it is no text. A refusal is one, of the assistant's."""
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get(kind) if isinstance(part, dict) and kind in ("text", "refusal") else None
    return text if isinstance(text, str) else None


def _is_call(call: object) -> bool:
    function = call.get("function") if isinstance(call, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str)


def _with_arguments(message: Message) -> Message:
    """Return a message whose tools' arguments are objects, as templates expect; OpenAI's are JSON in a string.

    Raises:
        RequestError: the string is not JSON.
    """
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        function: dict[str, Any] = call["function"]
        if isinstance(arguments := function.get("arguments"), str):
            try:
                arguments = json.loads(arguments) if arguments.strip() else {}
            except (ValueError, RecursionError) as error:
                raise RequestError(f"the arguments of {function['name']} are not JSON", "messages") from error
        calls.append({**call, "function": {**function, "arguments": arguments}})
    return {**message, "tool_calls": calls}
