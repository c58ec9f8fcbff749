"""A notation that a chat template shows, by what it writes of one call and of two, where no family's name is known.

Gemma 3 has none of its own, and the templates for it that know of tools do not agree.
"""

import re

from elutq_cli.server.calls.json_end import JsonEnd
from elutq_cli.server.calls.notation import NAMED_OBJECT, Notation


def learn(one: str, two: str | None, closing: str) -> Notation | None:
    """Return the notation of replies that a template wrote; None where calls are not objects with a name.

    Args:
        one: a reply that is a call.
        two: a reply that is two; None: the template allows one only.
        closing: what the template writes after a reply that is text.
    """
    (objects, pieces), (_, apart) = _taken_apart(one), _taken_apart(two or "")
    if len(objects) != 1:
        return None
    begin, end = pieces[0].lstrip(), pieces[1].removesuffix(closing).rstrip()
    separator = apart[1] if len(apart) == 3 else ""
    found = re.match(NAMED_OBJECT, objects[0])
    assert found is not None
    marks = dict.fromkeys([*begin.split(), *separator.split(), *end.split()])
    return Notation(
        name="the template's own",
        openings=tuple(begin.split()[:1]),
        skipped=tuple(marks),
        head=found[0].replace(found["name"], "NAME"),
        begin=begin,
        separator=separator,
        end=end,
        first=() if begin.split() else ("{",),
    )


def _taken_apart(reply: str) -> tuple[list[str], list[str]]:
    """Return the objects in a reply that are calls, and what is before, between and after them."""
    objects, pieces = [], []
    while found := re.search(NAMED_OBJECT, reply):
        rest = reply[found.start() :]
        length = JsonEnd().find(rest) or len(rest)
        objects.append(rest[:length])
        pieces.append(reply[: found.start()])
        reply = rest[length:]
    return objects, [*pieces, reply]
