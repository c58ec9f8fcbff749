"""How what a job makes gets to its client: whole, or as a stream. A client that leaves ends the texts."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from elutq_cli.generation import GeneratedToken
from elutq_cli.server.dialects.dialect import Dialect
from elutq_cli.server.engine import Job, Made
from elutq_cli.server.errors import explain
from elutq_cli.server.request import TextRequest
from elutq_cli.server.response import Choice, Responder, usage

Result = TypeVar("Result")


async def make(request: Request, job: Job) -> list[Choice]:
    """Return the texts of a job, once all are made.

    Raises:
        ClientDisconnect: the client has left.
    """
    try:
        return await _unless_gone(request, _collect(job))
    finally:
        job.cancel()


async def begin(request: Request, job: Job, patience: float) -> AsyncIterator[Made | None]:
    """Return what a job makes, once there is something of it.

    A stream's status goes out then, and not before: what fails until then has a status of its own, and the client, or
    what balances the load of several servers, asks again elsewhere.

    Args:
        request: the client's.
        job: its texts.
        patience: seconds without a token after which there is None, the first time too.

    Raises:
        ClientDisconnect: the client has left.
    """
    made = job.stream(patience)
    try:
        (first,) = await _unless_gone(request, _first(made))
    except BaseException:
        job.cancel()
        raise
    return _chain(first, made)


async def events(
    made: AsyncIterator[Made | None], job: Job, responder: Responder, wanted: TextRequest, dialect: Dialect
) -> AsyncIterator[bytes]:
    """Yield what a stream says; Starlette closes it when the client leaves.

    Args:
        made: what ``job`` makes.
        job: the request's texts.
        responder: makes the bodies of an answer.
        wanted: what the request asks for.
        dialect: how bodies are written.
    """
    try:
        for part in dialect.opening():
            yield part
        for body in responder.opening(len(job.generations)):
            for part in dialect.piece(body):
                yield part
        try:
            async for item in made:
                if item is None:
                    yield dialect.silence
                    continue
                index, token = item
                if token is None:
                    bodies = responder.end(index, job.generations[index])
                else:
                    bodies = responder.pieces(index, token)
                for body in bodies:
                    for part in dialect.piece(body):
                        yield part
        except Exception as error:  # the status has gone out: what is wrong now is the stream's last event
            yield dialect.failure(explain(error))
            return
        if wanted.include_usage:
            for part in dialect.piece(responder.closing(usage(job.generations, wanted.n_candidates))):
                yield part
        for part in dialect.closing():
            yield part
    finally:
        job.cancel()


async def _collect(job: Job) -> list[Choice]:
    made: list[list[GeneratedToken]] = [[] for _ in job.generations]
    async for item in job.stream():
        if item is not None and item[1] is not None:
            made[item[0]].append(item[1])
    return list(zip(job.generations, made, strict=True))


async def _first(made: AsyncIterator[Made | None]) -> tuple[Made | None]:
    return (await anext(made),)


async def _chain(first: Made | None, made: AsyncIterator[Made | None]) -> AsyncIterator[Made | None]:
    yield first
    async for item in made:
        yield item


async def _unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """Return what work returns.

    Raises:
        ClientDisconnect: the client has left before.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
