"""`elutq quantize` when disks fill, shards cannot be read or change, and weights are no numbers: one line, exit 2."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DATA = Path(__file__).parent.parent / "data"
NOVELS = DATA / "novels-6m"
SHARDED = DATA / "golden" / "llama2-gqa-sharded"
SHARD = "model-00002-of-00002.safetensors"
PRECIOUS = b"precious"
SMALL = ("--group-size", "32")


def command(checkpoint, output, *options):
    return [sys.executable, "-m", "elutq_cli", "quantize", str(checkpoint), "-o", str(output), *map(str, options)]


def run(checkpoint, output, *options):
    arguments = command(checkpoint, output, *options)
    return subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)


def refusal(result, output):
    """Check that a run failed as it should; return its message."""
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert output.read_bytes() == PRECIOUS
    assert {path.name for path in output.parent.iterdir()} <= {output.name, output.name + ".work", "checkpoint"}
    return result.stderr


@pytest.fixture
def old_output(tmp_path):
    output = tmp_path / "out.gguf"
    output.write_bytes(PRECIOUS)
    return output


@pytest.fixture
def checkpoint(tmp_path):
    return shutil.copytree(SHARDED, tmp_path / "checkpoint")


def a_folder(shard):
    shard.unlink()
    shard.mkdir()


def a_failing_disk(shard):
    shard.unlink()
    shard.symlink_to("/proc/self/mem")  # reading its first bytes is an I/O error, for root too


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (a_folder, "Is a directory"),
        (a_failing_disk, "Input/output error"),
        (lambda shard: os.truncate(shard, shard.stat().st_size - 2), "not fully covered"),
        (lambda shard: os.truncate(shard, 20), "invalid header length"),
        (lambda shard: shard.unlink(), "is incomplete: "),
    ],
    ids=["folder", "I/O error", "truncated", "truncated header", "missing"],
)
def test_an_unreadable_shard(checkpoint, old_output, spoil, message):
    spoil(checkpoint / SHARD)
    found = refusal(run(checkpoint, old_output, "--force", *SMALL), old_output)
    assert message in found
    assert SHARD in found
    assert not old_output.with_name("out.gguf.work").exists()


@pytest.mark.parametrize(
    ("word", "options"),
    [
        (0x7FC0, ("--bits", 4)),
        (0xFF80, ("--calibration", DATA / "sampled.txt", "--sequence-length", 16, "--num-samples", 4)),
    ],
    ids=["NaN, weights only", "-infinity, calibrated"],
)
def test_a_weight_that_is_no_number(checkpoint, old_output, word, options):
    shard = checkpoint / SHARD
    content = bytearray(shard.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    tensor, entry = next((key, value) for key, value in header.items() if key.endswith("down_proj.weight"))
    assert entry["dtype"] == "BF16"
    place = start + entry["data_offsets"][0] + 40
    content[place : place + 2] = word.to_bytes(2, "little")
    shard.write_bytes(content)
    found = refusal(run(checkpoint, old_output, "--force", *SMALL, *options), old_output)
    assert found == f"elutq: tensor {tensor} holds values that are not finite: the checkpoint is damaged\n"


FILL_A_DISK = """
import json, subprocess, sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from processes import paused_quantize

folder, arguments = Path(sys.argv[2]), sys.argv[3:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], check=True)
output, filler = folder / "out.gguf", folder / "filler"
output.write_bytes(b"precious")
with paused_quantize(arguments, folder / "out.gguf.work", "*.unit", 1) as job:
    try:
        with filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    except OSError:
        pass
    out, error = job.communicate("\\n")
first = [job.returncode, out, error, output.read_bytes().decode(), sorted(path.name for path in folder.iterdir())]
filler.unlink()
again = subprocess.run([sys.executable, "-m", "elutq_cli", "quantize", *arguments], capture_output=True, text=True)
print(json.dumps([first, [again.returncode, again.stderr, output.read_bytes().hex()]]))
"""


def test_a_disk_that_fills_up_during_a_run(tmp_path):
    """A small tmpfs of the test's own, filled by somebody else once the run is under way; then there is room again."""
    own = ["unshare", "--user", "--map-root-user", "--mount"]
    folder = tmp_path / "disk"
    folder.mkdir()
    trial = subprocess.run([*own, "mount", "-t", "tmpfs", "tmpfs", str(folder)], capture_output=True, check=False)
    if trial.returncode != 0:
        pytest.skip(f"a user may not mount here: {trial.stderr.decode().strip()}")
    arguments = [str(NOVELS), "-o", str(folder / "out.gguf"), "--force"]
    driver = subprocess.run(
        [*own, sys.executable, "-c", FILL_A_DISK, str(Path(__file__).parent), str(folder), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert driver.returncode == 0, driver.stderr
    first, again = json.loads(driver.stdout)
    assert first[0] == 1
    assert first[1] == ""
    assert first[2] == f"elutq: cannot write {folder / 'out.gguf.work'}: No space left on device\n"
    assert first[3] == PRECIOUS.decode()
    assert first[4] == ["filler", "out.gguf", "out.gguf.work"]
    assert again[0] == 0, again[1]
    assert "going on after the" in again[1]
    whole = tmp_path / "whole.gguf"
    assert run(NOVELS, whole).returncode == 0
    assert bytes.fromhex(again[2]) == whole.read_bytes()
