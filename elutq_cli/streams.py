"""Standard streams that the caller has closed, or that cannot hold what is written to them."""

import logging
import os
import sys
from pathlib import Path

from elutq_cli.machine.console import prepare_console

# A terminal obeys what it is sent, and a stranger's file or a model may hold anything: controls are shown as pictures.
_CONTROLS = {code: 0x2400 + code for code in range(32)} | {
    code: ord("\N{REPLACEMENT CHARACTER}") for code in range(127, 160)
}
_CONTROLS_IN_TEXT = {code: shown for code, shown in _CONTROLS.items() if chr(code) not in "\n\t"}
# These turn the rest of a line around, so that a name ends in another suffix than it has.
_CONTROLS_IN_LINE = _CONTROLS | {
    code: ord("\N{REPLACEMENT CHARACTER}") for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
}


def prepare_streams() -> None:
    """Make sys.stdin, stdout and stderr usable, whatever the caller has made of them.

    Where one is closed /dev/null takes its place: otherwise the next file to be opened would get its number, and
    Python's object for it would be None. What an encoding lacks, as a path's accents in ASCII or bytes of it that are
    no text at all, is written as a backslash and its number: no result is lost for the sake of a character.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    null = Path(os.devnull)
    sys.stdin = sys.stdin or null.open("r", encoding="utf-8")
    sys.stdout = sys.stdout or null.open("w", encoding="utf-8")
    sys.stderr = sys.stderr or null.open("w", encoding="utf-8")
    prepare_console((sys.stdin, sys.stdout, sys.stderr))
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")


def printable(path: str | os.PathLike[str]) -> str:
    """Return a path as text for JSON and metadata: bytes that are no text as a backslash and their number."""
    return os.fspath(path).encode("utf-8", "backslashreplace").decode("utf-8")


def shown_text(text: str) -> str:
    """Return a text that a terminal shows and does not obey: line feeds and tabs are kept, no other control."""
    return text.translate(_CONTROLS_IN_TEXT)


def shown_line(text: object) -> str:
    """Return a name, or a message with names in it, that a terminal shows in one line and does not obey."""
    return str(text).translate(_CONTROLS_IN_LINE)


class ShownLines(logging.Formatter):
    """Messages of a log as a terminal may show them: they have names out of files in them."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a message."""
        return shown_line(super().format(record))
