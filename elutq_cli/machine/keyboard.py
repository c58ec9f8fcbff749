"""The keyboard of a terminal: editing a line, and keeping what is typed out of a text that is being written."""

import contextlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from elutq_cli.machine import windows


def prepare_keyboard() -> None:
    """Give ``input`` line editing and history; several pasted lines are one message, Tab completes names of files.

    On Windows the console itself edits lines and keeps them.
    """
    if sys.platform == "win32":
        return
    try:
        import readline  # here because it may write to stdout, which belongs to the text where there is no chat
    except ImportError:  # not every Python was built with it
        return
    if "libedit" in (readline.__doc__ or ""):  # macOS's, with commands of its own
        readline.parse_and_bind("bind ^I rl_complete")
        return
    readline.parse_and_bind("set enable-bracketed-paste on")
    readline.parse_and_bind("tab: complete")


@contextmanager
def unseen_keyboard() -> Iterator[None]:
    """Keep what is typed meanwhile out of the text on the screen; the next prompt shows it."""
    if sys.platform == "win32":
        with _unseen_on_windows():
            yield
        return
    import termios

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    silent = [*before]
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


@contextmanager
def _unseen_on_windows() -> Iterator[None]:
    before = windows.console_mode(windows.STDIN)
    with contextlib.ExitStack() as stack:
        if before is not None:
            stack.callback(windows.set_console_mode, windows.STDIN, before)
            windows.set_console_mode(windows.STDIN, before & ~windows.ECHO_INPUT)
        yield
