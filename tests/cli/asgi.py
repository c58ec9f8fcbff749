"""The server's application called as uvicorn calls it, without a socket."""

import asyncio
import json
from contextlib import contextmanager
from types import SimpleNamespace

import elutq
from elutq_cli.server.endpoint import make_app
from elutq_cli.server.engine import Engine


@contextmanager
def serving(path, ctx_size=512, parallel=1, **options):
    """Yield a client of an application that serves a model file; options are those of ``make_app``."""
    with elutq.load(path, ctx_size=ctx_size, parallel=parallel) as model, Engine(model, 8) as engine:
        yield Client(make_app(engine, "tested", **options), model, engine)


class Client:
    """Sends requests; an exception that leaves the application is raised here."""

    def __init__(self, app, model, engine):
        self.app, self.model, self.engine = app, model, engine

    def with_options(self, **options):
        """Return a client of another application over the same model."""
        return Client(make_app(self.engine, "tested", **options), self.model, self.engine)

    def get(self, path, **options):
        return self.request("GET", path, **options)

    def post(self, path, body, headers=(), **options):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = [*headers, ("content-type", "application/json")]
        return self.request("POST", path, content, headers=headers, **options)

    def complete(self, prompt="My dear", **body):
        return self.post("/v1/completions", {"prompt": prompt, "max_tokens": 8, "temperature": 0, **body})

    def chat(self, messages, **body):
        return self.post("/v1/chat/completions", {"messages": messages, "max_tokens": 4, "temperature": 0, **body})

    def request(self, method, path, content=b"", headers=(), server=("127.0.0.1", 8080), http_version="1.1"):
        """Return status, headers, the body's bytes and, where it is JSON, what it says."""
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": http_version,
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.lower().encode(), _bytes(value)) for name, value in headers],
            "server": server,
            "client": ("127.0.0.1", 50000),
        }
        sent = []

        async def call():
            parts = [{"type": "http.request", "body": content, "more_body": False}]

            async def receive():
                return parts.pop() if parts else await asyncio.Event().wait()

            async def send(message):
                sent.append(message)

            await self.app(scope, receive, send)

        asyncio.run(call())
        start, *rest = sent
        body = b"".join(message.get("body", b"") for message in rest)
        answered = {name.decode(): value.decode() for name, value in start["headers"]}
        parsed = json.loads(body) if answered.get("content-type") == "application/json" else None
        return SimpleNamespace(status=start["status"], headers=answered, body=body, json=parsed)


def _bytes(value):
    return value if isinstance(value, bytes) else value.encode("latin-1")


def refusal(answer, status=400):
    """Return the error that an answer is."""
    assert (answer.status, answer.headers["content-type"]) == (status, "application/json"), answer
    return SimpleNamespace(**answer.json["error"])
