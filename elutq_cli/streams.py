"""Standard streams that the caller has closed."""

import os
import sys
from pathlib import Path


def open_closed_streams() -> None:
    """Put /dev/null in the place of standard streams that are closed.

    Otherwise the next file to be opened would get their number, and Python's objects for them would be None.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    null = Path(os.devnull)
    sys.stdin = sys.stdin or null.open("r", encoding="utf-8")
    sys.stdout = sys.stdout or null.open("w", encoding="utf-8")
    sys.stderr = sys.stderr or null.open("w", encoding="utf-8")
