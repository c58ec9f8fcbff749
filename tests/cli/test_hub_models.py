"""Model files of the hub, against a stand-in for it on loopback: `elutq run -hf org/name`, `load("org/name")`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from conftest import NOVELS
from hub_server import hub_environment, serving, use_here
from typer.testing import CliRunner

import elutq
from elutq_cli.commands.eval import eval_command
from elutq_cli.commands.model_argument import find_model_file
from elutq_cli.hub import find_model
from elutq_formats.errors import ElutqError

ELUTQ = [sys.executable, "-m", "elutq_cli"]
SAMPLED = NOVELS.parent / "sampled.txt"
PEER = b"GGUF\x03\0\0\0" + bytes(1000)

app = typer.Typer()
app.command("eval")(eval_command)
app.callback()(lambda: None)  # so that eval is a subcommand


@pytest.fixture
def hub(novels_2bit):
    with serving({"README.md": b"#", "tiny.gguf": novels_2bit.read_bytes()}) as server:
        yield server


@pytest.fixture
def here(hub, tmp_path, monkeypatch):
    use_here(hub, tmp_path, monkeypatch)


def test_a_model_is_loaded_from_the_hub_and_then_from_the_cache(hub, here, novels_2bit, monkeypatch):
    def text(model):
        with model:
            return elutq.generate(model, "It was a", 4, temp=0).read()

    expected = text(elutq.load(novels_2bit, ctx_size=64))
    assert text(elutq.load("someone/tiny", ctx_size=64)) == expected
    assert hub.downloads() == ["tiny.gguf"]
    assert text(elutq.load("someone/tiny", filename="tiny.gguf", revision="v1", ctx_size=64)) == expected
    assert hub.downloads() == ["tiny.gguf"]
    hub.requested.clear()
    assert text(elutq.load("someone/tiny", offline=True, ctx_size=64)) == expected
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert text(elutq.load("someone/tiny:tiny", ctx_size=64)) == expected
    with pytest.raises(ElutqError, match=r"no GGUF file 'other' in the cache: it has 'tiny\.gguf'"):
        elutq.load("someone/tiny:other")
    with pytest.raises(ElutqError, match="someone/else is not in the cache"):
        elutq.load("someone/else")
    assert hub.requested == []


def test_of_several_files_one_is_chosen_by_its_name_or_a_part_of_it(hub, here):
    hub.files = dict.fromkeys(("a-Q2.gguf", "a-Q4.gguf", "sub/a-Q4-long.gguf", "b.txt"), hub.files["tiny.gguf"])
    for wanted, found in [
        ("a-Q4.gguf", "a-Q4.gguf"),
        ("a-Q4", "a-Q4.gguf"),
        ("q2", "a-Q2.gguf"),
        ("LONG", "sub/a-Q4-long.gguf"),
    ]:
        assert find_model("someone/tiny", wanted).as_posix().endswith(f"/{found}")
        assert find_model(f"someone/tiny:{wanted}").as_posix().endswith(f"/{found}")
    with pytest.raises(ElutqError, match=r"has 3 GGUF files \('a-Q2.gguf', .*\): choose one, as someone/tiny:FILE"):
        find_model("someone/tiny")
    with pytest.raises(ElutqError, match=r"has 2 GGUF files \('a-Q4.gguf', 'sub/a-Q4-long.gguf'\)"):
        find_model("someone/tiny:Q4")
    with pytest.raises(ElutqError, match=r"has no GGUF file 'b\.txt': it has 'a-Q2\.gguf'"):
        find_model("someone/tiny", "b.txt")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"config.json": b"{}", "model.safetensors": b""},
            "is a checkpoint, not a model file: elutq quantize someone/tiny -o",
        ),
        ({"peer.gguf": PEER}, "'peer.gguf' is not a file that elutq made"),
        ({"page.gguf": b"<html>"}, "'page.gguf' is not a file that elutq made"),
        ({"README.md": b""}, "has no GGUF file"),
    ],
)
def test_what_is_no_model_of_ours_is_refused_before_it_is_downloaded(hub, here, files, message):
    hub.files = files
    with pytest.raises(ElutqError, match=f"^someone/tiny.* {message}"):
        elutq.load("someone/tiny")
    assert hub.downloads() == []


def test_a_file_on_this_disk_comes_before_a_repository(here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone").mkdir()
    for name in ("tiny", "other:tiny"):
        (tmp_path / "someone" / name).touch()
        assert find_model(f"someone/{name}") == Path("someone", name)
    with pytest.raises(ElutqError, match=r"model\.gguf is not a repository's name: it has no tiny"):
        find_model("model.gguf", "tiny")


@pytest.mark.parametrize(
    ("model", "hf_repo", "message"),
    [
        (None, None, "give one model"),
        ("model.gguf", "someone/tiny", "give one model"),
        (None, "model.gguf", "-hf model.gguf is not a repository's name"),
        (None, "a/b/c", "-hf a/b/c is not a repository's name"),
    ],
)
def test_a_command_is_given_one_model(model, hf_repo, message):
    with pytest.raises(ElutqError, match=message):
        find_model_file(model, hf_repo, offline=False)


def evaluate(*arguments):
    """Evaluate in this process; returns what is printed as JSON."""
    command = ["eval", *map(str, arguments), "-f", str(SAMPLED), "-c", "16", "--chunks", "1", "--json"]
    return json.loads(CliRunner().invoke(app, command, catch_exceptions=False).stdout)


def test_eval_takes_what_run_takes(hub, here, novels_2bit):
    expected = evaluate(novels_2bit, "--of-runtime")
    for name in ("someone/tiny", "someone/tiny:tiny.gguf", "someone/tiny:TIN"):
        found = evaluate(name, "--of-runtime")
        assert found["reference"] == f"{name}, dequantized"
        assert [found[key] for key in ("ppl", "kl")] == [expected[key] for key in ("ppl", "kl")]
    assert hub.downloads().count("tiny.gguf") == 1
    hub.requested.clear()
    assert evaluate("someone/tiny:tiny", "--reference", "someone/tiny", "--offline")["kl"] == 0
    assert hub.requested == []


def test_eval_takes_a_repositorys_checkpoint_before_its_files(hub, here):
    hub.files |= {path.name: path.read_bytes() for path in NOVELS.iterdir()}
    assert evaluate("someone/tiny", "--reference", NOVELS)["kl"] == 0
    assert "tiny.gguf" not in hub.downloads()
    assert 0 < evaluate("someone/tiny:tiny", "--reference", "someone/tiny")["kl"] < 1


def test_eval_says_which_files_there_are(hub, here):
    hub.files["other.gguf"] = hub.files["tiny.gguf"]
    with pytest.raises(
        ElutqError, match=r"has 2 GGUF files \('tiny.gguf', 'other.gguf'\): choose one, as someone/tiny:F"
    ):
        evaluate("someone/tiny")
    with pytest.raises(ElutqError, match=r"has no GGUF file 'more': it has 'tiny.gguf', 'other.gguf'"):
        evaluate("someone/tiny:more")


def test_eval_says_what_a_repository_holds_instead_of_a_model(hub, here):
    hub.files = {"adapter_config.json": b"{}", "adapter_model.safetensors": b""}
    with pytest.raises(ElutqError, match="someone/tiny is a LoRA adapter"):
        evaluate("someone/tiny")


def test_run_takes_a_repository_by_name_and_as_llama_cpp_does(hub, tmp_path):
    environment = hub_environment(hub, tmp_path)

    def run(*arguments):
        command = [*ELUTQ, "run", *arguments, "-p", "It was a", "-n", "3", "--temp", "0"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    first = run("-hf", "someone/tiny")
    assert first.returncode == 0, first.stderr
    hub.requested.clear()
    assert run("someone/tiny:tiny.gguf", "--offline").stdout == first.stdout != ""
    assert hub.requested == []
