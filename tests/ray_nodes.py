"""Two Ray nodes of one core, and a run on them whose workers are killed; for a network and processes of its own.

usage: unshare --net --pid --fork --mount-proc --kill-child python tests/ray_nodes.py CHECKPOINT TEXT OUTPUT FOLDER
"""

import fcntl
import os
import secrets
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

HEAD = "127.0.0.1:6399"
SMALL = ["--bits", "3", "--group-size", "32", "--num-samples", "6", "--sequence-length", "24", "--method", "correct"]
SIOCSIFFLAGS, IFF_UP = 0x8914, 1


def start(*options):
    node = ["start", "--num-cpus=1", "--memory=2000000000", "--object-store-memory=100000000", *options]
    command = "from ray.scripts.scripts import main; main()"
    done = subprocess.run([sys.executable, "-c", command, *node], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def kill_workers(stopped, killed):
    """Kill workers at their work, three in all, half a second apart; a unit of so small a model takes milliseconds."""
    while not stopped.wait(0.01) and len(killed) < 3:
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if (process / "cmdline").read_bytes().startswith(b"ray::_run"):
                    os.kill(int(process.name), signal.SIGKILL)
                    killed.append(process.name)
                    stopped.wait(0.5)
                    break
            except OSError:
                continue


def main(checkpoint, text, output, folder):
    with socket.socket() as loopback:
        fcntl.ioctl(loopback, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    start("--head", "--node-ip-address=127.0.0.1", "--port=6399", "--include-dashboard=false", f"--temp-dir={folder}")
    start(f"--address={HEAD}", "--node-ip-address=127.0.0.1")
    stopped, killed = threading.Event(), []
    killer = threading.Thread(target=kill_workers, args=(stopped, killed))
    killer.start()
    command = [sys.executable, "-m", "elutq_cli", "quantize", checkpoint, "-o", output, *SMALL, "--calibration", text]
    begin = time.perf_counter()
    status = subprocess.run([*command, "--threads", "1", "--executor", f"ray:{HEAD}"]).returncode
    stopped.set()
    killer.join()
    print(f"status {status}, {len(killed)} workers killed, {time.perf_counter() - begin:.1f} s")
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
