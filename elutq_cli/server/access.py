"""Who may ask: the name by which a client calls this server, and the API key that it presents."""

import contextlib
import hmac
import ipaddress
import re
from collections.abc import Iterable, Sequence

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from elutq_cli.server import page
from elutq_formats.errors import ElutqError

PUBLIC_PATHS = frozenset({"/health"})
"""What is answered to everybody: it tells nothing, and those who watch a server call it by odd names."""

_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#@\s*]+")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}

_HOST = re.compile(r"(?:\[([^\[\]]*)\]|([^\[\]:/?#@\s]*))(?::[0-9]*)?")


class Access:
    """ASGI middleware that turns away those who may not ask.

    A web page may reach a server on its visitor's machine by giving its own name that machine's address (DNS
    rebinding), but then the browser tells that name in the Host header. No page can have the name localhost, or an
    address for a name.
    """

    def __init__(self, app: ASGIApp, api_key: str | None, hosts: Sequence[str] | None) -> None:
        """Wrap an application.

        Args:
            app: what is behind.
            api_key: what clients have to present, if anything.
            hosts: names, from ``checked_hosts``, by which the server may be called beside localhost and its own
                address; None: any.
        """
        self._app = app
        self._api_keys = [] if api_key is None else _encodings(api_key)
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on.

        Raises:
            HTTPException: it is turned away.
        """
        if scope["type"] == "http" and scope["path"] not in PUBLIC_PATHS:
            self._check_host(scope)
            if scope["path"] not in page.FILES:  # which asks for the key itself
                self._check_key(scope)
        await self._app(scope, receive, send)

    def _check_host(self, scope: Scope) -> None:
        for value in _values(scope, b"host") if self._hosts is not None else ():
            text = value.decode("latin-1").strip()
            # Who sends no name, as HTTP/1.0 allows, is no browser.
            if text and not self._answers_to(_host_name(text), scope):
                raise HTTPException(
                    400, f"this server does not answer to the name {text!r:.100}: see elutq serve --allowed-host"
                )

    def _answers_to(self, name: str | None, scope: Scope) -> bool:
        if name is None or self._hosts is None:
            return False
        if name == "localhost" or name.endswith(".localhost"):
            return True
        address = _address(name)
        if address is not None and (address.is_loopback or address == _address((scope.get("server") or ("",))[0])):
            return True
        return any(name == host or (host.startswith("*.") and name.endswith(host[1:])) for host in self._hosts)

    def _check_key(self, scope: Scope) -> None:
        if not self._api_keys:
            return
        given = list(_values(scope, b"x-api-key"))
        for value in _values(scope, b"authorization"):
            scheme, _, key = value.strip().partition(b" ")
            if scheme.lower() == b"bearer":
                given.append(key)
        matches = [hmac.compare_digest(key.strip(), right) for key in given for right in self._api_keys]
        if not any(matches):
            raise HTTPException(
                401,
                "this server wants its API key: Authorization: Bearer KEY, or x-api-key: KEY",
                {"WWW-Authenticate": "Bearer"},
            )


def checked_key(key: str | None) -> str | None:
    """Return an API key that a client can present, or None where none is asked for.

    Raises:
        ElutqError: it is empty, as an unset variable of the shell is, or no header can carry it.
    """
    if key is None:
        return None
    if not key.strip():
        raise ElutqError("the API key is empty: give one, or leave out --api-key and unset ELUTQ_API_KEY")
    if key != key.strip() or any(ord(character) < 32 or ord(character) == 127 for character in key):
        raise ElutqError(
            "the API key begins or ends with white space, or has control characters: no client can send it"
        )
    return key


def checked_hosts(names: Iterable[str]) -> list[str]:
    """Return names as ``Access`` compares them.

    Args:
        names: host names, ``*.`` and a domain, or addresses.

    Raises:
        ElutqError: one is none of these.
    """
    checked = []
    for name in names:
        found = str(address) if (address := _address(name)) else _host_name(name)
        if not found or "*" in found.removeprefix("*."):
            raise ElutqError(f"--allowed-host {name} is no name of a host: give one as clients write it, or *")
        checked.append(found)
    return checked


def checked_origins(origins: Iterable[str]) -> list[str]:
    """Return origins of web pages as browsers write them.

    Args:
        origins: scheme, host and port of each, or ``*`` for any.

    Raises:
        ElutqError: one is neither.
    """
    checked = []
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ElutqError(
                f"--cors-origin {origin} is no origin: give scheme and host, as https://chat.example.com, or *"
            )
        scheme = origin.lower().partition("://")[0]
        checked.append(origin.lower().removesuffix(_DEFAULT_PORTS.get(scheme, "")))
    return checked


def _host_name(value: str) -> str | None:
    """Return the name or address in a Host header without its port; None: there is none."""
    found = _HOST.fullmatch(value)
    if found is None:
        return None
    name = (found[1] or found[2] or "").lower().rstrip(".")
    return str(address) if (address := _address(name)) else name


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _values(scope: Scope, name: bytes) -> list[bytes]:
    return [value for header, value in scope["headers"] if header == name]


def _encodings(key: str) -> list[bytes]:
    """Return the bytes that a key may arrive as: clients do not agree on how to write what is not ASCII."""
    encoded = [key.encode("utf-8", "surrogateescape")]
    with contextlib.suppress(UnicodeEncodeError):
        encoded.append(key.encode("latin-1"))
    return encoded
