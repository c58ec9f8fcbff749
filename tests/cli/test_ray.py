"""scripts/kill_cluster.py: runs on two nodes of a Ray cluster of its own, where a worker and a node are killed."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
CHECKPOINT = ROOT / "tests" / "data" / "golden" / "llama2-gqa-sharded"
SMALL = ["--bits", "3", "--group-size", "32", "--num-samples", "6", "--sequence-length", "24", "--method", "correct"]


def test_two_nodes_of_which_a_worker_and_one_die_make_the_file_of_one_machine(tmp_path):
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs Ray: pip install 'elutq[ray]'")
    apart = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child", "true"]
    if shutil.which("unshare") is None or subprocess.run(apart, capture_output=True).returncode != 0:
        pytest.skip("needs unshare and the right to make a network of its own: Ray would listen to everybody")
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over a lazy dog " * 20)
    kills = [CHECKPOINT, "--kills", "1", "--node-kills", "1", "--cores", "1", "--", *SMALL, "--calibration", text]
    command = [sys.executable, ROOT / "scripts" / "kill_cluster.py", *kills]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = re.findall(r"^(nothing|worker|node) .*: the same bytes$", done.stdout, re.MULTILINE)
    assert runs[0] == "nothing" and {"worker", "node"} <= set(runs)
