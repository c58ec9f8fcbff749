"""Texts that the user gives: UTF-8, or a line that says why not."""

from pathlib import Path

from elutq_formats.errors import ElutqError


def read_text(path: Path) -> str:
    """Read a UTF-8 file exactly as it is, line ends included.

    Raises:
        ElutqError: it cannot be read.
    """
    try:
        return decode(path.read_bytes(), str(path))
    except OSError as error:
        raise ElutqError(f"cannot read {path}: {error.strerror}") from error


def decode(text: bytes, subject: str) -> str:
    """Decode UTF-8.

    Raises:
        ElutqError: it is not; the message begins with the subject.
    """
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ElutqError(f"{subject} is not UTF-8 text (byte {error.start}): convert it first") from error


def read_template(option: str | None) -> str | None:
    """Return the Jinja that --chat-template means: a file, or Jinja itself, which has a brace in it.

    Raises:
        ElutqError: the file cannot be read.
    """
    return option if option is None or "{" in option else read_text(Path(option))
