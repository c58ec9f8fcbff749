"""A model's chat template: Jinja from an untrusted file, run in a sandbox."""

import json
from collections.abc import Mapping, Sequence, Sized
from datetime import datetime

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox

from elutq_formats.errors import ElutqError
from elutq_formats.tokenizer import Tokenizer

Message = Mapping[str, str]
"""One turn of a conversation: ``role`` (``system``, ``user`` or ``assistant``) and ``content``."""

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

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """Return the text of a conversation.

        Args:
            messages: oldest first.
            add_generation_prompt: end with what comes before the assistant's next reply.

        Raises:
            ElutqError: the template refuses the conversation, or fails.
        """
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                **self._tokens,
            )
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


def _raise_exception(message: str) -> None:
    raise _RefusalError(message)


def _to_json(value: object, indent: int | None = None, **_: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _one_line(error: Exception) -> str:
    return f"{' '.join(str(error).split()) or type(error).__name__:.200}"
