"""`elutq quantize org/name`, against a stand-in for the hub on loopback."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hub_server import COMMIT, serving
from processes import started

from elutq_cli.hub import find_checkpoint, is_repository
from elutq_formats.errors import ElutqError
from elutq_formats.model_file import ModelFile

DATA = Path(__file__).parent.parent / "data"
SHARDED = DATA / "golden" / "llama2-gqa-sharded"
SHARD = "model-00002-of-00002.safetensors"
ELUTQ = [sys.executable, "-m", "elutq_cli"]
NEEDED = {"config.json", "tokenizer.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors", SHARD}


def read_folder(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hub():
    files = read_folder(SHARDED)
    files |= {"pytorch_model.bin": b"x" * 1000, "original/model-1.safetensors": b"y", "README.md": b"z"}
    with serving(files) as server:
        yield server


@pytest.fixture
def environment(hub, tmp_path):
    cleared = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return cleared | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}


def quantize(environment, output, *arguments):
    command = [*ELUTQ, "quantize", *map(str, arguments), "-o", str(output), "--group-size", "32", "-t", "1"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def refusal(result):
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1, result.stderr
    return result.stderr


def test_what_is_a_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_repository(Path("meta-llama/Llama-3.1-8B"))
    for other in ("model", "/org/name", "./org/name/more", "org/name/more", "../name", "-x/name", "build/model.gguf"):
        assert not is_repository(Path(other))
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert not is_repository(Path("org/name"))
    assert find_checkpoint(Path("org/name")) == Path("org/name")
    with pytest.raises(ElutqError, match="leave out --revision"):
        find_checkpoint(Path("org/name"), "main")


def test_a_repository_is_downloaded_once_and_only_what_is_needed(hub, environment, tmp_path):
    outputs = [tmp_path / f"{name}.gguf" for name in ("hub", "offline", "folder")]
    result = quantize(environment, outputs[0], "someone/tiny", "--revision", "v1")
    assert result.returncode == 0, result.stderr
    assert sorted(hub.downloads()) == sorted(NEEDED)
    provenance = ModelFile.open(outputs[0]).provenance
    assert (provenance["source"], provenance["source_revision"]) == ("someone/tiny", COMMIT)

    before = len(hub.requested)
    assert quantize(environment, outputs[1], "someone/tiny", "--revision", "v1", "--offline").returncode == 0
    assert len(hub.requested) == before
    assert outputs[1].read_bytes() == outputs[0].read_bytes()
    assert "--offline" in refusal(quantize(environment, tmp_path / "x", "someone/else", "--offline"))
    assert len(hub.requested) == before

    assert quantize(environment, outputs[2], SHARDED).returncode == 0
    there, here = (ModelFile.open(path) for path in (outputs[0], outputs[2]))
    assert all((there.load(name) == here.load(name)).all() for name in ("model.norm.weight", "lm_head.weight"))


def test_a_broken_connection_is_resumed(hub, environment, tmp_path):
    hub.interrupt = SHARD
    assert quantize(environment, tmp_path / "out.gguf", "someone/tiny").returncode == 0
    assert hub.downloads().count(SHARD) == 2
    assert set(hub.downloads()) == NEEDED


def test_a_killed_download_leaves_no_output_and_continues(hub, environment, tmp_path):
    output = tmp_path / "out.gguf"
    hub.stalled = SHARD
    command = [*ELUTQ, "quantize", "someone/tiny", "-o", str(output), "--group-size", "32"]
    with started(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        assert hub.half_sent.wait(60)
        snapshots = tmp_path / "hf" / "hub" / "models--someone--tiny" / "snapshots"
        while sum(1 for _ in snapshots.glob("*/*")) < len(NEEDED) - 1:  # a file counts once its link is there
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
    assert not output.exists()
    hub.stalled = None
    hub.requested.clear()
    assert quantize(environment, output, "someone/tiny").returncode == 0
    assert hub.downloads() == [SHARD]


def test_refusals_say_what_to_do(hub, environment, tmp_path):
    output = tmp_path / "out.gguf"
    message = refusal(quantize(environment, output, "someone/nothing"))
    assert "someone/nothing is neither a folder here nor a repository" in message
    assert "has no revision v2" in refusal(quantize(environment, output, "someone/tiny", "--revision", "v2"))
    message = refusal(quantize(environment, output, "someone/gated"))
    assert f"accept its terms at {hub.url}/someone/gated" in message
    assert "HF_TOKEN" in message
    nowhere = environment | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    message = refusal(quantize(nowhere, output, "someone/tiny"))
    assert "http://127.0.0.1:9 cannot be reached: check the network" in message
    assert [path.name for path in tmp_path.iterdir()] == ["hf"] or list(tmp_path.iterdir()) == []


def test_eval_takes_a_repository(hub, environment, tmp_path):
    output, text = tmp_path / "out.gguf", tmp_path / "text.txt"
    text.write_text("A quick brown fox and some dogs. " * 20)
    assert quantize(environment, output, "someone/tiny").returncode == 0
    options = ["-f", str(text), "-c", "16", "--reference", "someone/tiny"]
    command = [*ELUTQ, "eval", str(output), *options]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert "reference   someone/tiny: KL divergence" in result.stdout
