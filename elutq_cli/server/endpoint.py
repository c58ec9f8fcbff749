"""The HTTP endpoint: what is answered at which route."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timezone
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from elutq_cli.generation import LanguageModel
from elutq_cli.generation.context import Reuse
from elutq_cli.generation.embedding import Pooling
from elutq_cli.generation.thinking import NO_BUDGET
from elutq_cli.server import routes
from elutq_cli.server.access import Access
from elutq_cli.server.dialects.dialect import Dialect
from elutq_cli.server.dialects.embeddings import EmbeddingRequest
from elutq_cli.server.engine import Engine
from elutq_cli.server.errors import RETRY_LATER, ErrorBodies, ErrorResponses, UnknownModelError
from elutq_cli.server.fields import parse_json
from elutq_cli.server.limits import Limits
from elutq_cli.server.metrics import CONTENT_TYPE
from elutq_cli.server.page import page_routes
from elutq_cli.server.response import Body, best_choices, usage
from elutq_cli.server.sending import begin, events, make

MOST_BODY_BYTES = 8 << 20

LARGE_BODY_BYTES = 1 << 18
"""Bodies from this size on are read one at a time: the tokenizer takes 150 bytes of memory for each of a text."""

SILENT_SECONDS = 10.0
"""A stream is silent at the longest, so that nothing on its way takes it for dead while a long prompt is read."""

STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""Of streams, which nothing on their way is to keep or to collect; the second is what nginx and its like look at."""

Result = TypeVar("Result")
Handler = Callable[[Request], Awaitable[Response]]


def make_app(
    engine: Engine,
    name: str,
    api_key: str | None = None,
    hosts: Sequence[str] | None = (),
    max_tokens: int | None = None,
    origins: Sequence[str] = (),
    ui: bool = True,
    pooling: Pooling = "mean",
    reasoning_budget: int = NO_BUDGET,
) -> Starlette:
    """Return the application.

    Args:
        engine: makes the texts; running while there are requests.
        name: what the model is called.
        api_key: what clients have to present, if anything.
        hosts: names by which the server may be called beside localhost and its own address; None: any.
        max_tokens: of one text; None: what the context has room for.
        origins: of web pages, beside the server's own, that a browser lets ask and read; ``*``: of all.
        ui: whether there is a page to chat on.
        pooling: how embeddings are made.
        reasoning_budget: tokens of one text's thoughts; NO_BUDGET: as many as the model likes.
    """
    endpoint = Endpoint(engine, name, Limits(max_tokens, reasoning_budget))
    responses = ErrorResponses(routes.ERRORS)
    return Starlette(
        routes=[
            Route("/v1/models", endpoint.models),
            Route("/v1/models/{name:path}", endpoint.model),
            *(Route(path, endpoint.speak(dialect), methods=["POST"]) for path, dialect in routes.TEXTS.items()),
            *(Route(path, endpoint.embed(kind, pooling), methods=["POST"]) for path, kind in routes.VECTORS.items()),
            *(Route(path, endpoint.tell(what)) for path, what in routes.TOLD.items()),
            *(Route(path, endpoint.ask(what), methods=["POST"]) for path, what in routes.ASKED.items()),
            Route("/health", endpoint.health),
            Route("/metrics", endpoint.metrics),
            *(page_routes() if ui else ()),
        ],
        exception_handlers={HTTPException: responses.answer_http_error},
        middleware=[
            # First: a browser asks whether it may ask without the key, and pages are to read errors too.
            Middleware(
                CORSMiddleware,
                allow_origins=origins,
                allow_methods=("GET", "POST"),
                allow_headers=("*",),
                expose_headers=("Retry-After",),
            ),
            Middleware(ErrorBodies, responses=responses),
            Middleware(Access, api_key=api_key, hosts=hosts),
        ],
    )


