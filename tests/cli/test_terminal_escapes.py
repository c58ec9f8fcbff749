"""A stranger's file cannot write to the terminal what a terminal obeys: its names are shown, controls as pictures."""

import json
import logging
import re
import sys

import pytest
from conftest import NOVELS

from elutq_cli import app
from elutq_cli.benchmark.report import to_csv
from elutq_cli.generation import Conversation, LanguageModel, Sampler, SamplingOptions, TextOptions, terminal
from elutq_cli.generation.terminal import write_text
from elutq_cli.streams import ShownLines, shown_line, shown_text
from elutq_formats.errors import ElutqError
from elutq_native import NativeError

NAME = "\x1b[2Jn\x9b\x07\n"
SHOWN = "␛[2Jn\N{REPLACEMENT CHARACTER}␇␊"
OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@pytest.fixture(scope="module")
def forged(novels_2bit, tmp_path_factory):
    """A model file whose name, in its metadata and as its source, is not what a person would give it."""
    path = tmp_path_factory.mktemp("forged") / "forged.gguf"
    name, own = NAME.encode(), NOVELS.name.encode()
    assert len(name) == len(own)
    path.write_bytes(novels_2bit.read_bytes().replace(own, name))
    return path


def elutq(monkeypatch, capsys, *arguments):
    """Run a command in this process; return what it wrote."""
    monkeypatch.setattr(sys, "argv", ["elutq", *map(str, arguments)])
    with pytest.raises(SystemExit):
        app.main()
    return capsys.readouterr()


def test_a_line_shows_every_control_and_a_text_keeps_its_lines():
    controls = "".join(map(chr, (*range(32), *range(127, 160))))
    assert not OBEYED.search(shown_line(controls)) and "\n" not in shown_line(controls)
    assert len(shown_line(controls)) == len(controls)
    assert shown_text("a\tb\n\x1b[31mred\r\x00") == "a\tb\n␛[31mred␍␀"
    assert shown_line("a\nb: model") == "a␊b: model"
    assert shown_line("gnp.\u202efugg") == "gnp.\N{REPLACEMENT CHARACTER}fugg"
    assert shown_line("Grüße 你好 👍") == shown_text("Grüße 你好 👍") == "Grüße 你好 👍"


def test_info_shows_names_and_provenance(forged, monkeypatch, capsys):
    written = elutq(monkeypatch, capsys, "info", forged, "--no-measure")
    assert written.out.startswith(f"{SHOWN}: llama")
    assert re.search(rf"^source +{re.escape(SHOWN)}$", written.out, re.MULTILINE)
    assert not OBEYED.search(written.out + written.err)


def test_json_keeps_the_name_and_escapes_it(forged, monkeypatch, capsys):
    written = elutq(monkeypatch, capsys, "info", forged, "--no-measure", "--json")
    assert json.loads(written.out)["name"] == NAME
    assert not OBEYED.search(written.out)


def test_the_banner_of_serve_is_one_line_of_what_a_terminal_shows(forged, monkeypatch, capsys):
    def announced(app, engine, listener, verbose, announce, shutdown_timeout):
        announce()

    monkeypatch.setattr("elutq_cli.server.listener.run", announced)
    written = elutq(monkeypatch, capsys, "serve", forged, "-c", 32, "-t", 1, "--port", 0)
    assert written.err.startswith(f"{SHOWN}: http://127.0.0.1:")
    assert not OBEYED.search(written.err)


def test_the_banner_of_a_chat_shows_the_name(forged, monkeypatch, capsys):
    monkeypatch.setattr(terminal, "prepare_keyboard", lambda: None)
    monkeypatch.setattr(terminal, "read_message", lambda: None)
    with LanguageModel(forged, ctx_size=32, threads=1) as model:
        terminal.Chat(Conversation(model, None), Sampler(SamplingOptions()), TextOptions()).run()
    written = capsys.readouterr().err
    assert written.startswith(f"{SHOWN}: context")
    assert not OBEYED.search(written)


@pytest.mark.parametrize(
    "error",
    [
        ElutqError(f"tensor {NAME} is odd"),
        NativeError(-1, f"tensor {NAME} is odd", True),
        OSError(2, "not there", NAME),
    ],
)
def test_errors_show_what_they_quote(error, monkeypatch, capsys):
    def fail():
        raise error

    monkeypatch.setattr(app, "app", fail)
    written = elutq(monkeypatch, capsys)
    assert SHOWN in written.err
    assert written.err.count("\n") == 1
    assert not OBEYED.search(written.err)


def test_a_path_in_an_error_is_shown(tmp_path, monkeypatch, capsys):
    written = elutq(monkeypatch, capsys, "info", tmp_path / NAME)
    assert SHOWN in written.err
    assert not OBEYED.search(written.err)


def test_the_prompt_that_run_shows_is_shown(novels_2bit, monkeypatch, capsys):
    written = elutq(monkeypatch, capsys, "run", novels_2bit, "-p", "One\x1b]0;title\x07\ntwo", "-n", 1, "-v", "-t", 1)
    assert "One␛]0;title␇\ntwo" in written.err
    assert not OBEYED.search(written.err)


def test_lines_of_a_log_and_cells_of_a_table_are_shown():
    record = logging.LogRecord("elutq", logging.WARNING, __file__, 1, "%s: odd", (NAME,), None)
    assert ShownLines().format(record) == f"{SHOWN}: odd"
    assert SHOWN in to_csv([{"model_filename": NAME, "n": 1}])


def test_a_models_text_is_shown_at_a_terminal_and_exact_elsewhere(monkeypatch, capsys):
    write_text(NAME)
    assert capsys.readouterr().out == NAME
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    write_text(NAME)
    assert capsys.readouterr().out == SHOWN.replace("␊", "\n")
