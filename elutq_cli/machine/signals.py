"""Signals that end a program, or what it is at: Ctrl-C, and being told to leave."""

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

INTERRUPT, TERMINATE = signal.SIGINT, signal.SIGTERM
"""Ctrl-C, and what a program is told that should leave."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


@contextmanager
def interruptible(cancel: Callable[[], None]) -> Iterator[None]:
    """Make the first Ctrl-C call ``cancel`` at once, in another thread; further ones raise KeyboardInterrupt.

    Python runs signal handlers between its own instructions only, and here the C runtime computes. To be used in the
    main thread, the only one that may set signal handlers.

    Args:
        cancel: safe in any thread.
    """
    reader, writer = socket.socketpair()  # not a pipe, which Windows cannot be told never to wait on
    writer.setblocking(False)
    n_interrupts = 0

    def watch() -> None:
        while (byte := reader.recv(1)) != b"":
            if byte[0] == signal.SIGINT:
                cancel()

    def handle(number: int, frame: object) -> None:
        nonlocal n_interrupts
        n_interrupts += 1
        if n_interrupts > 1:
            raise KeyboardInterrupt

    watcher = threading.Thread(target=watch, name="elutq-interrupt", daemon=True)
    watcher.start()
    old_wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    old_handler = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, old_handler)
        signal.set_wakeup_fd(old_wakeup)
        writer.close()
        watcher.join()
        reader.close()


@contextmanager
def leaving_in_order() -> Iterator[None]:
    """Make SIGTERM an exception inside the block, so that temporary files are removed on the way out."""
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(number: int, frame: object) -> None:
    raise SystemExit(128 + number)
