"""`elutq eval --tasks`: questions beside a text or alone, for model files and checkpoints, and what is refused."""

import json

import pytest
import typer
from conftest import NOVELS
from typer.testing import CliRunner

from elutq_cli.commands.eval import eval_command
from elutq_formats.errors import ElutqError

SAMPLED = NOVELS.parent / "sampled.txt"

app = typer.Typer()
app.command()(eval_command)


def run(*arguments):
    """On one thread: several wait for each other in every layer, for long where other tests run beside."""
    return CliRunner().invoke(app, [*map(str, arguments), "-t", "1"], catch_exceptions=False)


def refusal(*arguments):
    with pytest.raises(ElutqError) as caught:
        run(*arguments)
    return str(caught.value)


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """How passages of the sampled text go on: as they do, or as another one does."""
    text = SAMPLED.read_text(encoding="utf-8")
    passages = [text[start : start + 400].split()[1:-1] for start in range(0, 8000, 400)]
    lines = []
    for index, words in enumerate(passages):
        other, gold = passages[index - 1], index % 2
        choices = [" ".join(words[20:26]), " ".join(other[20:26])]
        line = {"query": " ".join(words[:20]), "choices": choices[::-1] if gold else choices, "gold": gold}
        lines.append(json.dumps(line) + "\n")
    path = tmp_path_factory.mktemp("tasks") / "goes-on.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    return path


def test_a_model_and_its_checkpoint_answer_better_than_chance(novels_2bit, questions):
    result = run(novels_2bit, "--tasks", questions, "--reference", NOVELS, "--json")
    assert result.stderr == ""
    values = json.loads(result.stdout)
    assert "ppl" not in values
    assert "file" not in values
    for entries in (values["tasks"], values["reference_tasks"]):
        (entry,) = entries
        assert (entry["file"], entry["n_questions"], entry["n_cut"]) == (str(questions), 20, 0)
        assert 0.7 <= entry["acc"] <= 1
        assert 0.7 <= entry["acc_norm"] <= 1
        assert 0 < entry["acc_stderr"] < 0.2 or entry["acc"] == 1
    alone = json.loads(run(NOVELS, "--tasks", questions, "--json").stdout)
    assert alone["tasks"] == values["reference_tasks"]


def test_questions_beside_a_text(novels_2bit, questions, tmp_path):
    flags = ("-f", SAMPLED, "-c", 128, "--chunks", 1)
    text = run(novels_2bit, *flags).stdout
    (tmp_path / "others.jsonl").write_text(questions.read_text() * 2)
    asked = ("--tasks", questions, "--tasks", tmp_path / "others.jsonl")
    both = run(novels_2bit, *flags, *asked).stdout
    assert both.startswith(text + "\n20 questions of " + str(questions))
    values = json.loads(run(novels_2bit, *flags, *asked, "--json").stdout)
    rows = [line.split(None, 1)[1] for line in both.splitlines() if line.startswith(str(novels_2bit))]
    for row, entry, n_questions in zip(rows, values["tasks"], (20, 40), strict=True):
        assert row.startswith(f"{entry['acc']:.4f} +- {entry['acc_stderr']:.4f}")
        assert entry["n_questions"] == n_questions
    assert values["ppl"] == json.loads(run(novels_2bit, *flags, "--json").stdout)["ppl"]


def test_several_models_make_rows(novels_2bit, questions):
    output = run(novels_2bit, NOVELS, "--tasks", questions).stdout.splitlines()
    assert [line.split()[0] for line in output[2:]] == ["model", str(novels_2bit), str(NOVELS)]
    values = json.loads(run(novels_2bit, NOVELS, "--tasks", questions, "--json").stdout)
    assert [len(model["tasks"]) for model in values["models"]] == [1, 1]


def test_contexts_that_are_cut_are_told(novels_2bit, questions):
    result = run(novels_2bit, "--tasks", questions, "-c", 40, "--json")
    (entry,) = json.loads(result.stdout)["tasks"]
    assert entry["n_cut"] > 0
    assert f"{entry['n_cut']} of 20 questions are longer than 40 tokens: their beginnings are cut" in result.stderr
    assert "a choice has" in refusal(novels_2bit, "--tasks", questions, "-c", 2)
    assert "larger than the context" in refusal(novels_2bit, "--tasks", questions, "-c", 5000)


@pytest.mark.parametrize("given", [("--chunks", 1), ("--stride", 8), ("--rule", "llama.cpp"), ("--token-by-token",)])
def test_options_of_a_text_need_one(given, novels_2bit, questions):
    assert refusal(novels_2bit, "--tasks", questions, *given).startswith(f"{given[0]} is about windows of a text")


def test_a_context_without_room(novels_2bit, questions):
    assert "context size 0 has no room for a question" in refusal(novels_2bit, "--tasks", questions, "-c", 0)


def test_nothing_to_measure(novels_2bit):
    assert refusal(novels_2bit) == "there is nothing to measure: give a text (-f) or questions (--tasks)"
