"""A model's chat template: Jinja from an untrusted file, run in a sandbox."""

import json
from collections.abc import Mapping, Sequence, Sized
from datetime import datetime
from types import MappingProxyType
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox

from elutq_formats.errors import ElutqError
from elutq_formats.tokenizer import Tokenizer

Message = Mapping[str, Any]
"""One turn of a conversation: ``role``, ``content``, and what else its template knows, such as ``tool_calls``."""

LARGEST_PRODUCT = 1 << 20
"""Longest sequence that a template may make by ``*``, in elements."""


class ChatTemplate:
    """Turns a conversation into the text that the model was trained on.

    Source: the environment in which transformers renders templates (``apply_chat_template``), with the names that
    templates use: ``raise_exception``, ``strftime_now``, ``tojson``, ``break``, ``continue`` and ``generation``.
    """

    def __init__(self, source: str, bos_token: str = "", eos_token: str = "") -> None:
        """Compile a template.

        Args:
            source: Jinja.
            bos_token: as the vocabulary spells it.
            eos_token: as the vocabulary spells it.

        Raises:
            ElutqError: it is not valid Jinja.
        """
        environment = _Environment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _GenerationBlock]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self.source = source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise ElutqError(f"the chat template is not valid Jinja: {_one_line(error)}") from error

    @classmethod
    def for_tokenizer(cls, source: str, tokenizer: Tokenizer) -> "ChatTemplate":
        """Compile a template for a model's vocabulary.

        Raises:
            ElutqError: it is not valid Jinja.
        """
        bos = None if tokenizer.bos_token_id is None else tokenizer.token(tokenizer.bos_token_id)
        eos = tokenizer.token(tokenizer.eos_token_ids[0]) if tokenizer.eos_token_ids else None
        return cls(source, bos or "", eos or "")

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] = MappingProxyType({}),
    ) -> str:
        """Return the text of a conversation.

        Args:
            messages: oldest first; entries of a message that are None are as good as absent.
            add_generation_prompt: end with what comes before the assistant's next reply.
            continue_final_message: end within the last message, so that the model goes on with it.
            variables: what else the template may look at: ``tools``, ``documents``, ``enable_thinking``.

        Raises:
            ElutqError: the template refuses the conversation, or fails; the last message cannot be continued, or a
                next reply is to begin as well.
        """
        turns = [_normalize(message) for message in messages]
        if not turns:
            raise ElutqError("there are no messages: give at least one")
        if continue_final_message and add_generation_prompt:
            raise ElutqError("the last message cannot go on and a new one begin: leave one of the two out")
        mark = _mark_end(turns) if continue_final_message else None
        text = self._render(
            {"tools": None, "documents": None, **self._tokens, **variables}
            | {"messages": turns, "add_generation_prompt": add_generation_prompt}
        )
        return text if mark is None else _cut(text, mark)

    def _render(self, names: Mapping[str, Any]) -> str:
        try:
            return self._template.render(names)
        except _RefusalError as error:
            raise ElutqError(f"the chat template refuses these messages: {_one_line(error)}") from error
        except Exception as error:  # a template is a program: it may fail in any way
            raise ElutqError(f"the chat template fails: {_one_line(error)}") from error


class _RefusalError(jinja2.TemplateError):
    """The template itself called ``raise_exception``."""


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which a template cannot fill the memory by one operator either."""

    intercepted_binops = frozenset(("*", "**", "%"))

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: object, right: object) -> object:
        """Multiply small numbers, repeat short sequences, take remainders."""
        if operator == "%" and not isinstance(left, str):
            return super().call_binop(context, operator, left, right)
        size = 1
        for operand in (left, right):
            size *= len(operand) if isinstance(operand, Sized) else abs(operand) if isinstance(operand, int) else 1
        if operator != "*" or size > LARGEST_PRODUCT:
            raise jinja2.exceptions.SecurityError(f"operator {operator} makes more than a chat template needs")
        return super().call_binop(context, operator, left, right)


class _GenerationBlock(jinja2.ext.Extension):
    """``{% generation %}...{% endgeneration %}`` marks replies for training; here it is its contents."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own declaration)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Return what is inside."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names under which clients pass what a model thought before it replied; templates read the first two."""

_END_MARK = "THE_LAST_MESSAGE_ENDS_HERE "
"""Put at the end of a message that is to be continued; the space shows whether the template trims the message."""


def _normalize(message: Message) -> dict[str, Any]:
    """Return a message as templates want it: no entry that is None, and its reasoning under the names they read."""
    entries = {name: value for name, value in message.items() if value is not None}
    reasoning = next((entries[name] for name in _REASONING if name in entries), None)
    return entries if reasoning is None else {"thinking": reasoning, **entries, "reasoning_content": reasoning}


def _mark_end(turns: list[dict[str, Any]]) -> str:
    """Mark the end of the last message's content; return its text.

    Raises:
        ElutqError: it has none.
    """
    content = turns[-1].get("content")
    if isinstance(content, str):
        turns[-1]["content"] = content + _END_MARK
        return content
    parts = list(content) if isinstance(content, list) else []
    for at, part in reversed(list(enumerate(parts))):
        if isinstance(part, Mapping) and isinstance(text := part.get("text"), str):
            parts[at] = {**part, "text": text + _END_MARK}
            turns[-1]["content"] = parts
            return text
    raise ElutqError("the last message has no text to go on with")


def _cut(text: str, final: str) -> str:
    """Return a conversation up to the end of its last message.

    Raises:
        ElutqError: the template does not write that message as it is.
    """
    end = text.rfind(_END_MARK.rstrip())
    if end < 0 or final.strip() not in text:
        raise ElutqError("the last message cannot go on: the chat template does not write it as it is")
    # A template that trims messages would have trimmed this one too.
    return text[:end] if text.startswith(_END_MARK, end) else text[:end].rstrip()


def _raise_exception(message: str) -> None:
    raise _RefusalError(message)


def _to_json(value: object, indent: int | None = None, **_: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _one_line(error: Exception) -> str:
    return f"{' '.join(str(error).split()) or type(error).__name__:.200}"