class Endpoint:
    """The routes."""

    def __init__(self, engine: Engine, name: str, limits: Limits) -> None:
        self._engine = engine
        self._limits = limits
        self._large_body = asyncio.Lock()
        self._entry = _describe(engine.model, name)

    async def models(self, request: Request) -> Response:
        """List the one model."""
        name = self._entry["id"]
        return JSONResponse(
            {"object": "list", "data": [self._entry_for(request)], "has_more": False, "first_id": name, "last_id": name}
        )

    async def model(self, request: Request) -> Response:
        """Describe the model."""
        if request.path_params["name"] != self._entry["id"]:
            raise UnknownModelError(f"the only model here is {self._entry['id']}")
        return JSONResponse(self._entry_for(request))

    async def health(self, _: Request) -> Response:
        """Tell whether requests are taken, how many slots there are, how many are busy, and how many requests wait."""
        engine = self._engine
        told = {"waiting": engine.n_waiting, "slots": engine.n_slots, "busy": engine.n_busy}
        if engine.leaving:
            return JSONResponse({"status": "draining"} | told, 503, headers=RETRY_LATER)
        return JSONResponse({"status": "ok"} | told)

    async def metrics(self, _: Request) -> Response:
        """Tell Prometheus what was counted and measured."""
        return Response(self._engine.metrics.show(), media_type=CONTENT_TYPE)

    def tell(self, what: Callable[[LanguageModel, str], Body]) -> Handler:
        """Return what tells something of the model."""

        async def answer(_: Request) -> Response:
            return JSONResponse(what(self._engine.model, self._entry["id"]))

        return answer

    def ask(self, what: Callable[[object, LanguageModel, str], Body]) -> Handler:
        """Return what answers bodies that ask for no text."""

        async def answer(request: Request) -> Response:
            body = await _read_body(request)
            answer = await self._read(body, lambda parsed, _: what(parsed, self._engine.model, self._entry["id"]))
            return JSONResponse(answer)

        return answer

    def speak(self, dialect: type[Dialect]) -> Handler:
        """Return what answers the requests of an API."""

        async def answer(request: Request) -> Response:
            return await self._answer(request, dialect(self._engine.model, self._entry["id"]))

        return answer

    def embed(self, kind: type[EmbeddingRequest], pooling: Pooling) -> Handler:
        """Return what answers requests for vectors."""

        async def answer(request: Request) -> Response:
            asked = kind(self._engine.model, self._entry["id"], pooling)
            embeddings = await self._read(await _read_body(request), asked.read)
            await make(request, self._engine.submit(embeddings, Reuse.NOTHING))
            return JSONResponse(asked.answer())

        return answer

    def _entry_for(self, request: Request) -> Body:
        """Return the model's entry; Anthropic's clients want capabilities to be an object of theirs, or none."""
        left_out = "capabilities" if "anthropic-version" in request.headers else None
        return {name: value for name, value in self._entry.items() if name != left_out}

    async def _answer(self, request: Request, dialect: Dialect) -> Response:
        wanted = await self._read(await _read_body(request), dialect.read)
        if wanted is None:
            return JSONResponse(dialect.nothing())
        engine = self._engine
        responder = dialect.kind.responder(self._entry["id"], engine.model.tokenizer, wanted.scored, wanted.begin_reply)
        job = engine.submit(wanted.generations, wanted.reuse)
        if wanted.stream:
            begun = await begin(request, job, SILENT_SECONDS)
            return StreamingResponse(
                events(begun, job, responder, wanted, dialect), media_type=dialect.media_type, headers=STREAM_HEADERS
            )
        made = await make(request, job)
        choices = best_choices(made, wanted.n_candidates, wanted.n_choices)
        answer = responder.whole(choices, usage(wanted.generations, wanted.n_candidates))
        return JSONResponse(dialect.whole(answer))

    async def _read(self, body: bytes, read: Callable[[object, Limits], Result]) -> Result:
        """Read a body; templates and tokenizers take their time: not in the loop that serves everybody."""

        def work() -> Result:
            return read(parse_json(body), self._limits)

        if len(body) < LARGE_BODY_BYTES:
            return await asyncio.to_thread(work)
        async with self._large_body:
            return await asyncio.to_thread(work)


def _describe(model: LanguageModel, name: str) -> dict[str, Any]:
    """Return the entry of /v1/models, the context's length under the names that other servers give it."""
    info, made = model.native.info, int(model.status.st_mtime)
    return {
        "id": name,
        "object": "model",
        "type": "model",
        "display_name": name,
        "created": made,
        "created_at": datetime.fromtimestamp(made, timezone.utc).isoformat(),
        "owned_by": "elutq",
        "capabilities": ["completion"] if model.chat_template is None else ["completion", "chat"],
        "context_length": model.ctx_size,
        "max_model_len": model.ctx_size,
        "max_input_tokens": model.ctx_size,
        "meta": {
            "n_ctx": model.ctx_size,
            "n_ctx_train": info.context_length,
            "n_vocab": info.vocab_size,
            "n_embd": info.hidden_size,
            "size": info.file_bytes,
        },
    }


CURLS = "application/x-www-form-urlencoded"
"""What curl declares the body of -d to be where nobody says."""


async def _read_body(request: Request) -> bytes:
    """Return the body.

    Raises:
        HTTPException: it is too large, or not declared as JSON.
    """
    # A web page may send anything else without asking first (CORS), but a browser tells then whose page it is, or at
    # least that it is one; what curl -d declares, a form, is what the examples of some APIs send.
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_browser = "origin" in request.headers or "sec-fetch-site" in request.headers
    if kind != "application/json" and (is_browser or kind not in ("", CURLS)):
        raise HTTPException(415, "the body must be declared as Content-Type: application/json")
    parts, size = [], 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > MOST_BODY_BYTES:
            raise HTTPException(413, f"the body is larger than {MOST_BODY_BYTES} bytes")
    return b"".join(parts)
