"""Many clients of `elutq serve` at a time: who waits, who leaves in the middle, and who is turned away."""

import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import openai
import pytest
from served import DEADLINE, Server

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def server(chat_model):
    server = Server(chat_model, "-c", 512)
    yield server
    assert server.stop() == (0, "")


@pytest.fixture(scope="module")
def slow_server(endless_model):
    """The slowest kernels and a context that takes minutes to fill: a text ends when its client leaves."""
    server = Server(endless_model, "-t", 1, "--parallel", 1, "--max-queue", 2, ELUTQ_ISA="scalar")
    yield server
    server.stop()


class Stream:
    """A client that has begun to read an endless text."""

    def __init__(self, server, stream=True):
        body = json.dumps({"prompt": "My dear", "max_tokens": -1, "temperature": 0, "stream": stream}).encode()
        self.connection = socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE)
        self.connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body
        )

    def wait_for_text(self):
        received = b""
        while b'"text": ' not in received:
            more = self.connection.recv(4096)
            assert more, f"the server hung up after {received!r}"
            received += more

    def rest(self):
        return b"".join(iter(lambda: self.connection.recv(4096), b""))

    def leave(self):
        self.connection.close()


def wait_for_queue(server, length):
    end = time.monotonic() + DEADLINE
    while server.request("GET", "/health")[1]["waiting"] != length:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("streams", [True, False])
def test_client_that_leaves_frees_its_slot(slow_server, streams):
    long = Stream(slow_server, streams)
    if streams:
        long.wait_for_text()
    waiting = threading.Thread(target=wait_for_queue, args=(slow_server, 1))
    waiting.start()
    statuses = []
    short = threading.Thread(target=lambda: statuses.append(slow_server.post({"prompt": "My", "max_tokens": 1})[0]))
    short.start()
    waiting.join()  # the short text waits for the long one
    assert statuses == []
    long.leave()
    short.join(DEADLINE)
    assert statuses == [200]


def test_full_queue_gets_429_and_who_waits_is_served(slow_server):
    long = Stream(slow_server)
    long.wait_for_text()
    statuses = []

    def ask():
        statuses.append(slow_server.post({"prompt": "My dear", "max_tokens": 1})[0])

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_for_queue(slow_server, 2)
    with pytest.raises(openai.RateLimitError) as caught:
        slow_server.client().completions.create(model="any", prompt="My dear", max_tokens=1)
    assert caught.value.code == "rate_limit_exceeded"
    assert int(caught.value.response.headers["retry-after"]) > 0
    long.leave()
    for thread in threads:
        thread.join(DEADLINE)
    assert statuses == [200, 200]


def test_ctrl_c_ends_it_though_a_text_runs(endless_model):
    server = Server(endless_model, "-t", 1, ELUTQ_ISA="scalar")
    long = Stream(server)
    long.wait_for_text()
    assert server.stop() == (0, "")
    assert b'"the server is shutting down"' in long.rest()
    long.leave()


def test_fifty_clients_lose_nothing(server):
    command = [sys.executable, ROOT / "scripts" / "load_server.py", server.address]
    flags = ["--pid", str(server.process.pid), "--clients", "50", "--seconds", "5"]
    result = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=DEADLINE)
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(result.stdout)
    assert report["lost"] == 0
    assert report["requests"] >= 50
    assert report["left"] > 0
    if sizes := report["resident_bytes"]:
        assert sizes[-1] < sizes[3] + (16 << 20)
