"""Several servers behind deploy/nginx.conf: what clients notice when one of them dies, or is told to leave."""

import re
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import openai
import pytest
from processes import started
from served import DEADLINE, Server

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
CONFIGURATION = Path(__file__).parent.parent.parent / "deploy" / "nginx.conf"
N_CLIENTS = 32
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is missing (apt-get install nginx-light)")

MAIN = """
daemon off;
worker_processes 2;
pid nginx.pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
{configuration}
}}
"""


@contextmanager
def balanced(folder, ports):
    """Run nginx with the repository's configuration in front of two ports; yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    text, n_listens = re.subn(r"listen 80 default_server;", f"listen 127.0.0.1:{port};", CONFIGURATION.read_text())
    servers = iter(ports)
    text, n_servers = re.subn(r"server elutq-\d:8080", lambda _: f"server 127.0.0.1:{next(servers)}", text)
    assert (n_listens, n_servers) == (1, 2)
    (folder / "nginx.conf").write_text(MAIN.format(configuration=text))
    with started([NGINX, "-p", folder, "-c", "nginx.conf", "-e", "errors.log"]) as nginx:
        try:
            for _ in range(600):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert nginx.poll() is None, (folder / "errors.log").read_text()
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            nginx.terminate()  # its workers too
            nginx.wait(DEADLINE)


class Balanced:
    """Two servers of one model, which answer as `one` and `two`, behind nginx."""

    def __init__(self, stack, model, folder):
        options = ("-c", 1 << 14, "--parallel", 4, "--no-ui", "--shutdown-timeout", 1000)
        with ThreadPoolExecutor() as pool:
            starts = {name: pool.submit(Server, model, "--alias", name, *options) for name in ("one", "two")}
        self.servers = {name: start.result() for name, start in starts.items()}
        for server in self.servers.values():
            stack.callback(server.stop)
        ports = [server.port for server in self.servers.values()]
        self.address = stack.enter_context(balanced(folder, ports))
        self.client = stack.enter_context(openai.OpenAI(base_url=f"{self.address}/v1", api_key="none", max_retries=0))

    def ask(self, **options):
        options = {"max_tokens": 4, "extra_body": {"ignore_eos": True}} | options
        return self.client.completions.create(model="any", prompt="My dear", timeout=DEADLINE, **options)

    def stream(self, n_tokens, begun):
        """Read a stream; return who made it, and the reason for its end: None where it just stops."""
        name = None
        try:
            for chunk in self.ask(max_tokens=n_tokens, stream=True):
                if name is None:
                    begun.release()
                name = chunk.model
        except (openai.APIConnectionError, httpx.RemoteProtocolError):  # the latter of openai 2.0
            return name, "error"
        return name, chunk.choices[0].finish_reason

    def streams_around(self, n_tokens, event):
        """Let many clients have streams, call something once as many have begun as there are slots; return all ends."""
        begun = threading.Semaphore(0)
        with ThreadPoolExecutor(N_CLIENTS) as pool:
            ends = [pool.submit(self.stream, n_tokens, begun) for _ in range(N_CLIENTS)]
            for _ in range(8):
                assert begun.acquire(timeout=DEADLINE)
            event()
            return [end.result() for end in ends]

    def whole_answers(self, n_requests):
        """Return who answers so many requests, several at a time."""
        with ThreadPoolExecutor(4) as pool:
            return Counter(pool.map(lambda _: self.ask().model, range(n_requests)))

    def answered(self):
        """Return the sum of what the servers count, as Prometheus makes it."""
        pages = [server.request("GET", "/metrics")[1].decode() for server in self.servers.values()]
        return sum(float(re.search(r'elutq_requests_total\{outcome="answered"\} (\S+)', page)[1]) for page in pages)


@pytest.fixture(scope="module")
def servers(endless_model, tmp_path_factory):
    with ExitStack() as stack:
        yield Balanced(stack, endless_model, tmp_path_factory.mktemp("nginx"))


@pytest.fixture
def doomed(endless_model, tmp_path):
    """Servers that one test has for itself."""
    with ExitStack() as stack:
        yield Balanced(stack, endless_model, tmp_path)


def test_one_server_killed_ends_the_streams_under_way_on_it_and_no_others(doomed):
    killed = doomed.servers["one"].process
    ends = Counter(doomed.streams_around(300, killed.kill))
    assert ends.keys() - {("one", "length")} == {("one", "error"), ("two", "length")}
    assert 1 <= ends["one", "error"] <= 4  # its slots: what waited there went to the other server, unnoticed
    assert ends.total() == N_CLIENTS
    assert doomed.whole_answers(8) == {"two": 8}
    doomed.servers["two"].process.kill()
    doomed.servers["two"].process.wait()
    with pytest.raises(openai.InternalServerError, match="no server answers") as refused:
        doomed.ask()
    assert (refused.value.status_code, refused.value.response.headers["retry-after"]) == (503, "5")
    assert refused.value.body["type"] == "server_error"


def test_a_server_that_is_told_to_leave_costs_no_request(doomed):
    leaving = doomed.servers["one"].process
    later = []

    def leave():
        leaving.send_signal(signal.SIGTERM)
        while httpx.get(f"http://127.0.0.1:{doomed.servers['one'].port}/health").status_code == 200:
            time.sleep(0.01)
        later.append(doomed.whole_answers(4))

    ends = Counter(doomed.streams_around(100, leave))
    assert ends.keys() == {("one", "length"), ("two", "length")}
    assert later == [{"two": 4}]
    assert leaving.wait(DEADLINE) == 0
    assert doomed.whole_answers(4) == {"two": 4}


def test_work_is_shared_and_what_the_servers_count_adds_up(servers):
    before = servers.answered()
    assert set(servers.whole_answers(16)) == {"one", "two"}
    assert servers.answered() == before + 16
    assert httpx.get(f"{servers.address}/metrics").status_code == 404
    assert httpx.get(f"{servers.address}/health").json()["status"] == "ok"


def test_a_client_that_leaves_frees_its_slot(servers):
    stream = servers.ask(max_tokens=-1, stream=True)
    next(stream)
    stream.close()
    for server in servers.servers.values():
        while server.request("GET", "/health")[1]["busy"]:
            time.sleep(0.01)


def test_pieces_of_a_stream_are_passed_on_one_by_one(tmp_path):
    """A server that says nothing more until the client has read what came."""
    read = threading.Event()

    class Slow(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"data: 1\n\n")
            self.wfile.write(b"data: 2\n\n" if read.wait(DEADLINE) else b"")

    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server, balanced(tmp_path, 2 * [server.server_port]) as address:
        threading.Thread(target=server.serve_forever).start()
        try:
            with httpx.stream("GET", address, timeout=30) as response:
                pieces = response.iter_bytes()
                assert next(pieces) == b"data: 1\n\n"
                read.set()
                assert b"".join(pieces) == b"data: 2\n\n"
        finally:
            server.shutdown()
