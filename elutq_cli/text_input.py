"""Texts that the user gives: UTF-8, or a line that says why not."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from elutq_formats.errors import ElutqError
from elutq_formats.file_system import reachable

BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"


def read_text(path: Path) -> str:
    """Read a text file, whatever system wrote it; see ``decode_file``.

    Raises:
        ElutqError: it cannot be read.
    """
    return decode_file(read_bytes(path), str(path))


def read_bytes(path: Path) -> bytes:
    """Read a file.

    Raises:
        ElutqError: it cannot be read.
    """
    try:
        return reachable(path).read_bytes()
    except (OSError, ValueError) as error:  # the latter: no system has such a name
        reason = error.strerror if isinstance(error, OSError) else error
        raise ElutqError(f"cannot read {path}: {reason}") from error


def decode_file(content: bytes, subject: str) -> str:
    r"""Return the text of a file or a stream: without a byte order mark, every line end being ``\n``.

    Raises:
        ElutqError: see ``decode``.
    """
    return decode(content, subject).removeprefix(BOM).replace("\r\n", "\n").replace("\r", "\n")


def decode(text: bytes, subject: str) -> str:
    """Decode UTF-8, exactly as it is.

    Raises:
        ElutqError: it is something else; the message begins with the subject.
    """
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ElutqError(f"{subject} is not UTF-8 text (byte {error.start}): convert it first") from error


def json_lines(text: str, place: str) -> Iterator[tuple[str, object]]:
    """Yield what each line of a JSONL file says, and where it stands; blank lines are passed over.

    Raises:
        ElutqError: a line is not JSON.
    """
    for number, line in enumerate(text.split("\n"), 1):  # a JSON string may hold other line separators
        if line.strip():
            try:
                value: object = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ElutqError(f"{place}, line {number} is not JSON: {error}") from error
            yield f"{place}, line {number}", value


def read_json(path: Path) -> Any:  # noqa: ANN401 (whatever it says)
    """Return what a JSON file says.

    Raises:
        ElutqError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ElutqError(f"{path} is not JSON: {error}") from error


def read_template(option: str | None) -> str | None:
    """Return the Jinja that --chat-template means: a file, or Jinja itself, which has a brace in it.

    Raises:
        ElutqError: the file cannot be read, or is empty.
    """
    if option is None or "{" in option:
        return option
    if not (template := read_text(Path(option))).strip():
        raise ElutqError(f"{option} is empty: a chat template writes the messages that it is given")
    return template
