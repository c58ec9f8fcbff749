"""`elutq serve` that is told to leave: what becomes of streams, of requests that wait, and of those that come."""

import asyncio
import signal
import threading
import time

import openai
import pytest
from asgi import refusal, serving
from served import DEADLINE, Server
from test_serve_errors import submit

LONG = {"model": "any", "prompt": "My dear", "max_tokens": 3000, "stream": True, "extra_body": {"ignore_eos": True}}
"""A text of a second or more."""


@pytest.fixture
def leave(endless_model):
    """Returns a function that starts a server and a stream, and sends a signal in the middle of it."""
    servers = []

    def start(timeout, sent):
        server = Server(endless_model, "-c", 1 << 14, "--parallel", 1, "--shutdown-timeout", timeout)
        servers.append(server)
        stream = server.client().completions.create(**LONG)
        next(stream)
        server.process.send_signal(sent)
        return server, stream

    yield start
    for server in servers:
        server.process.kill()
        server.process.communicate()


def await_draining(server):
    while (answer := server.request("GET", "/health"))[1]["status"] == "ok":
        time.sleep(0.01)
    return answer


def test_sigterm_lets_a_stream_end_and_refuses_what_comes(leave):
    server, stream = leave(1000, signal.SIGTERM)
    assert await_draining(server) == (503, {"status": "draining", "waiting": 0, "slots": 1, "busy": 1})
    with pytest.raises(openai.InternalServerError) as refused:
        server.client().completions.create(model="any", prompt="My dear")
    assert (refused.value.status_code, refused.value.response.headers["retry-after"]) == (503, "5")
    assert server.request("GET", "/v1/models")[0] == 200
    assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "length"
    assert server.process.communicate(timeout=DEADLINE)[1] == b"leaving: 1 request has 1000 s to end\n"
    assert server.process.returncode == 0


def test_a_stream_that_is_not_over_in_time_ends_with_an_error(leave):
    server, stream = leave(0, signal.SIGTERM)
    with pytest.raises(openai.APIError, match="shutting down") as ended:
        list(stream)
    assert ended.value.body["type"] == "server_error"
    assert server.process.wait(DEADLINE) == 0


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT], ids=lambda sent: sent.name)
def test_a_second_signal_ends_streams_at_once(leave, sent):
    server, stream = leave(1000, signal.SIGTERM)
    await_draining(server)
    server.process.send_signal(sent)
    with pytest.raises(openai.APIError, match="shutting down"):
        list(stream)
    assert server.process.wait(DEADLINE) == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_still_waits_gets_a_status_and_is_no_stream_that_breaks(endless_model, stream):
    with serving(endless_model, ctx_size=1 << 14) as client:

        async def run():
            async for _ in submit(client.engine, -1).stream():
                pass

        def hold():
            with pytest.raises(Exception, match="shutting down"):
                asyncio.run(run())

        def leave_once_it_waits():
            while client.engine.n_waiting == 0:
                time.sleep(0.01)
            client.engine.drain(0.1)

        threads = [threading.Thread(target=hold), threading.Thread(target=leave_once_it_waits)]
        threads[0].start()
        while client.engine.n_busy == 0:
            time.sleep(0.01)
        threads[1].start()
        answer = client.complete(stream=stream)
        for thread in threads:
            thread.join()
        assert refusal(answer, 503).type == "server_error"
        assert answer.headers["retry-after"] == "5"
        assert client.get("/health").status == 503


def test_a_server_without_requests_leaves_at_once(endless_model):
    server = Server(endless_model, "-c", 64, "--shutdown-timeout", 1000)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.communicate(timeout=DEADLINE)[1] == b""
    assert server.process.returncode == 0
