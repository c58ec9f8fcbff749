"""The page to chat on: static files, and headers by which nothing that a model writes can run or be sent elsewhere."""

from collections.abc import Callable, Mapping
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FILES: Mapping[str, tuple[str, str]] = {
    "/": ("index.html", "text/html"),
    "/ui/style.css": ("style.css", "text/css"),
    "/ui/icon.svg": ("icon.svg", "image/svg+xml"),
    "/ui/main.js": ("main.js", "text/javascript"),
    "/ui/answer.js": ("answer.js", "text/javascript"),
    "/ui/turn.js": ("turn.js", "text/javascript"),
    "/ui/settings.js": ("settings.js", "text/javascript"),
    "/ui/store.js": ("store.js", "text/javascript"),
    "/ui/api.js": ("api.js", "text/javascript"),
    "/ui/markdown.js": ("markdown.js", "text/javascript"),
    "/ui/inline.js": ("inline.js", "text/javascript"),
    "/ui/dom.js": ("dom.js", "text/javascript"),
}
"""Paths, which are answered without an API key, and the file and the type of each."""

_POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self'",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    # No script can turn text into markup, should one ever try.
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
)

_HEADERS = {
    "Content-Security-Policy": "; ".join(_POLICY),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",  # frame-ancestors, to old browsers
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # files that belong together change together
}


def page_routes() -> list[Route]:
    """Return the routes of the page; its files are read now, and held in memory."""
    return [Route(path, _endpoint(*described)) for path, described in FILES.items()]


def _endpoint(name: str, media_type: str) -> Callable[[Request], Response]:
    content = (Path(__file__).parent / name).read_bytes()
    return lambda _: Response(content, media_type=media_type, headers=_HEADERS)
