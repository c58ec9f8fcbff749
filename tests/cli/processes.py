"""Programs that run beside a test."""

import subprocess
import sys
from contextlib import contextmanager


@contextmanager
def started(command, **options):
    """Start a program; what is left of it in the end is killed: ``with Popen`` would wait, for ever if need be."""
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.kill()


PAUSING = """
import sys
from pathlib import Path
from elutq_cli.commands import making

folder, pattern, n_files = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
sys.argv[1:] = sys.argv[4:]
advance, paused = making.ProgressBars.advance, []

def pause(self, amount):
    if not paused and len(list(folder.glob(pattern))) >= n_files:
        paused.append(True)
        print("paused", file=sys.stderr, flush=True)
        sys.stdin.readline()
    advance(self, amount)

making.ProgressBars.advance = pause
from elutq_cli.app import main
main()
"""


@contextmanager
def paused_quantize(arguments, folder, pattern, n_files):
    """Start `elutq quantize ARGUMENTS`; it waits where it first tells its progress with so many such files in a folder.

    Yields the process, waiting; a line on its stdin lets it go on. Its stderr begins after what says that it waits.
    """
    command = [sys.executable, "-c", PAUSING, str(folder), pattern, str(n_files), "quantize", *map(str, arguments)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with started(command, text=True, **pipes) as process:
        said = []
        while (line := process.stderr.readline()) != "paused\n":
            said.append(line)
            assert line, f"it ended before it was to wait, and said {''.join(said)}"
        yield process
