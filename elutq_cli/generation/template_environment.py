"""The environment in which chat templates run: transformers' names and syntax, in a sandbox that counts the work."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, cast

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils

from elutq_cli.generation.template_compiler import CountingCode
from elutq_cli.generation.template_sizes import FILTERS_OF_ALL, filter_size, method_size
from elutq_cli.generation.template_work import CALL, LARGEST_NUMBER, STEP, ExcessError, Work

LARGEST_INDENT = 64
"""Spaces of a level of JSON, and characters of its separators."""

LARGEST_DATE = 1024
"""Characters of a date's format."""

_LONGEST_ESCAPE = len("&quot;")

_UNSAFE_METHODS = frozenset(("encode", "from_bytes", "maketrans", "to_bytes", "translate"))
"""Methods of texts and numbers that no template needs, and whose work is hard to foresee."""


class RefusalError(jinja2.TemplateError):
    """The template itself called ``raise_exception``."""


class TemplateContext(jinja2.runtime.Context):
    """The names that a template sees, and the work that it has left."""

    work: Work

    def derived(self, locals: dict[str, Any] | None = None) -> "TemplateContext":
        """Return a context of a block."""
        context = cast(TemplateContext, super().derived(locals))
        context.work = self.work
        return context


def _work(context: jinja2.runtime.Context) -> Work:
    return cast(TemplateContext, context).work


class TemplateEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which a template ends, and does not fill the memory.

    All that can take long or make much is counted: statements (``CountingCode``), calls, filters, tests, operators,
    and what they make. What can make far more than it was given is foreseen, and counted before it is done.
    """

    intercepted_binops = frozenset(("+", "-", "*", "**", "%"))
    context_class = TemplateContext

    def __init__(self) -> None:
        """Prepare what transformers' templates have; constants are not computed while a template is compiled."""
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            finalize=_written,
            extensions=[jinja2.ext.loopcontrols, _GenerationBlock],
        )
        self.code_generator_class = CountingCode
        self.filters["tojson"] = _to_json
        self.filters = {name: _counted_filter(name, function) for name, function in self.filters.items()}
        self.tests = {name: _counted_test(function) for name, function in dict[str, Any](self.tests).items()}
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "dict": lambda *entries, **named: dict(*entries, **named),
            "namespace": _Namespace,
        }

    def is_safe_attribute(self, obj: object, attr: str, value: object) -> bool:
        """Return whether a template may see an attribute."""
        return super().is_safe_attribute(obj, attr, value) and attr not in _UNSAFE_METHODS

    def getitem(self, obj: object, argument: object) -> object:
        """Return an element; no message has one by the name of a tuple, which can take long to look up."""
        return self.undefined(obj=obj) if isinstance(argument, tuple) else super().getitem(obj, cast(str, argument))

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: object, right: object) -> object:
        """Add, multiply, raise to a power, format or take a remainder."""
        work = _work(context)
        if operator == "%" and isinstance(left, str):
            work.spend(work.printf_size(left, right))
        elif isinstance(left, int) and isinstance(right, int):
            bits = {"*": left.bit_length() + right.bit_length(), "**": left.bit_length() * max(right, 0)}
            if bits.get(operator, 0) > LARGEST_NUMBER:
                raise ExcessError
        elif operator == "*":
            sequence, times = (right, left) if isinstance(left, int) else (left, right)
            if isinstance(sequence, str | list | tuple) and isinstance(times, int):
                work.spend(max(times, 0) * work.text_size(sequence))
        elif isinstance(left, str):
            work.spend(len(left))
        return work.made(super().call_binop(context, operator, left, right))

    def call(__self, __context: jinja2.runtime.Context, __obj: object, *args: object, **kwargs: object) -> object:
        """Call a function, a macro, or a method of a text, a list or a mapping."""
        work = _work(__context)
        # A macro finds its arguments in lists, which could hold one another.
        work.spend(CALL + (work.weigh(args) + work.weigh(kwargs)) // 16)
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps ``format``
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, str):
            args = tuple(list(value) if isinstance(value, Iterator) else value for value in args)
            work.spend(method_size(work, owner, name, [*args, *kwargs.values()]))
        elif isinstance(owner, list | tuple | range):
            work.compare(owner)
        elif isinstance(__obj, jinja2.runtime.LoopContext):
            work.spend(STEP)
        return work.made(super().call(__context, __obj, *args, **kwargs))

    def step(self, context: jinja2.runtime.Context) -> bool:
        """Count an element that a loop's condition looks at."""
        _work(context).spend(STEP)
        return True

    def made(self, context: jinja2.runtime.Context, value: object) -> object:
        """Count a value; return it."""
        return _work(context).made(value)

    def compared(self, context: jinja2.runtime.Context, value: object) -> object:
        """Count a comparison with a value, or a search in it; return it."""
        if isinstance(value, Iterator):
            value = list(value)
        _work(context).compare(value)
        return value

    def join_texts(self, context: jinja2.runtime.Context, parts: Sequence[Any]) -> str:
        """Return the texts of values, one after another."""
        _spend_written(context, parts)
        join = jinja2.runtime.markup_join if context.eval_ctx.autoescape else jinja2.runtime.str_join
        return join(parts)


