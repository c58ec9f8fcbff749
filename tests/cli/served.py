"""A running `elutq serve`, for tests."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import openai

ELUTQ = Path(sys.executable).with_name("elutq")
DEADLINE = 300
"""Seconds after which a server that says nothing is taken for stuck, however loaded the machine is."""


class Server:
    """A running `elutq serve`."""

    def __init__(self, *arguments, **environment):
        command = [str(argument) for argument in (ELUTQ, "serve", *arguments, "--port", 0)]
        # Unbuffered: communicate() does not see what a buffer has read beyond the first line.
        self.process = subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=os.environ | environment,
        )
        self.line = line = self.process.stderr.readline().decode()  # written once it answers
        found = re.search(r"http://(127[0-9.]+):(\d+)/v1", line)
        assert found, line
        self.host, self.port, self.address = found[1], int(found[2]), found[0]
        if "--no-ui" not in command:
            page = self.process.stderr.readline().decode()
            assert page == f"chat in a browser: {self.address.removesuffix('v1')}\n"

    def client(self, api_key="none"):
        return openai.OpenAI(base_url=self.address, api_key=api_key, max_retries=0, timeout=DEADLINE)

    def request(self, method, path, body=None, headers=None):
        """Return status and parsed body of a plain HTTP request."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=DEADLINE)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            text = response.read()
            return response.status, json.loads(text) if text.startswith(b"{") else text
        finally:
            connection.close()

    def post(self, body, path="/v1/completions", **headers):
        headers = {"Content-Type": "application/json"} | {name.replace("_", "-"): headers[name] for name in headers}
        return self.request("POST", path, body if isinstance(body, (bytes, str)) else json.dumps(body), headers)

    def stop(self):
        """Press Ctrl-C; return the exit status and what is on stderr."""
        self.process.send_signal(signal.SIGINT)
        try:
            rest = self.process.communicate(timeout=DEADLINE)[1]
        finally:
            self.process.kill()
        return self.process.returncode, rest.decode()
