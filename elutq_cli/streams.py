"""Standard streams that the caller has closed, or that cannot hold what is written to them."""

import os
import sys
from pathlib import Path


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
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")


def printable(path: str | os.PathLike[str]) -> str:
    """Return a path as text for JSON and metadata: bytes that are no text as a backslash and their number."""
    return os.fspath(path).encode("utf-8", "backslashreplace").decode("utf-8")
