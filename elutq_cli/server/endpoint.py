"""The HTTP endpoint: routes, streams, and what becomes of errors."""

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from elutq_cli.generation import GeneratedToken, LanguageModel
from elutq_cli.server.engine import BusyError, Engine, Job
from elutq_cli.server.request import RequestError, TextRequest, read_chat, read_completion
from elutq_cli.server.response import Body, ChatResponder, CompletionResponder, Responder, error_body
from elutq_formats.errors import ElutqError
from elutq_native import NativeError

MOST_BODY_BYTES = 8 << 20

Reader = Callable[[object, LanguageModel], TextRequest]
Result = TypeVar("Result")

LOCAL_NAMES = ["localhost", "127.0.0.1", "["]
"""Starlette compares what is before the first colon: of IPv6 addresses that is a bracket, which no name begins with."""


def make_app(engine: Engine, name: str, api_key: str | None = None, local: bool = True) -> Starlette:
    """Return the application.

    Args:
        engine: makes the texts; running while there are requests.
        name: what the model is called.
        api_key: what clients have to present, if anything.
        local: answer only requests addressed to this machine by a local name, so that a web page cannot reach it under
            a name of its own.
    """
    endpoint = Endpoint(engine, name, api_key)
    return Starlette(
        routes=[
            Route("/v1/models", endpoint.models),
            Route("/v1/models/{name:path}", endpoint.model),
            Route("/v1/completions", endpoint.completions, methods=["POST"]),
            Route("/v1/chat/completions", endpoint.chat_completions, methods=["POST"]),
            Route("/health", endpoint.health),
        ],
        exception_handlers={
            HTTPException: _on_http_error,
            ElutqError: _on_bad_request,
            BusyError: _on_busy,
            NativeError: _on_failure,
            ClientDisconnect: _on_disconnect,
        },
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=LOCAL_NAMES)] if local else [],
    )


class Endpoint:
    """The routes."""

    def __init__(self, engine: Engine, name: str, api_key: str | None) -> None:
        self._engine = engine
        self._api_key = api_key
        created = int(engine.model.path.stat().st_mtime)
        self._entry = {"id": name, "object": "model", "created": created, "owned_by": "elutq"}

    async def models(self, request: Request) -> Response:
        """List the one model."""
        self._authorise(request)
        return JSONResponse({"object": "list", "data": [self._entry]})

    async def model(self, request: Request) -> Response:
        """Describe the model."""
        self._authorise(request)
        if request.path_params["name"] != self._entry["id"]:
            raise HTTPException(404, f"the only model here is {self._entry['id']}")
        return JSONResponse(self._entry)

    async def health(self, _: Request) -> Response:
        """Tell that the server is there, and how many requests wait."""
        return JSONResponse({"status": "ok", "waiting": self._engine.n_waiting})

    async def chat_completions(self, request: Request) -> Response:
        """Answer a conversation."""
        return await self._answer(request, read_chat, ChatResponder)

    async def completions(self, request: Request) -> Response:
        """Continue a text."""
        return await self._answer(request, read_completion, CompletionResponder)

    async def _answer(self, request: Request, read: Reader, kind: type[Responder]) -> Response:
        self._authorise(request)
        body = await _read_json(request)
        engine = self._engine
        # Templates and tokenizers take their time with long prompts: not in the loop that serves everybody.
        wanted = await asyncio.to_thread(read, body, engine.model)
        responder = kind(str(self._entry["id"]), engine.model.tokenizer)
        job = engine.submit(wanted.tokens, wanted.sampling, wanted.options, wanted.seed)
        if wanted.stream:
            return StreamingResponse(
                _events(job, responder, wanted.include_usage),
                media_type="text/event-stream",
                headers={"Cache-Control": "no-cache"},
            )
        try:
            tokens = await _unless_gone(request, _collect(job))
        finally:
            job.cancel()
        if tokens is None or job.generation is None:
            raise ClientDisconnect
        return JSONResponse(responder.whole(job.generation, tokens))

    def _authorise(self, request: Request) -> None:
        if self._api_key is None:
            return
        _, _, given = request.headers.get("authorization", "").partition(" ")
        if not hmac.compare_digest(given.encode(), self._api_key.encode()):
            raise HTTPException(401, "this server wants its API key as a bearer token")


async def _read_json(request: Request) -> object:
    """Return the body, parsed.

    Raises:
        HTTPException: it is too large, or not declared as JSON.
        RequestError: it is not JSON.
    """
    # A web page may send anything else without asking first (CORS).
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "the body must be declared as Content-Type: application/json")
    parts, size = [], 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > MOST_BODY_BYTES:
            raise HTTPException(413, f"the body is larger than {MOST_BODY_BYTES} bytes")
    try:
        return json.loads(b"".join(parts))
    except (ValueError, RecursionError) as error:
        raise RequestError("the body is not JSON") from error


async def _collect(job: Job) -> list[GeneratedToken]:
    return [token async for token in job.stream()]


async def _unless_gone(request: Request, work: Awaitable[Result]) -> Result | None:
    """Return what work returns, or None as soon as the client has left."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
        gone.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(job: Job, responder: Responder, include_usage: bool) -> AsyncIterator[bytes]:
    """Yield a stream's server-sent events; Starlette closes it when the client leaves."""
    tokens = job.stream()
    try:
        for body in responder.opening():
            yield _event(body)
        try:
            async for token in tokens:
                if token.text or token.logprob is not None:
                    yield _event(responder.piece(token))
        except (ElutqError, NativeError, BusyError) as error:
            yield _event(error_body(str(error), "server_error"))
            return
        if job.generation is not None:
            for body in responder.closing(job.generation, include_usage):
                yield _event(body)
        yield b"data: [DONE]\n\n"
    finally:
        job.cancel()


def _event(body: Body) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


def _on_http_error(_: Request, error: Exception) -> Response:
    status, detail = (error.status_code, error.detail) if isinstance(error, HTTPException) else (500, str(error))
    kind = "authentication_error" if status == 401 else "invalid_request_error"
    return JSONResponse(error_body(detail, kind), status)


def _on_bad_request(_: Request, error: Exception) -> Response:
    parameter = error.parameter if isinstance(error, RequestError) else None
    return JSONResponse(error_body(str(error), "invalid_request_error", parameter), 400)


def _on_busy(_: Request, error: Exception) -> Response:
    return JSONResponse(error_body(str(error), "server_error"), 503, headers={"Retry-After": "5"})


def _on_failure(_: Request, error: Exception) -> Response:
    return JSONResponse(error_body(str(error), "server_error"), 500)


def _on_disconnect(_: Request, error: Exception) -> Response:
    return Response(status_code=499)
