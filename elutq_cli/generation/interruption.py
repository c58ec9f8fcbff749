"""Ctrl-C while the C runtime computes: Python runs signal handlers between its own instructions only."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interruptible(cancel: Callable[[], None]) -> Iterator[None]:
    """Make the first SIGINT call ``cancel`` at once, in another thread; further ones raise KeyboardInterrupt.

    To be used in the main thread, the only one that may set signal handlers.

    Args:
        cancel: safe in any thread.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    n_interrupts = 0

    def watch() -> None:
        while (byte := os.read(reader, 1)) != b"":
            if byte[0] == signal.SIGINT:
                cancel()

    def handle(number: int, frame: object) -> None:
        nonlocal n_interrupts
        n_interrupts += 1
        if n_interrupts > 1:
            raise KeyboardInterrupt

    watcher = threading.Thread(target=watch, name="elutq-interrupt", daemon=True)
    watcher.start()
    old_wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    old_handler = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, old_handler)
        signal.set_wakeup_fd(old_wakeup)
        os.close(writer)
        watcher.join()
        os.close(reader)
