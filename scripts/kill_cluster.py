"""Runs `elutq quantize` on two Ray nodes of one core while workers and a node are killed, and compares its files.

    python scripts/kill_cluster.py tests/data/novels-6m --kills 10 -- --calibration tests/data/sampled.txt

One run a kill, at a random moment of it: SIGKILL to a process that is at a unit of work, or to a node with all that it
has started. Every file must have the bytes that threads of this machine make. The nodes listen on a loopback of their
own (`unshare`, which needs the right to it). What follows -- goes to `elutq quantize`.
"""

import argparse
import fcntl
import math
import os
import random
import secrets
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HEAD = "127.0.0.1:6399"
APART = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
OBJECT_STORE, MEMORY = 2_000_000_000, 4_000_000_000
START_SECONDS, LIMIT = 120, 20.0
"""How long a node may take to start; how many times as long as undisturbed a run may take, and a minute more."""


def processes(parent: int | None = None) -> dict[int, bytes]:
    """Return the command lines of all processes, or of those that one has started, by their ids."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status, command = (folder / "stat").read_text(), (folder / "cmdline").read_bytes()
        except OSError:
            continue
        state, its_parent = status.rpartition(")")[2].split()[:2]
        if state != "Z" and parent in (None, int(its_parent)):
            found[int(folder.name)] = command
    return found


def start_node(*options: str) -> int:
    """Start a Ray node of one core; return the id of its raylet."""
    before = {number for number, command in processes().items() if b"raylet/raylet" in command.split(b"\0")[0]}
    sizes = [f"--memory={MEMORY}", f"--object-store-memory={OBJECT_STORE}", "--node-ip-address=127.0.0.1"]
    command = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--num-cpus=1", *sizes]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=START_SECONDS)
    if done.returncode != 0:
        sys.exit(done.stdout + done.stderr)
    after = {number for number, command in processes().items() if b"raylet/raylet" in command.split(b"\0")[0]}
    (raylet,) = after - before
    return raylet


def kill_worker(stopped: threading.Event) -> str:
    """Kill a process that is at a unit of work, as soon as there is one; return what was killed."""
    while not stopped.wait(0.005):
        for number, command in processes().items():
            if command.startswith(b"ray::run_as_worker"):
                try:
                    os.kill(number, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                return f"worker {number}"
    return ""


def kill_node(raylet: int) -> str:
    """Kill a node and all that it has started; return what was killed."""
    doomed = [raylet, *processes(raylet)]
    for number in doomed:
        try:
            os.kill(number, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return f"node {raylet} with {len(doomed) - 1} processes"


def quantize(arguments: list[str], output: Path, *options: str, cores: int | None = None) -> "subprocess.Popen[bytes]":
    """Start `elutq quantize` with one thread a unit; on so many cores, None: all."""
    command = [sys.executable, "-m", "elutq_cli", "quantize", *arguments, "-o", str(output), *options, "--threads", "1"]
    some = set(sorted(os.sched_getaffinity(0))[:cores])
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=lambda: os.sched_setaffinity(0, some))


class Cluster:
    """Two nodes, on the first of which runs are called."""

    def __init__(self, folder: str, cores: int | None) -> None:
        """Start both; what Ray writes goes to the folder, whose path must be short. Runs have so many cores."""
        self.cores = cores
        start_node("--head", "--port=6399", "--include-dashboard=false", f"--temp-dir={folder}")
        self.second = start_node(f"--address={HEAD}")

    def run(self, arguments: list[str], output: Path, limit: float, kill: str = "", after: float = 0.0) -> str:
        """Quantize on it, with a worker or a node killed after so many seconds; return what happened.

        A run that fails, or has not ended after so many seconds, ends this program.
        """
        begin, stopped, killed = time.monotonic(), threading.Event(), []

        def strike() -> None:
            if not stopped.wait(after):
                killed.append(kill_worker(stopped) if kill == "worker" else kill_node(self.second))

        striker = threading.Thread(target=strike if kill else lambda: None)
        with quantize(arguments, output, "--executor", f"ray:{HEAD}", cores=self.cores) as job:
            striker.start()
            try:
                status: int | str = job.wait(limit)
            except subprocess.TimeoutExpired:
                job.kill()
                status = f"no end after {limit:.0f} s"
        stopped.set()
        striker.join()
        if status != 0:
            sys.exit(f"elutq quantize, {killed} killed after {after:.1f} s: {status}")
        what = f"{killed[0]} killed after {after:.1f} s" if killed and killed[0] else "nothing killed"
        if kill == "node" and killed:
            self.second = start_node(f"--address={HEAD}")
        return f"{what}, {time.monotonic() - begin:.1f} s in all"


def main() -> None:
    """Parse the command line, run apart from other networks, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkpoint")
    parser.add_argument("--kills", type=int, default=10, help="of workers")
    parser.add_argument("--node-kills", type=int, default=3)
    parser.add_argument(
        "--cores", type=int, help="of the process that calls; with 1 light units travel, too; default: all"
    )
    parser.add_argument("--seed", type=int, help="default: a new one, which is printed")
    parser.add_argument("--apart", action="store_true", help=argparse.SUPPRESS)
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    given = parser.parse_args(sys.argv[1:end])
    if not given.apart:
        sys.exit(subprocess.run([*APART, sys.executable, __file__, "--apart", *sys.argv[1:]]).returncode)
    with socket.socket() as loopback:
        fcntl.ioctl(loopback, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ |= {"RAY_worker_niceness": "0"}  # at Ray's 15 a machine that others use seems to stand still
    seed = random.randrange(2**32) if given.seed is None else given.seed
    print(f"seed {seed}", flush=True)
    rng, arguments = random.Random(seed), [given.checkpoint, *sys.argv[end + 1 :]]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(prefix="r") as of_ray:
        whole, output = Path(folder) / "whole.gguf", Path(folder) / "out.gguf"
        if quantize(arguments, whole).wait() != 0:
            sys.exit("the run with threads failed")
        cluster, seconds, failed = Cluster(of_ray, given.cores), 0.0, 0
        todo = ["", *["worker"] * given.kills, *["node"] * given.node_kills]
        while todo:
            begin = time.monotonic()
            limit = LIMIT * seconds + 60 if seconds else 3600.0
            what = cluster.run(arguments, output, limit, todo[0], rng.uniform(0.1, 0.9) * seconds)
            seconds = min(seconds or math.inf, time.monotonic() - begin)
            same = output.read_bytes() == whole.read_bytes()
            failed += not same
            print(f"{what}: {'the same bytes' if same else 'OTHER BYTES'}", flush=True)
            output.unlink()
            if not todo[0] or not what.startswith("nothing"):  # it may have ended before
                del todo[0]
        left = sorted(path.name for path in Path(folder).iterdir())
        if failed or left != ["whole.gguf"]:
            sys.exit(f"{failed} files differ; left behind: {left}")


if __name__ == "__main__":
    main()
