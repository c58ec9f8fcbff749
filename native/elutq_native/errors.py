"""Errors of the native runtime."""

from typing import Any


class NativeError(Exception):
    """The C runtime refused or failed; the message is one line that says what is wrong.

    Attributes:
        status: The ``ELUTQ_ERROR_*`` code of ``native/include/elutq.h``.
        bad_input: Whether what the caller gave (a file, an argument) is at fault, not this machine.
    """

    def __init__(self, status: int, message: str, bad_input: bool) -> None:
        super().__init__(message)
        self.status = status
        self.bad_input = bad_input

    def __reduce__(self) -> tuple[Any, ...]:
        """Come through to another process as it is."""
        return type(self), (self.status, str(self), self.bad_input)


class ContextFullError(NativeError):
    """More tokens than the session's context holds."""


class OverwrittenError(NativeError):
    """Keys and values that would be needed have given way to later ones: start afresh, from position 0."""


class ClosedError(NativeError):
    """A model, session or quantizer was used after it was closed."""


class ForkedError(NativeError):
    """A process that was forked uses an engine or quantizer of the one before, whose threads it has not."""


class CancelledError(NativeError):
    """The evaluation was cancelled through :meth:`Session.cancel`."""
