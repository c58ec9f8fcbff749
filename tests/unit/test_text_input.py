"""Texts of files: the same whichever system wrote them, wherever the user gives them."""

import io
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from conftest import GOLDEN
from typer.testing import CliRunner

from elutq_cli.commands import run as run_module
from elutq_cli.commands.eval import eval_command
from elutq_cli.generation.terminal import Chat
from elutq_cli.pipeline.recipe import Recipe
from elutq_cli.pipeline.run.calibration_text import CalibrationText
from elutq_cli.streams import shown_line
from elutq_cli.text_input import read_template, read_text
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.errors import ElutqError

TEXT = "It was a dark night.\n\n“Who is there?”\nNobody.\n"
LINE_ENDS = {"cr lf": ("\r\n", ""), "cr": ("\r", ""), "bom": ("\n", "\ufeff"), "bom and cr lf": ("\r\n", "\ufeff")}

every_twin = pytest.mark.parametrize("kind", LINE_ENDS)


def written(path, kind, text=TEXT):
    line_end, mark = LINE_ENDS[kind]
    path.write_bytes((mark + text.replace("\n", line_end)).encode())
    return path


@every_twin
def test_a_prompt_of_a_file_or_stdin_is_that_of_its_lf_twin(tmp_path, monkeypatch, kind):
    path = written(tmp_path / "prompt.txt", kind)
    assert run_module.read_prompt(None, path) == TEXT.removesuffix("\n")
    for prompt in (None, "-"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))
        assert run_module.read_prompt(prompt, None) == TEXT.removesuffix("\n")


def test_a_prompt_on_the_command_line_stays_as_it_is():
    assert run_module.read_prompt("\ufeffone\r\ntwo\r", None) == "\ufeffone\r\ntwo\r"


@every_twin
def test_a_template_of_a_file_is_that_of_its_lf_twin(tmp_path, kind):
    assert read_template(str(written(tmp_path / "t.jinja", kind))) == TEXT
    assert read_template("{{ x }}\r\n") == "{{ x }}\r\n"


def test_an_empty_template_is_refused(tmp_path):
    (tmp_path / "t.jinja").write_text(" \n")
    for file in (tmp_path / "t.jinja", Path(os.devnull)):
        with pytest.raises(ElutqError, match=r"is empty: a chat template writes the messages"):
            read_template(str(file))


@every_twin
def test_a_file_read_in_a_chat_is_that_of_its_lf_twin(tmp_path, capsys, kind):
    chat = Chat(SimpleNamespace(), None, None)
    chat._read(str(written(tmp_path / "notes.txt", kind)))
    assert chat._attached == TEXT
    assert f"{len(TEXT)} characters" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["nothing.txt", "~nobody-here/notes.txt", "a\0b"])
def test_a_file_that_a_chat_cannot_read_is_one_line(capsys, name):
    chat = Chat(SimpleNamespace(), None, None)
    chat._read(name)
    assert capsys.readouterr().err.startswith(f"[cannot read {shown_line(name)}: ")


@every_twin
def test_calibration_on_a_file_is_that_on_its_lf_twin(tmp_path, kind):
    recipe = Recipe(group_size=32, num_samples=3, sequence_length=16)
    plain, text = tmp_path / "plain.txt", TEXT * 20
    plain.write_text(text)
    twin = written(tmp_path / "twin.txt", kind, text)
    lines = written(tmp_path / "twin.jsonl", kind, "".join(json.dumps({"text": text}) + "\n" for _ in range(2)))
    with Checkpoint.open(GOLDEN.parent / "novels-6m") as checkpoint:
        expected, found, documents = (CalibrationText.read([file], checkpoint, recipe) for file in (plain, twin, lines))
        assert found.tokens.tolist() == expected.tokens.tolist()
        assert found.sha256 != expected.sha256  # of the file as it is
        assert len(documents.tokens) == 3


def test_line_ends_within_a_json_string_stay_as_they_are(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "\ufeffone\r\n" * 40}) + "\n")
    recipe = Recipe(group_size=32, num_samples=1, sequence_length=8)
    with Checkpoint.open(GOLDEN.parent / "novels-6m") as checkpoint:
        tokens = CalibrationText.read([path], checkpoint, recipe).tokens
        assert "\r\n" in checkpoint.tokenizer().decode(tokens[0].tolist())


def test_json_too_deep_for_a_line_is_one_line(tmp_path):
    path = tmp_path / "deep.jsonl"
    path.write_text("[" * 100_000)
    with Checkpoint.open(GOLDEN.parent / "novels-6m") as checkpoint, pytest.raises(ElutqError, match="line 1 is not"):
        CalibrationText.read([path], checkpoint, Recipe())


def test_perplexity_of_a_cr_lf_file_is_that_of_its_lf_twin(novels_2bit, tmp_path):
    app = typer.Typer()
    app.command("eval")(eval_command)
    app.command("other")(lambda: None)
    perplexities = []
    for kind, (line_end, mark) in (("lf", ("\n", "")), *LINE_ENDS.items()):
        path = tmp_path / f"{kind}.txt"
        path.write_bytes((mark + (TEXT * 4).replace("\n", line_end)).encode())
        arguments = ["eval", str(novels_2bit), "-f", str(path), "-c", "32", "-t", "1", "--json"]
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        perplexities.append(json.loads(result.stdout)["ppl"])
    assert len(set(perplexities)) == 1


@pytest.mark.parametrize("content", ["text".encode("utf-16"), b"caf\xe9"])
def test_what_is_not_utf8_is_one_line(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ElutqError, match=r"a\.txt is not UTF-8 text \(byte \d\): convert it first"):
        read_text(tmp_path / "a.txt")
