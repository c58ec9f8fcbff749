"""What becomes of errors: a JSON body for each, whoever finds it, and no traceback that a request can cause."""

import logging
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from elutq_cli.generation.context_size import ContextOverflowError
from elutq_cli.streams import shown_line
from elutq_formats.errors import ElutqError
from elutq_native import NativeError

RETRY_LATER = {"Retry-After": "5"}

_logger = logging.getLogger(__name__)


class RequestError(ElutqError):
    """A request is wrong.

    Attributes:
        parameter: the field at fault, if it is one.
        code: OpenAI's ``code``.
    """

    def __init__(self, message: str, parameter: str | None = None, code: str | None = None) -> None:
        """Describe it; a field that is at fault and has no other code has a value that is not valid."""
        super().__init__(message)
        self.parameter = parameter
        self.code = "invalid_value" if parameter is not None and code is None else code


class UnknownModelError(Exception):
    """A client wants to hear of a model that is not served."""


class QueueFullError(Exception):
    """Too many requests wait."""


class LeavingError(Exception):
    """The server is told to leave, and makes no more texts."""


class TextFailedError(Exception):
    """A text could not be made, through no fault of the request."""


@dataclass(frozen=True)
class Fault:
    """An error as a client sees it: a status and OpenAI's error object.

    Attributes:
        status: of the response.
        message: what is wrong.
        kind: OpenAI's ``type``.
        parameter: the field at fault.
        code: OpenAI's ``code``, which programs look at.
        headers: of the response.
    """

    status: int
    message: str
    kind: str = "invalid_request_error"
    parameter: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def named_message(self) -> str:
        """The message with the field that is at fault, for those whose errors have no place of their own for it."""
        unnamed = self.parameter is not None and self.parameter not in self.message
        return f"{self.parameter}: {self.message}" if unnamed else self.message

    @property
    def body(self) -> dict[str, Any]:
        """The body of the response, or the event that ends a stream."""
        return {
            "error": {"message": self.message, "type": self.kind, "param": self.parameter, "code": self.code},
        }


def explain(error: Exception) -> Fault:
    """Return what a client is told; what nobody expected gets a line in the log."""
    match error:
        case HTTPException():
            kind = "authentication_error" if error.status_code == 401 else "invalid_request_error"
            code = "invalid_api_key" if error.status_code == 401 else None
            return Fault(error.status_code, error.detail, kind, code=code, headers=error.headers or {})
        case RequestError():
            return Fault(400, str(error), parameter=error.parameter, code=error.code)
        case ContextOverflowError():
            message = (
                f"This model's maximum context length is {error.ctx_size} tokens. However, your prompt has "
                f"{error.amount} tokens: shorten it."
            )
            return Fault(400, message, code="context_length_exceeded")
        case ElutqError():
            return Fault(400, str(error))
        case UnknownModelError():
            return Fault(404, str(error), parameter="model", code="model_not_found")
        case QueueFullError():
            return Fault(429, str(error), "rate_limit_error", code="rate_limit_exceeded", headers=RETRY_LATER)
        case LeavingError():
            return Fault(503, str(error), "server_error", headers=RETRY_LATER)
        case TextFailedError() | NativeError():
            return Fault(500, str(error), "server_error")
    _log(error)
    return Fault(500, "the server failed; its log says where", "server_error")


class ErrorResponses:
    """Makes responses of exceptions, in the form that the API has of which the path is."""

    def __init__(self, forms: Mapping[str, Callable[[Fault], dict[str, Any]]]) -> None:
        """Begin.

        Args:
            forms: what makes the body of a fault, by how the paths begin that want it; of all others OpenAI's.
        """
        self._forms = forms

    def make(self, path: str, error: Exception) -> Response:
        """Return the response."""
        fault = explain(error)
        form = next((form for beginning, form in self._forms.items() if path.startswith(beginning)), None)
        body = fault.body if form is None else form(fault)
        return JSONResponse(body, fault.status, headers=dict(fault.headers))

    async def answer_http_error(self, request: Request, error: Exception) -> Response:
        """Answer what Starlette itself finds wrong."""
        return self.make(request.url.path, error)


class ErrorBodies:
    """ASGI middleware around everything: an exception that nobody caught becomes a response."""

    def __init__(self, app: ASGIApp, responses: ErrorResponses) -> None:
        """Wrap an application."""
        self._app, self._responses = app, responses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except ClientDisconnect:
            return  # nobody listens
        except Exception as error:
            if scope["type"] != "http":
                raise
            if started:
                _log(error)
            else:
                await self._responses.make(scope["path"], error)(scope, receive, send)


def _log(error: Exception) -> None:
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    _logger.error("a request failed: %s: %s%s", type(error).__name__, shown_line(" ".join(str(error).split())), place)
