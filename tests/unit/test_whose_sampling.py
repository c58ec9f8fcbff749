"""Whose sampling counts: the user's, below it the author's, below it ours; in Python, in the commands and served."""

import json
import shutil
from dataclasses import asdict

import pytest
import typer
from conftest import NOVELS
from typer.testing import CliRunner

import elutq
from elutq_cli.app import app
from elutq_cli.generation import SamplingOptions
from elutq_cli.server.limits import Limits
from elutq_cli.server.request import read_completion
from elutq_formats.errors import ElutqError

PROMPT = "It was a dark night, and"
OURS = SamplingOptions()


@pytest.fixture(scope="module")
def greedy_file(make_model, tmp_path_factory):
    """The bundled model by an author who wants no sampling, 7 tokens at most, and a penalty."""
    folder = shutil.copytree(NOVELS, tmp_path_factory.mktemp("greedy") / "greedy")
    author = {"do_sample": False, "temperature": 0.9, "top_k": 7, "repetition_penalty": 1.3}
    (folder / "generation_config.json").write_text(json.dumps(author))
    return make_model(folder)


@pytest.fixture(scope="module")
def greedy(greedy_file):
    with elutq.load(greedy_file, ctx_size=64, threads=1) as model:
        yield model


def command(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_a_users_value_comes_before_the_authors_and_his_before_ours():
    options = SamplingOptions.of({"temp": 0.0, "top_k": 7}, top_k=3, top_p=None, seed=5)
    assert asdict(options) == asdict(OURS) | {"temp": 0.0, "top_k": 3, "seed": 5}
    assert SamplingOptions.of({}) == OURS
    with pytest.raises(ElutqError, match="top-k is -3"):
        SamplingOptions.of({"top_k": 7}, top_k=-3)


def test_python_takes_the_authors_sampling(greedy):
    def text(**options):
        greedy.clear()
        return elutq.generate(greedy, PROMPT, 12, **options).read()

    assert greedy.file.sampling == {"temp": 0.0, "top_k": 7, "repeat_penalty": 1.3}
    assert text(seed=1) == text(seed=2) == text(temp=0, repeat_penalty=1.3)
    assert text() != text(repeat_penalty=1)
    assert text(temp=1, seed=1) != text(temp=1, seed=2)


def test_run_takes_the_authors_sampling_below_its_flags(greedy_file):
    def tokens(*flags):
        made = command("run", greedy_file, "-p", PROMPT, "-n", 12, "-t", 1, "--json", *flags)
        return json.loads(made)["tokens"]

    assert tokens("-s", 1) == tokens("-s", 2) == tokens("--temp", 0, "--repeat-penalty", 1.3)
    assert tokens("--temp", 1, "-s", 1) != tokens("--temp", 1, "-s", 2)


def test_the_server_takes_the_authors_sampling_below_a_requests_fields(greedy):
    body = {"prompt": PROMPT, "seed": 0}
    (own,) = read_completion(body, greedy, Limits()).generations
    assert own.sampler.options == SamplingOptions(temp=0.0, top_k=7, repeat_penalty=1.3)
    (other,) = read_completion(body | {"temperature": 0.5, "top_k": 0, "top_p": 0.9}, greedy, Limits()).generations
    asked = other.sampler.options
    assert asked == SamplingOptions(temp=0.5, top_k=0, top_p=0.9, repeat_penalty=1.3)


def test_info_shows_the_authors_sampling(greedy_file, novels_2bit):
    assert "the author's sampling: temp 0, top_k 7, repeat_penalty 1.3" in command("info", greedy_file, "--no-measure")
    shown = [json.loads(command("info", file, "--no-measure", "--json")) for file in (greedy_file, novels_2bit)]
    assert [values["sampling"] for values in shown] == [{"temp": 0, "top_k": 7, "repeat_penalty": 1.3}, {}]


def test_help_names_our_defaults():
    helps = {parameter.name: parameter.help for parameter in typer.main.get_command(app).commands["run"].params}
    for name in ("temp", "top_k", "top_p", "min_p", "repeat_penalty"):
        assert helps[name].endswith(f"Default: the model's own, else {asdict(OURS)[name]:g}.")
