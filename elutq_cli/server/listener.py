"""The socket and the HTTP server behind the endpoint."""

import contextlib
import ipaddress
import json
import logging
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from elutq_cli.machine.signals import INTERRUPT, TERMINATE
from elutq_cli.server.engine import Engine
from elutq_cli.server.errors import Fault
from elutq_formats.errors import ElutqError

SHUTDOWN_SECONDS = 5
"""How long connections may take to close once their texts are over."""


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        ElutqError: the address cannot be used.
    """
    if not host.strip():
        raise ElutqError("--host is empty: give an address, 0.0.0.0 for all of this machine's")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address, family=family, backlog=512)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ElutqError(f"cannot listen on {host}, port {port}: {reason}") from error


def is_local(listener: socket.socket) -> bool:
    """Whether a socket is reachable from this machine only."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def url(listener: socket.socket) -> str:
    """Return where clients find the server."""
    address, port = listener.getsockname()[:2]
    return f"http://[{address}]:{port}/v1" if ":" in address else f"http://{address}:{port}/v1"


def run(
    app: Starlette,
    engine: Engine,
    listener: socket.socket,
    verbose: bool,
    announce: Callable[[], None],
    shutdown_timeout: int,
) -> None:
    """Serve until SIGINT, which ends all texts, or until those are over that are under way at SIGTERM.

    Args:
        app: from ``make_app``.
        engine: the application's.
        listener: where clients connect.
        verbose: log every request to stderr.
        announce: called once requests are answered and signals heeded.
        shutdown_timeout: seconds after SIGTERM in which texts may come to their end.
    """
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        log_level="info" if verbose else "warning",
        access_log=verbose,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    # A piece of text that is on its way when its client leaves is not worth a line of asyncio's.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn passes it on after it has shut down in good order
        _Server(config, engine, announce, shutdown_timeout).run(sockets=[listener])


class _Server(uvicorn.Server):
    """A server whose streams close as they should when it is told to leave.

    SIGTERM lets them come to their end, while requests that come are refused; SIGINT, or a second signal, ends them.
    """

    def __init__(
        self, config: uvicorn.Config, engine: Engine, announce: Callable[[], None], shutdown_timeout: int
    ) -> None:
        super().__init__(config)
        self._engine = engine
        self._announce = announce
        self._shutdown_timeout = shutdown_timeout
        self._draining = False

    async def main_loop(self) -> None:
        # Not at the end of startup: told to leave there, uvicorn goes without shutting the application down.
        self._announce()
        await super().main_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not here in the signal handler, which may have interrupted whoever holds the queue's lock.
        if sig == TERMINATE and not self._draining:
            self._draining = True
            threading.Thread(target=self._drain).start()
        else:
            threading.Thread(target=self._engine.end_texts).start()
            super().handle_exit(INTERRUPT, frame)

    def _drain(self) -> None:
        """Leave when the texts are over; until then the socket stays open, to refuse requests and tell why."""
        if n_requests := self._engine.n_requests:
            noun = "request has" if n_requests == 1 else "requests have"
            print(f"leaving: {n_requests} {noun} {self._shutdown_timeout} s to end", file=sys.stderr, flush=True)
        self._engine.drain(self._shutdown_timeout)
        self.should_exit = True


class _Protocol(H11Protocol):
    """HTTP whose complaints about what is no HTTP are JSON too."""

    def send_400_response(self, msg: str) -> None:
        if self.cycle is not None and not self.cycle.response_complete:  # the rest of its request will never come
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(Fault(400, msg).body).encode()
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