class _Namespace(jinja2.utils.Namespace):
    """What ``namespace`` makes. It does not write what is in it, which is not weighed; no name has an underscore."""

    def __init__(*args: object, **kwargs: object) -> None:
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _check_attribute(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: object) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


def _check_attribute(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot have {name!r}: its name begins with an underscore")


class _GenerationBlock(jinja2.ext.Extension):
    """``{% generation %}...{% endgeneration %}`` marks replies for training; here it is its contents."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own declaration)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """Return what is inside; what is set there ends with it."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


@jinja2.pass_context
def _written(context: jinja2.runtime.Context, value: object) -> object:
    """Count what ``{{ }}`` writes."""
    _spend_written(context, (value,))
    return value


def _spend_written(context: jinja2.runtime.Context, values: Sequence[object]) -> None:
    work = _work(context)
    work.spend(sum(map(work.text_size, values)) * (_LONGEST_ESCAPE if context.eval_ctx.autoescape else 1))


def _strftime_now(form: str) -> str:
    if len(form) > LARGEST_DATE:
        raise ExcessError
    return datetime.now().strftime(form)


def _raise_exception(message: str) -> None:
    raise RefusalError(message)


@jinja2.pass_context
def _to_json(
    context: jinja2.runtime.Context,
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON; Jinja's own filter would escape it for HTML."""
    if max(map(_length, (indent, *(separators or ())))) > LARGEST_INDENT:
        raise ExcessError
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return "".join(_counted_pieces(_work(context), encoder.iterencode(value)))


def _length(layout: int | str | None) -> int:
    return len(layout) if isinstance(layout, str) else layout or 0


def _counted_pieces(work: Work, pieces: Iterable[str]) -> Iterator[str]:
    for piece in pieces:
        work.spend(STEP // 2 + len(piece))
        yield piece


def _counted_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that counts its work and what it makes."""

    @jinja2.pass_context
    def counted(context: jinja2.runtime.Context, value: object, /, *args: object, **kwargs: object) -> object:
        work = _work(context)
        if name in FILTERS_OF_ALL and isinstance(value, Iterator):
            value = list(value)
        work.spend(CALL + filter_size(work, name, value, [*args, *kwargs.values()]))
        return work.made(function(*_passed(function, context), value, *args, **kwargs))

    return counted


def _counted_test(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a test (``is in``, ``is equalto``) that counts its work."""

    @jinja2.pass_context
    def counted(context: jinja2.runtime.Context, value: object, /, *args: object) -> bool:
        work = _work(context)
        args = tuple(list(other) if isinstance(other, Iterator) else other for other in args)
        work.spend(CALL + work.weigh(args) // 16 + (work.weigh(value) // 16 if args or isinstance(value, str) else 0))
        return bool(function(*_passed(function, context), value, *args))

    return counted


def _passed(function: Callable[..., Any], context: jinja2.runtime.Context) -> tuple[Any, ...]:
    """Return what a filter or a test wants before its value."""
    kinds = jinja2.utils._PassArg
    wanted = {kinds.context: context, kinds.eval_context: context.eval_ctx, kinds.environment: context.environment}
    kind = kinds.from_obj(function)
    return () if kind is None else (wanted[kind],)
