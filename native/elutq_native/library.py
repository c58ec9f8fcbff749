"""The compiled library, and how its statuses become exceptions."""

from elutq_native._elutq import ffi, lib
from elutq_native.errors import CancelledError, ContextFullError, NativeError

__all__ = ["MESSAGE_BYTES", "check", "default_threads", "ffi", "lib", "supported_kernels"]

MESSAGE_BYTES = 512


def check(status: int, message: object, subject: str = "") -> None:
    """Raises what a status stands for; returns on ``ELUTQ_OK``.

    Args:
        status: What a function of the library returned.
        message: Its ``char[]`` message buffer.
        subject: What the call was about (a file's path); put before the message.

    Raises:
        ContextFullError, CancelledError, NativeError: When the status is not ``ELUTQ_OK``.
    """
    if status == lib.ELUTQ_OK:
        return
    text = ffi.string(message).decode("utf-8", "replace")
    line = f"{subject}: {text}" if subject else text
    if status == lib.ELUTQ_ERROR_MEMORY:
        raise NativeError(status, line, bad_input=False)
    if status == lib.ELUTQ_ERROR_CONTEXT:
        raise ContextFullError(status, line, bad_input=True)
    if status == lib.ELUTQ_ERROR_CANCELLED:
        raise CancelledError(status, line, bad_input=False)
    raise NativeError(status, line, bad_input=True)


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
