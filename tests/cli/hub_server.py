"""A stand-in for the Hugging Face hub on loopback: as much of its protocol as a snapshot download uses."""

import hashlib
import json
import os
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves ``files`` as the repository someone/tiny, and someone/gated to nobody.

    Attributes:
        requested: method, path and Range header of every request.
        interrupt: name of a file whose next download breaks off half-way, or None.
        status: of every answer, when it is a failure; or None.
        stall: an event; while it is not set, downloads of the file in ``stalled`` wait half-way.
    """

    daemon_threads = True

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.requested = []
        self.interrupt = None
        self.stalled = None
        self.status = None
        self.go_on = threading.Event()
        self.half_sent = threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def downloads(self):
        """Files that were asked for whole, or from some byte to the end."""
        return [name for name, wanted in self._files() if wanted is None or wanted.endswith("-")]

    def headers_read(self):
        """Files of which only the beginning was asked for."""
        return [name for name, wanted in self._files() if wanted is not None and not wanted.endswith("-")]

    def _files(self):
        gets = ((path, wanted) for method, path, wanted in self.requested if method == "GET")
        return [(path.rsplit("/", 1)[1], wanted) for path, wanted in gets if "/resolve/" in path]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        hub, path = self.server, unquote(self.path.split("?")[0])
        hub.requested.append((self.command, path, self.headers.get("Range")))
        if hub.status is not None:
            self.reply(hub.status, b"{}")
        elif "/someone/gated" in path or path.startswith("/someone/gated"):
            self.reply(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
        elif path == "/api/models/someone/tiny" or path in {
            f"/api/models/someone/tiny/revision/{name}" for name in ("main", "v1", COMMIT)
        }:
            siblings = [{"rfilename": name} for name in hub.files]
            self.reply(200, json.dumps({"id": "someone/tiny", "sha": COMMIT, "siblings": siblings}).encode())
        elif path.startswith("/api/models/someone/tiny/revision/"):
            self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif path == f"/api/models/someone/tiny/tree/{COMMIT}":
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in hub.files.items()
            ]
            self.reply(200, json.dumps(entries).encode())
        elif path.startswith(prefix := f"/someone/tiny/resolve/{COMMIT}/"):
            self.reply_file(path.removeprefix(prefix), body)
        else:
            self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def reply(self, status, content, headers=None):
        self.send_response(status)
        for key, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def reply_file(self, name, body):
        hub = self.server
        if name not in hub.files:
            self.reply(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        content = hub.files[name]
        wanted = self.headers.get("Range")
        start, end = 0, len(content)
        if wanted:
            first, last = wanted.removeprefix("bytes=").split("-")
            start, end = int(first), min(len(content), int(last) + 1) if last else len(content)
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - start))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        self.end_headers()
        if not body:
            return
        if wanted and not wanted.endswith("-"):
            self.wfile.write(content[start:end])
            return
        half = start + (len(content) - start) * 15 // 16
        if name == hub.interrupt:
            hub.interrupt = None
            self.wfile.write(content[start:half])
            self.wfile.flush()
            self.close_connection = True
            return
        if name == hub.stalled:
            self.wfile.write(content[start:half])
            self.wfile.flush()
            hub.half_sent.set()
            hub.go_on.wait(60)
            start = half
        self.wfile.write(content[start:])


@contextmanager
def serving(files):
    hub = Hub(files)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.go_on.set()
        hub.shutdown()
        hub.server_close()


def hub_environment(hub, folder):
    """The environment of a command that uses the stand-in, with a cache of its own."""
    cleared = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return cleared | {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}


def use_here(hub, folder, monkeypatch):
    """Make this process use the stand-in, where a new one would take a second."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
