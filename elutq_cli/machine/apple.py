"""The door to macOS: values of the kernel by name, as ``sysctl`` prints them."""

import ctypes


def sysctl_text(name: str) -> str | None:
    """Return a value that is a text; None where there is none of that name."""
    found = _read(name)
    return None if found is None else found.split(b"\0")[0].decode("utf-8", "replace") or None


def sysctl_number(name: str) -> int | None:
    """Return a value that is a whole number, of 4 bytes or 8; None where there is none of that name."""
    found = _read(name)
    return None if found is None else int.from_bytes(found, "little")


def _read(name: str) -> bytes | None:
    try:
        sysctl = ctypes.CDLL(None).sysctlbyname
    except (OSError, AttributeError):
        return None
    buffer = ctypes.create_string_buffer(256)
    size = ctypes.c_size_t(len(buffer))
    status: int = sysctl(name.encode("ascii"), buffer, ctypes.byref(size), None, ctypes.c_size_t(0))
    return buffer.raw[: size.value] if status == 0 else None
