"""Programs that run beside a test."""

import subprocess
from contextlib import contextmanager


@contextmanager
def started(command, **options):
    """Start a program; what is left of it in the end is killed: ``with Popen`` would wait, for ever if need be."""
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.kill()
