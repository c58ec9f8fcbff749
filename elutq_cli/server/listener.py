"""The socket and the HTTP server behind the endpoint."""

import contextlib
import ipaddress
import logging
import socket
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from elutq_cli.server.engine import Engine
from elutq_formats.errors import ElutqError

SHUTDOWN_SECONDS = 5
"""How long connections may take to close after Ctrl-C; texts end at once."""


def is_loopback(host: str) -> bool:
    """Whether an address is reachable from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        ElutqError: the address cannot be used.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=512)
    except OSError as error:
        raise ElutqError(f"cannot listen on {host}, port {port}: {error.strerror or error}") from error


def run(app: Starlette, engine: Engine, listener: socket.socket, verbose: bool, announce: Callable[[], None]) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        app: from ``make_app``.
        engine: the application's.
        listener: where clients connect.
        verbose: log every request to stderr.
        announce: called once requests are answered and signals heeded.
    """
    config = uvicorn.Config(
        app,
        log_level="info" if verbose else "warning",
        access_log=verbose,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    # A piece of text that is on its way when its client leaves is not worth a line of asyncio's.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn passes it on after it has shut down in good order
        _Server(config, engine, announce).run(sockets=[listener])


class _Server(uvicorn.Server):
    """A server that ends its texts when it is told to leave, so that their streams close as they should."""

    def __init__(self, config: uvicorn.Config, engine: Engine, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._engine = engine
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._announce()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not here in the signal handler, which may have interrupted whoever holds the queue's lock.
        threading.Thread(target=self._engine.end_texts).start()
        super().handle_exit(sig, frame)
