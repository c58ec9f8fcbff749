"""How much work a filter or a method is to a chat template, where that is more than what it was given."""

from collections.abc import Iterable, Sequence, Sized

from elutq_cli.generation.template_work import STEP, Work, widest

_TEXT_FILTERS = frozenset(
    (
        "capitalize",
        "center",
        "e",
        "escape",
        "filesizeformat",
        "float",
        "forceescape",
        "format",
        "indent",
        "int",
        "list",
        "lower",
        "pprint",
        "replace",
        "safe",
        "string",
        "striptags",
        "title",
        "trim",
        "truncate",
        "upper",
        "urlencode",
        "urlize",
        "wordcount",
        "wordwrap",
        "xmlattr",
    )
)
_COMPARING_FILTERS = frozenset(("dictsort", "groupby", "max", "min", "sort", "unique"))
_SLOW_FILTERS = frozenset(("pprint", "striptags", "urlize", "wordwrap", "xmlattr"))

_SLOW_SEARCHES = frozenset(("lstrip", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "strip"))
"""Methods in which Python may look at each character of what is sought for each of the text."""

FILTERS_OF_ALL = _COMPARING_FILTERS | {"join", "map", "rejectattr", "selectattr", "sum"}
"""Filters whose work is known once all elements are."""

_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


def filter_size(work: Work, name: str, value: object, arguments: Sequence[object]) -> int:
    """Return the work of a filter where it is more than what it makes."""
    texts = [argument for argument in arguments if isinstance(argument, str)]
    if name in FILTERS_OF_ALL:
        return _size_of_all(work, name, value, arguments, texts)
    if name in ("batch", "slice"):
        return widest(arguments) * STEP
    if name == "round":
        return widest(arguments) << 10
    return _text_size(work, name, value, arguments, texts) if name in _TEXT_FILTERS else 0


def _size_of_all(work: Work, name: str, value: object, arguments: Sequence[object], texts: Sequence[str]) -> int:
    """Return the work of a filter of elements: attributes (``a.b,a.c``) are looked up in each."""
    n_elements = len(value) if isinstance(value, Sized) else 1
    paths = texts[:1] if name in ("rejectattr", "selectattr") else texts
    size = sum(path.count(".") + path.count(",") for path in paths) * n_elements * STEP // 4
    if name in _COMPARING_FILTERS:
        return size + work.weigh(value) // 4
    if name == "sum" and any(isinstance(start, list | tuple) for start in arguments):
        return size + work.weigh(value) ** 2 // 64  # each sum of lists is a copy of the last
    if name == "join" and isinstance(value, Iterable):
        return size + sum(map(work.text_size, value)) + n_elements * sum(map(len, texts))
    return size


def _text_size(work: Work, name: str, value: object, arguments: Sequence[object], texts: Sequence[str]) -> int:
    """Return the work of a filter of text."""
    size, glue = work.text_size(value), sum(map(len, texts))
    work.spend(size)
    if name in _SLOW_FILTERS:
        return size * size // 64 + size * glue
    if name == "center":
        return widest(arguments)
    if name in ("list", "wordcount"):
        return size * STEP if isinstance(value, str) else 0
    if name == "trim":
        return size * glue // 16
    if name == "indent":
        return _n_lines(str(value)) * (widest(arguments) + glue)
    if name == "replace":
        return max((str(value).count(text) for text in texts), default=0) * glue
    return work.printf_size(str(value), tuple(arguments)) if name == "format" else 0


def method_size(work: Work, owner: str, name: str, arguments: Sequence[object]) -> int:
    """Return the work of a text's method where it is more than what it makes."""
    texts = [argument for argument in arguments if isinstance(argument, str)]
    if name in ("center", "ljust", "rjust", "zfill"):
        return widest(arguments)
    if name == "expandtabs":
        return (owner.count("\t") + 1) * (widest(arguments) + 8)
    if name == "replace" and len(texts) == 2:
        return owner.count(texts[0]) * len(texts[1])
    if name == "join" and arguments and isinstance(arguments[0], Iterable):
        return sum(work.text_size(entry) + len(owner) for entry in arguments[0])
    if name == "splitlines":
        return _n_lines(owner) * STEP
    if name in ("format", "format_map"):
        return work.format_size(owner, arguments)
    if name in _SLOW_FILTERS:
        return len(owner) ** 2 // 64
    size = len(owner) * (sum(map(len, texts)) if name in _SLOW_SEARCHES else 1) // 16
    if name in ("split", "rsplit"):
        size += owner.count(texts[0]) * STEP if texts and texts[0] else len(owner) * 8
    return size


def _n_lines(text: str) -> int:
    return 1 + sum(map(text.count, _LINE_ENDS))
