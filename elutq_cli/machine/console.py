"""What a console has to be told before text can be written to it: on Windows, UTF-8 and that codes mean colours."""

import sys
from typing import TextIO

from elutq_cli.machine import windows


def prepare_console(streams: tuple[TextIO, ...]) -> None:
    """Let a console show any text, and files and pipes hold UTF-8, where that is not what they do anyway.

    Args:
        streams: the standard ones, for reading and writing.
    """
    if sys.platform != "win32":
        return
    windows.set_code_pages(windows.UTF_8)
    for number in (windows.STDOUT, windows.STDERR):
        if (mode := windows.console_mode(number)) is not None:
            windows.set_console_mode(number, mode | windows.VIRTUAL_TERMINAL)
    for stream in streams:
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(encoding="utf-8")
