"""The compiled library, and how its statuses become exceptions."""

from elutq_native._elutq import ffi, lib
from elutq_native.errors import CancelledError, ContextFullError, ForkedError, NativeError, OverwrittenError

__all__ = [
    "LARGEST",
    "MESSAGE_BYTES",
    "check",
    "check_use",
    "default_threads",
    "ffi",
    "lib",
    "supported_kernels",
    "survive_lost_pages",
    "unsigned",
]

MESSAGE_BYTES = 512

LARGEST = 2**32 - 1
"""What C's ``uint32_t`` and ``unsigned`` hold."""


def unsigned(value: int, what: str) -> int:
    """Returns a number that C takes as an unsigned one of 32 bits, as it is.

    Raises:
        NativeError: It is none.
    """
    if not 0 <= value <= LARGEST:
        raise NativeError(lib.ELUTQ_ERROR_ARGUMENT, f"{what} cannot be {value}", bad_input=True)
    return value


def check(status: int, message: object, subject: str = "") -> None:
    """Raises what a status stands for; returns on ``ELUTQ_OK``.

    Args:
        status: What a function of the library returned.
        message: Its ``char[]`` message buffer.
        subject: What the call was about (a file's path); put before the message.

    Raises:
        NativeError: When the status is not ``ELUTQ_OK``; one of its kinds where there is one for it.
    """
    if status == lib.ELUTQ_OK:
        return
    text = ffi.string(message).decode("utf-8", "replace")
    line = f"{subject}: {text}" if subject else text
    if status in (lib.ELUTQ_ERROR_MEMORY, lib.ELUTQ_ERROR_IN_USE):
        raise NativeError(status, line, bad_input=False)
    if status == lib.ELUTQ_ERROR_FORKED:
        raise ForkedError(status, line, bad_input=False)
    if status == lib.ELUTQ_ERROR_CONTEXT:
        raise ContextFullError(status, line, bad_input=True)
    if status == lib.ELUTQ_ERROR_CANCELLED:
        raise CancelledError(status, line, bad_input=False)
    if status == lib.ELUTQ_ERROR_OVERWRITTEN:
        raise OverwrittenError(status, line, bad_input=False)
    raise NativeError(status, line, bad_input=True)


def check_use(status: int, name: str) -> None:
    """Raises what a status stands for that any call on a session or pool may return; returns on all others.

    Args:
        status: What a function of the library returned that writes no message.
        name: What it was called on.

    Raises:
        NativeError: Another thread was in a call on it.
        ForkedError: This process has not its threads.
    """
    if status == lib.ELUTQ_ERROR_IN_USE:
        raise NativeError(status, f"another thread is using this {name}; open one for each thread", bad_input=False)
    if status == lib.ELUTQ_ERROR_FORKED:
        line = f"this process was forked and has not the {name}'s threads; open another {name} in it"
        raise ForkedError(status, line, bad_input=False)


def default_threads() -> int:
    """Returns the number of physical cores this process may use (affinity and cgroup quota respected)."""
    return int(lib.elutq_default_threads())


def supported_kernels() -> tuple[str, ...]:
    """Returns the names of the kernel sets that this processor runs, the best first, ``scalar`` last."""
    names, i = list[str](), 0
    while (kernels := lib.elutq_kernels_at(i)) != ffi.NULL:
        if lib.elutq_kernels_supported(kernels):
            names.append(ffi.string(kernels.name).decode())
        i += 1
    return tuple(names)


def survive_lost_pages() -> None:
    """Has pages of a model file that vanish beneath a call raise NativeError there, instead of ending the process.

    Installs a handler for SIGBUS, for the whole process and once; signals that are not about a model go to the handler
    that was there before. For programs to decide: the ``elutq`` command does it.

    Raises:
        NativeError: The system does not let it.
    """
    if (status := lib.elutq_survive_lost_pages()) != lib.ELUTQ_OK:
        raise NativeError(status, "the handler for SIGBUS cannot be installed", bad_input=False)
