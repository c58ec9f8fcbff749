"""deploy/ray_serve.py on a cluster of two nodes, of which each has an address of its own on this machine."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from served import DEADLINE

pytest.importorskip("ray.serve", reason="Ray Serve is missing (pip install 'ray[serve]')")

ROOT = Path(__file__).parent.parent.parent
NODES = ("127.0.0.2", "127.0.0.3")


DRIVER = """
import sys
import ray
from ray import serve
import ray_serve

ray.init(sys.argv[1])
serve.start(http_options={"port": int(sys.argv[2])})
serve.run(ray_serve.app({"model": sys.argv[3], "replicas": "2", "parallel": "4"}))
"""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def wait_for(host, port, process):
    while True:
        with socket.socket() as probe:
            if probe.connect_ex((host, port)) == 0:
                return
        assert process.poll() is None
        time.sleep(0.1)


@pytest.fixture(scope="module")
def address(endless_model, tmp_path_factory):
    """Where the model is served by two replicas."""
    paths = [ROOT / "deploy", *(path for path in sys.path if path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "RAY_AUTH_MODE": "disabled"}
    options = ["--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats", "--block"]
    gcs, port = free_port(), free_port()
    cluster = f"{NODES[0]}:{gcs}"
    roles = (["--head", f"--port={gcs}", "--include-dashboard=false"], [f"--address={cluster}"])
    nodes, log = [], tmp_path_factory.mktemp("ray") / "log"
    try:
        with log.open("wb") as output:
            run = {"env": environment, "stdout": output, "stderr": output}
            for role, node in zip(roles, NODES, strict=True):
                command = [Path(sys.executable).with_name("ray"), "start", *role, f"--node-ip-address={node}", *options]
                nodes.append(subprocess.Popen(command, start_new_session=True, **run))
                wait_for(NODES[0], gcs, nodes[0])
            driver = [sys.executable, "-c", DRIVER, cluster, str(port), endless_model]
            assert subprocess.run(driver, timeout=DEADLINE, **run).returncode == 0, log.read_text()[-5000:]
        yield f"http://127.0.0.1:{port}"
    finally:
        for node in nodes:
            os.killpg(node.pid, signal.SIGKILL)  # Ray takes a minute to end by itself
            node.wait(DEADLINE)


def answered(node):
    page = httpx.get(f"http://{node}:9464/metrics").text
    return float(re.search(r'elutq_requests_total\{outcome="answered"\} (\S+)', page)[1])


def test_streams_come_from_both_replicas_whose_metrics_add_up(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", timeout=DEADLINE) as client:

        def stream(_):
            options = {"max_tokens": 50, "stream": True, "extra_body": {"ignore_eos": True}}
            return [
                chunk.choices[0].finish_reason
                for chunk in client.completions.create(model="any", prompt="My dear", **options)
            ]

        with ThreadPoolExecutor(16) as pool:
            ends = list(pool.map(stream, range(16)))
    assert Counter(end[-1] for end in ends) == {"length": 16}
    assert all(len(end) > 20 for end in ends)
    counts = [answered(node) for node in NODES]
    assert sum(counts) == 16
    assert min(counts) > 0
