"""What a worker of a Ray cluster runs.

Ray starts workers before anybody asks for them; what they import of elutq comes with the first unit. This module does
not import numpy, so that BLAS can still be told how many threads it has.
"""

from __future__ import annotations

import logging
from functools import cache
from logging.handlers import QueueHandler
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from elutq_cli.pipeline.compute.blas import configure_blas
from elutq_formats.errors import ElutqError

if TYPE_CHECKING:
    from elutq_cli.pipeline.compute.backend import Backend
    from elutq_cli.pipeline.compute.shipping import AnyArray


def run_as_worker(
    text: bytes, threads: int, kind: tuple[bytes, str] | None, *arrays: AnyArray
) -> tuple[Any, list[logging.LogRecord]]:
    """Run a unit in a worker.

    Args:
        text: of the unit.
        threads: that it has.
        kind: how to ask a worker what it is, and what it must be: its node may have joined after others were asked.
        arrays: of the unit, which its node fetches while another is at work.

    Returns:
        Its result, and what was logged meanwhile: nobody reads a worker's log.
    """
    configure_blas(1)
    from elutq_cli.pipeline.compute.shipping import run_unit

    if kind is not None:
        _check_kind(*kind, threads)
    logged: SimpleQueue[logging.LogRecord] = SimpleQueue()
    root, handler = logging.getLogger(), QueueHandler(logged)
    root.addHandler(handler)
    try:
        result = run_unit(text, arrays, _own_backend(threads))
    finally:
        root.removeHandler(handler)
    return result, [logged.get_nowait() for _ in range(logged.qsize())]


@cache
def _check_kind(describe: bytes, expected: str, threads: int) -> None:
    """Look once in a worker's life whether it is of the kind of the machine that calls.

    Raises:
        ElutqError: it is not.
    """
    import ray

    from elutq_cli.pipeline.compute.shipping import run_unit

    if (found := run_unit(describe, [], _own_backend(threads))) != expected:
        raise ElutqError(difference(ray.util.get_node_ip_address(), found, expected))


def difference(name: str, found: str, here: str) -> str:
    """Say that a node is of another kind than the machine that calls."""
    return (
        f"node {name} of the Ray cluster would make another file: it has {found}, and the machine that calls {here}: "
        "use machines of one kind with one version of elutq"
    )


@cache
def _own_backend(threads: int) -> Backend:
    """Return a worker's backend; it lives as long as the worker."""
    from elutq_cli.pipeline.compute.backend import native_backend

    return native_backend(threads).__enter__()
