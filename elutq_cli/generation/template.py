"""A model's chat template: Jinja from an untrusted file, run in a sandbox."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

from elutq_cli.generation.template_environment import RefusalError, TemplateContext, TemplateEnvironment
from elutq_cli.generation.template_work import ExcessError, Work
from elutq_formats.errors import ElutqError
from elutq_formats.tokenizer import Tokenizer

Message = Mapping[str, Any]
"""One turn of a conversation: ``role``, ``content``, and what else its template knows, such as ``tool_calls``."""

LARGEST_SOURCE = 1 << 17
"""Characters of the longest template."""

NONE: Mapping[str, Any] = MappingProxyType({})


class ChatTemplate:
    """Turns a conversation into the text that the model was trained on.

    Source: the environment in which transformers renders templates (``apply_chat_template``), with the names that
    templates use: ``raise_exception``, ``strftime_now``, ``tojson``, ``break``, ``continue`` and ``generation``.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] = NONE) -> None:
        """Compile a template.

        Args:
            source: Jinja.
            special_tokens: how the vocabulary spells them, by the names that templates use: ``bos_token``.

        Raises:
            ElutqError: it is not valid Jinja.
        """
        self.source = source
        self._special_tokens = special_tokens
        if len(source) > LARGEST_SOURCE:
            raise ElutqError(f"the chat template has {len(source)} characters: more than a conversation needs")
        try:
            self._template = TemplateEnvironment().from_string(source)
        except Exception as error:  # Jinja's own errors, and those of Python's compiler, which compiles what it writes
            raise ElutqError(f"the chat template is not valid Jinja: {_one_line(error)}") from error

    @classmethod
    def for_tokenizer(cls, source: str, tokenizer: Tokenizer) -> "ChatTemplate":
        """Compile a template for a model's vocabulary.

        Raises:
            ElutqError: it is not valid Jinja.
        """
        return cls(source, tokenizer.special_tokens)

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] = NONE,
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
            {"tools": None, "documents": None, **self._special_tokens, **variables}
            | {"messages": turns, "add_generation_prompt": add_generation_prompt}
        )
        return text if mark is None else _cut(text, mark)

    def _render(self, names: Mapping[str, Any]) -> str:
        try:
            work = Work()
            admitted = cast(dict[str, Any], work.admit(names))  # held to the end: its weight is known by its address
            context = cast(TemplateContext, self._template.new_context(admitted))
            context.work = work
            return "".join(self._template.root_render_func(context))
        except ExcessError as error:
            raise ElutqError("the chat template does more than a conversation needs") from error
        except RefusalError as error:
            raise ElutqError(f"the chat template refuses these messages: {_one_line(error)}") from error
        except Exception as error:  # a template is a program: it may fail in any way
            raise ElutqError(f"the chat template fails: {_one_line(error)}") from error


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


def _one_line(error: Exception) -> str:
    return f"{' '.join(str(error).split()) or type(error).__name__:.200}"
