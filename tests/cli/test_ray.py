"""A run on two nodes of a Ray cluster, in a network of its own, whose workers are killed."""

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from ray_nodes import SMALL

TESTS = Path(__file__).parent.parent
CHECKPOINT = TESTS / "data" / "golden" / "llama2-gqa-sharded"
APART = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]


def test_two_nodes_whose_workers_die_make_the_file_of_one_machine(tmp_path):
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs Ray: pip install 'elutq[ray]'")
    if shutil.which("unshare") is None or subprocess.run([*APART, "true"], capture_output=True).returncode != 0:
        pytest.skip("needs unshare and the right to make a network of its own: Ray would listen to everybody")
    text, here, there = tmp_path / "text.txt", tmp_path / "here.gguf", tmp_path / "there.gguf"
    text.write_text("the quick brown fox jumps over a lazy dog " * 20)
    alone = [sys.executable, "-m", "elutq_cli", "quantize", CHECKPOINT, "-o", here, *SMALL, "--calibration", text]
    subprocess.run([*alone, "--threads", "1"], check=True, capture_output=True, timeout=100)
    with tempfile.TemporaryDirectory() as folder:  # short: sockets have their places in it
        command = [*APART, sys.executable, TESTS / "ray_nodes.py", CHECKPOINT, text, there, folder]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 workers killed" not in done.stdout
    assert there.read_bytes() == here.read_bytes()
