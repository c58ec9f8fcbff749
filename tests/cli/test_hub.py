"""`elutq quantize org/name`, against a stand-in for the hub on loopback."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hub_server import COMMIT, hub_environment, serving, use_here
from huggingface_hub import constants, snapshot_download
from processes import started
from safetensors.numpy import save

import elutq
from elutq_cli.hub import is_repository
from elutq_cli.hub_sources import find_checkpoint, open_headers
from elutq_cli.pipeline.recipe import Recipe
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.errors import ElutqError, FailureError
from elutq_formats.model_file import ModelFile

DATA = Path(__file__).parent.parent / "data"
SHARDED = DATA / "golden" / "llama2-gqa-sharded"
SHARD = "model-00002-of-00002.safetensors"
ELUTQ = [sys.executable, "-m", "elutq_cli"]
SMALL = {"README.md", "config.json", "tokenizer.json", "model.safetensors.index.json"}
SHARDS = {"model-00001-of-00002.safetensors", SHARD}
NEEDED = SMALL | SHARDS


def read_folder(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hub():
    files = read_folder(SHARDED)
    files |= {
        "pytorch_model.bin": b"x" * 1000,
        "model-3.safetensors": b"y",
        "README.md": b"---\nlicense: apache-2.0\n---\n# Tiny\n",
    }
    with serving(files) as server:
        yield server


@pytest.fixture
def environment(hub, tmp_path):
    return hub_environment(hub, tmp_path)


@pytest.fixture
def here(hub, tmp_path, monkeypatch):
    use_here(hub, tmp_path, monkeypatch)
    return Path("someone/tiny")


def quantize(environment, output, *arguments):
    command = [*ELUTQ, "quantize", *map(str, arguments), "-o", str(output), "--group-size", "32", "-t", "1"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def refusal(result, status=2):
    assert result.returncode == status, result.stderr
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
    with pytest.raises(ElutqError, match="leave out the revision"):
        find_checkpoint(Path("org/name"), "main")


def test_a_repository_is_downloaded_once_and_only_what_is_needed(hub, environment, tmp_path):
    outputs = [tmp_path / f"{name}.gguf" for name in ("hub", "offline", "folder")]
    result = quantize(environment, outputs[0], "someone/tiny", "--revision", "v1")
    assert result.returncode == 0, result.stderr
    assert sorted(hub.downloads()) == sorted(NEEDED)
    provenance = ModelFile.open(outputs[0]).provenance
    assert (provenance["source"], provenance["source_revision"]) == ("someone/tiny", COMMIT)
    assert provenance["license"] == "apache-2.0"

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


def test_what_is_checked_before_the_download_is_read_and_warned_of_once(hub, environment, tmp_path):
    """A text that comes through a pipe is there once."""
    options = ["--calibration", "/dev/stdin", "--num-samples", "99", "--sequence-length", "16", "--method", "fit"]
    command = [*ELUTQ, "quantize", "someone/tiny", "-o", str(tmp_path / "out.gguf"), "--group-size", "32", *options]
    text = "A quick brown fox and some dogs. " * 4
    result = subprocess.run(command, env=environment, capture_output=True, text=True, input=text, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("not 99: all are used") == 1
    bare = quantize(environment | {"HF_HOME": str(tmp_path / "other")}, tmp_path / "bare.gguf", "someone/tiny")
    assert bare.stderr.count("lose much of a model") == 1


def test_refusals_say_what_to_do(hub, environment, tmp_path):
    output = tmp_path / "out.gguf"
    message = refusal(quantize(environment, output, "someone/nothing"))
    assert "someone/nothing is neither on this disk nor a repository" in message
    assert "has no revision v2" in refusal(quantize(environment, output, "someone/tiny", "--revision", "v2"))
    message = refusal(quantize(environment, output, "someone/gated"))
    assert f"accept its terms at {hub.url}/someone/gated" in message
    assert "HF_TOKEN" in message
    nowhere = environment | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    message = refusal(quantize(nowhere, output, "someone/tiny"), status=1)  # nothing is wrong with what was given
    assert "http://127.0.0.1:9 cannot be reached: check the network" in message
    assert [path.name for path in tmp_path.iterdir()] == ["hf"] or list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("use", [find_checkpoint, lambda name: elutq.load(name), open_headers])
def test_a_hub_that_fails_is_no_bad_input(use, hub, here):
    hub.status = 503
    with pytest.raises(FailureError, match=f"{hub.url} (answers 503|cannot be reached)") as caught:
        use(here)
    assert not caught.value.bad_input


def test_eval_takes_a_repository(hub, environment, tmp_path):
    output, text = tmp_path / "out.gguf", tmp_path / "text.txt"
    text.write_text("A quick brown fox and some dogs. " * 20)
    assert quantize(environment, output, "someone/tiny").returncode == 0
    options = ["-f", str(text), "-c", "16", "--reference", "someone/tiny"]
    command = [*ELUTQ, "eval", str(output), *options]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert re.search(r"^reference   someone/tiny: perplexity .*, KL divergence ", result.stdout, re.MULTILINE)


def test_a_dry_run_downloads_no_weights_and_needs_no_output(hub, environment, tmp_path):
    command = [*ELUTQ, "quantize", "someone/tiny", "--dry-run", "--json", "--group-size", "32", "-t", "1"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert set(hub.downloads()) == SMALL
    assert set(hub.headers_read()) == SHARDS
    here = subprocess.run([*command[:4], str(SHARDED), *command[5:]], capture_output=True, text=True, timeout=60)
    plans = [json.loads(run.stdout) for run in (result, here)]
    assert all(plan.pop("seconds") > 0 for plan in plans)
    assert plans[0] == plans[1]
    del command[command.index("--dry-run")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert "say where the model file goes: -o FILE" in refusal(result)
    assert not any(path.suffix == ".gguf" for path in tmp_path.iterdir())


def change_config(hub, **changes):
    hub.files["config.json"] = json.dumps(json.loads(hub.files["config.json"]) | changes).encode()


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (lambda hub: change_config(hub, model_type="gpt2"), {}, "model type 'gpt2' is not supported"),
        (lambda hub: change_config(hub, vocab_size=77), {}, "embed_tokens.weight has shape"),
        (lambda hub: hub.files.update({"tokenizer.json": b"<html>"}), {}, "tokenizer.json is damaged"),
        (lambda hub: hub.files.update({"chat_template.jinja": b"{% if %}"}), {}, "template is not valid Jinja"),
        (lambda hub: change_config(hub, num_hidden_layers=9), {}, "has no tensor model.layers"),
        (lambda hub: hub.files.update({SHARD: b"<html>" * 9}), {}, f"'{SHARD}' is damaged or no safetensors file"),
        (lambda hub: hub.files.pop(SHARD), {}, f"its index names '{SHARD}', which it does not have"),
        (lambda hub: None, {"recipe": Recipe(group_size=128)}, "groups of 128 do not divide"),
        (lambda hub: None, {"max_memory": 0.001}, "above the limit of"),
        (lambda hub: None, {"calibration": "absent.txt"}, "sequences of 512 tokens are longer than the model's"),
        (lambda hub: None, {"recipe": Recipe(group_size=32, target_bpw=3.0)}, "needs a text to calibrate on"),
    ],
)
def test_what_cannot_succeed_is_refused_before_weights_are_downloaded(hub, here, tmp_path, spoil, options, message):
    spoil(hub)
    with pytest.raises(ElutqError, match=message):
        elutq.quantize(here, tmp_path / "out.gguf", **({"recipe": Recipe(group_size=32)} | options), threads=1)
    assert not SHARDS & set(hub.downloads())
    assert not (tmp_path / "out.gguf").exists()


def test_shards_are_those_that_the_index_names(hub, here):
    for number in (1, 2):
        old, new = f"model-0000{number}-of-00002.safetensors", f"part[{number}].safetensors"
        hub.files[new] = hub.files.pop(old)
        index = hub.files["model.safetensors.index.json"]
        hub.files["model.safetensors.index.json"] = index.replace(old.encode(), new.encode())
    folder = find_checkpoint(here)
    assert {path.name for path in folder.glob("*.safetensors")} == {"part[1].safetensors", "part[2].safetensors"}
    with Checkpoint.open(folder) as checkpoint:
        assert checkpoint.load("model.norm.weight").size


def test_a_single_file_is_downloaded_in_the_place_of_shards_where_there_are_both(hub, here):
    with Checkpoint.open(SHARDED) as checkpoint:
        hub.files["model.safetensors"] = save({name: checkpoint.load(name) for name in checkpoint.names})
    with open_headers(here) as checkpoint:
        assert checkpoint.shape("lm_head.weight")[1] == checkpoint.config.hidden_size
        with pytest.raises(ElutqError, match=r"model\.safetensors of someone/tiny has not been downloaded"):
            checkpoint.load("lm_head.weight")
    folder = find_checkpoint(here)
    assert [path.name for path in folder.glob("*.safetensors")] == ["model.safetensors"]
    assert find_checkpoint(here, offline=True) == folder


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": b"{}", "tiny.Q4_K.gguf": b""}, "'tiny.Q4_K.gguf' is GGUF"),
        ({"config.json": b"{}", "consolidated.00.pth": b""}, "'consolidated.00.pth' is PyTorch's format"),
        ({"pytorch_model.bin": b""}, "it has weights, but no config.json"),
        ({"README.md": b""}, "it has neither model.safetensors nor"),
        ({"sub/config.json": b"{}", "sub/model.safetensors": b""}, "it has one in 'sub'"),
        ({"adapter_config.json": b"{}", "adapter_model.safetensors": b""}, "a LoRA adapter: merge it"),
    ],
)
def test_a_repository_without_safetensors_weights_is_said_by_what_it_holds(hub, here, files, message):
    hub.files = files
    with pytest.raises(ElutqError, match=f"^someone/tiny is .*{message}"):
        find_checkpoint(here)


def test_a_head_that_only_claims_to_be_the_embedding_is_seen_once_it_is_here(hub, here):
    change_config(hub, tie_word_embeddings=True)
    with open_headers(here) as checkpoint:
        assert checkpoint.config.tie_word_embeddings
    with Checkpoint.open(find_checkpoint(here)) as checkpoint:
        assert not checkpoint.config.tie_word_embeddings


def test_offline_does_without_a_card(hub, here):
    hub.files["README.md"] = b"# A card"
    patterns = ["*.safetensors", "*.json"]
    folder = snapshot_download(str(here), allow_patterns=patterns)
    assert find_checkpoint(here, offline=True) == Path(folder)


def test_offline_uses_what_is_there_and_says_what_is_not(hub, here, monkeypatch):
    open_headers(here).close()
    hub.requested.clear()
    for offline in (True, False):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", not offline)
        with pytest.raises(ElutqError, match=r"someone/tiny is not in the cache .*, or not all of it: run"):
            find_checkpoint(here, offline=offline)
    assert hub.requested == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    folder = find_checkpoint(here)
    hub.requested.clear()
    assert find_checkpoint(here, offline=True) == folder
    assert hub.requested == []
