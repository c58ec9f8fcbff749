"""Calls of tools, read from a reply while it comes."""

import json
import re
import uuid
from collections.abc import Collection, Iterator

from elutq_cli.server.calls.json_end import JsonEnd
from elutq_cli.server.calls.notation import Call, Notation

ID_CHARACTERS = 9
"""Of a call's id: as many as Mistral's templates ask for."""

LONGEST_HEAD = 4096
"""Characters before the arguments of a call, at most."""

_OTHER_OBJECT = re.compile(r'\{\s*"(?!name"|arguments"|parameters"|type"|id"|function")[^"]*"')
"""The beginning of an object that is no call."""

Part = str | tuple[Call, str]
"""Text, or what comes of a call's arguments; nothing of them, where it begins."""


class CallReader:
    """Splits a reply into text and calls.

    What turns out to be no call, or one of a tool that is not there, is text. What may become the beginning of a call
    is held back, and so is white space before it, which is no text where a call follows.
    """

    def __init__(self, notation: Notation, names: Collection[str], forced: bool = False) -> None:
        """Begin a reply.

        Args:
            notation: the model's.
            names: of the tools.
            forced: whether the reply is calls and nothing else, so that what a limit cuts off is no text.
        """
        self._notation, self._names, self._forced = notation, names, forced
        self._step = self._read_text
        self._buffer = ""
        self._marks = ""  # passed over since the last call: text, if there is no call
        self._speaks = False
        self._call: Call | None = None
        self._is_encoded: bool | None = None  # whether its arguments are JSON within a string; None: nothing came
        self._json = JsonEnd()
        self._n_followed = 0  # characters of the buffer that it has seen

    def put(self, text: str) -> Iterator[Part]:
        """Append text; yield what it settles."""
        self._buffer += text
        before = None
        while self._buffer and (state := (self._step, len(self._buffer))) != before:
            before = state
            yield from self._step()

    def finish(self) -> Iterator[Part]:
        """Yield what was held back."""
        rest = self._buffer if self._call else self._marks + self._buffer
        within_call = self._step in (self._read_arguments, self._read_tail, self._read_marks)
        if rest and not self._forced and (self._call is None or not (within_call or rest.isspace())):
            yield rest
        self._buffer = ""

    def _read_text(self) -> Iterator[Part]:
        openings, buffer = self._notation.openings, self._buffer
        begun = buffer.lstrip()
        first = () if self._speaks else self._notation.first
        found = [0] if begun.startswith(first) and first else [at for at in map(buffer.find, openings) if at >= 0]
        if not found and any(mark.startswith(begun) for mark in first):
            return
        n_text = min(found) if found else len(buffer) - _n_begun(buffer, openings)
        n_text = len(buffer[:n_text].rstrip())
        if n_text:
            self._speaks = True
            yield buffer[:n_text]
        self._buffer = buffer[n_text:]
        if found:
            self._marks, self._step = "", self._read_marks

    def _read_marks(self) -> Iterator[Part]:
        buffer, skipped = self._buffer, self._notation.skipped
        if any(mark != buffer and mark.startswith(buffer) for mark in skipped):
            return
        mark = buffer[0] if buffer[0].isspace() else next((mark for mark in skipped if buffer.startswith(mark)), "")
        if mark:
            self._marks, self._buffer = self._marks + mark, buffer[len(mark) :]
        elif buffer[0] == "{" or (self._notation.bare_names and (buffer[0].isalnum() or buffer[0] == "_")):
            self._step, self._json, self._n_followed = self._read_head, JsonEnd(), 0
        else:
            yield from self._give_up()

    def _read_head(self) -> Iterator[Part]:
        buffer = self._buffer
        if len(buffer) <= LONGEST_HEAD and (found := self._notation.pattern.match(buffer)):
            name = found["name"] if self._notation.bare_names else _parsed(found["name"])
            if name not in self._names:
                yield from self._give_up()
                return
            yield self._begin(str(name)), ""
            self._buffer, self._n_followed = buffer[found.end() :], 0
            self._step, self._json, self._is_encoded = self._read_arguments, JsonEnd(), None
        elif self._notation.bare_names:
            if len(buffer) > LONGEST_HEAD or "{" in buffer:
                yield from self._give_up()
        elif _OTHER_OBJECT.match(buffer):
            yield from self._give_up()
        elif (end := self._json.find(buffer[self._n_followed :])) is None:
            self._n_followed = len(buffer)
        else:
            yield from self._read_whole(self._n_followed + end)

    def _read_whole(self, end: int) -> Iterator[Part]:
        """Read a call whose entries come in another order."""
        entries = _parsed(self._buffer[:end])
        entries = entries if isinstance(entries, dict) else {}
        name, arguments = entries.get("name"), entries.get("arguments", entries.get("parameters"))
        if isinstance(name, str) and name in self._names and isinstance(arguments, dict | str):
            text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
            call = self._begin(name)
            call.complete = True
            yield call, text
            self._buffer, self._step = self._buffer[end:], self._read_marks
        else:
            yield from self._give_up()

    def _read_arguments(self) -> Iterator[Part]:
        call = self._call
        assert call is not None
        if self._is_encoded is None:
            self._is_encoded = self._buffer.startswith('"')
        end = self._json.find(self._buffer[self._n_followed :])
        if end is None and self._is_encoded:  # it is known when it is whole
            self._n_followed = len(self._buffer)
            return
        n_read = len(self._buffer) if end is None else self._n_followed + end
        text, self._buffer = self._buffer[:n_read], self._buffer[n_read:]
        inner = _parsed(text) if self._is_encoded else None
        yield call, inner if isinstance(inner, str) else text
        if end is not None:
            call.complete = True
            self._step = self._read_marks if self._notation.bare_names else self._read_tail
            self._json = JsonEnd(depth=1)

    def _read_tail(self) -> Iterator[Part]:
        """Pass over what an object has after the arguments, such as an id."""
        end = self._json.find(self._buffer)
        self._buffer = "" if end is None else self._buffer[end:]
        if end is not None:
            self._step = self._read_marks
        yield from ()

    def _begin(self, name: str) -> Call:
        self._marks, self._n_followed = "", 0
        self._call = call = Call(uuid.uuid4().hex[:ID_CHARACTERS], name)
        return call

    def _give_up(self) -> Iterator[Part]:
        """Take marks and the first character after them for text; after a call the marks were its own."""
        text = self._buffer[:1] if self._call else self._marks + self._buffer[:1]
        self._marks, self._buffer = "", self._buffer[1:]
        self._step, self._speaks = self._read_text, True
        yield text


def _n_begun(text: str, marks: Collection[str]) -> int:
    """Return the length of the longest end of a text with which one of several marks begins."""
    longest = max(map(len, marks), default=0)
    ends = (text[-n:] for n in range(min(longest, len(text)), 0, -1))
    return next((len(end) for end in ends if any(mark.startswith(end) for mark in marks)), 0)


def _parsed(text: str) -> object:
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value
