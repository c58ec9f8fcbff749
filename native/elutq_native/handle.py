"""Who may use an object of the C library: nobody after it was closed, and it is not freed beneath a call."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from elutq_native.errors import ClosedError
from elutq_native.library import ffi, lib


class Handle:
    """An object of the C library, freed when it is closed and no call is under way in it. Safe in any thread."""

    def __init__(
        self,
        pointer: object,
        free: Callable[[Any], object],
        name: str,
        interrupt: Callable[[Any], object] = lambda pointer: None,
    ) -> None:
        """Own an object.

        Args:
            pointer: Points to it.
            free: The function of the library that frees it.
            name: What it is, for messages.
            interrupt: Has calls under way in it end early; called when it is closed beneath them.
        """
        self._pointer = ffi.gc(pointer, free)
        self._name = name
        self._interrupt = interrupt
        # A signal handler may run between any two lines of the thread that holds it, and close or cancel: it may enter.
        self._lock = threading.RLock()
        self._n_calls = 0
        self._closed = False

    @contextmanager
    def use(self) -> Iterator[Any]:
        """Gives the pointer for a call.

        Raises:
            ClosedError: The object was closed.
        """
        with self._lock:
            self._n_calls += 1
        try:
            self.check()
            yield self._pointer
        finally:
            with self._lock:
                self._n_calls -= 1
                self._free_when_unused()

    def check(self) -> None:
        """Raises ClosedError when the object was closed."""
        if self._closed:
            raise ClosedError(lib.ELUTQ_ERROR_ARGUMENT, f"the {self._name} is closed", bad_input=False)

    def close(self) -> None:
        """Frees the object, or has the last of the calls under way free it. Once closed, does nothing."""
        with self._lock:
            if self._n_calls > 0 and not self._closed:
                self._interrupt(self._pointer)
            self._closed = True
            self._free_when_unused()

    def _free_when_unused(self) -> None:
        if self._closed and self._n_calls == 0:
            ffi.release(self._pointer)
