"""Help: every command has an example that works as printed, and shells can complete."""

import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from processes import started
from quantized_folders import write_gptq

from elutq_cli.app import app
from elutq_cli.version import __version__
from elutq_native import supported_kernels

BIN = Path(sys.executable).parent
DATA = Path(__file__).parent.parent / "data"
COMMANDS = {command.name: command.callback for command in app.registered_commands}


def elutq(*arguments, **environment):
    return subprocess.run(
        [BIN / "elutq", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"} | environment,
    )


@pytest.fixture(scope="module")
def folder(novels_2bit, tmp_path_factory):
    """What the examples speak of: a model file, a text, a checkpoint and one that is quantized."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copy(novels_2bit, folder / "model.gguf")
    shutil.copy(DATA / "sampled.txt", folder / "text.txt")
    (folder / "checkpoint").symlink_to(DATA / "novels-6m")
    write_gptq(folder / "checkpoint-gptq")
    return folder


def examples(command):
    help_text = elutq(command, "--help").stdout
    return re.findall(r"Example: (elutq .*?)\s*$", help_text, re.MULTILINE)


def test_the_list_of_commands_has_a_line_for_each():
    text = elutq("--help", COLUMNS="80").stdout
    for command in COMMANDS:
        assert re.search(rf"^\W*{command}\s+\w.*\w\.$", text, re.MULTILINE)  # whole, not cut with dots


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_of_the_help_works_as_printed(folder, command):
    (example,) = examples(command)
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    if command == "serve":  # goes on until it is told to stop; the port may be in use
        arguments = shlex.split(re.sub(r"--port \d+", "--port 0", example))
        with started(arguments, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as process:
            assert "http://127.0.0.1:" in process.stderr.readline()
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) in (0, 130)
        return
    result = subprocess.run(
        shlex.split(example), cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_described(command):
    entry = typer.main.get_command(app).commands[command]
    for parameter in entry.params:
        assert getattr(parameter, "help", None), f"{command} {parameter.name} has no help"


def test_h_is_help():
    assert elutq("-h").stdout == elutq("--help").stdout
    assert elutq("run", "-h").returncode == 0


def test_version_says_the_kernels_and_the_platform():
    said = elutq("--version").stdout
    kernels = re.escape(supported_kernels()[0])
    assert re.fullmatch(rf"elutq {re.escape(__version__)} \({kernels}, \w+(-\w+)?-\w+\)\n", said)
    assert platform.machine().lower() in said


def test_the_version_names_the_kernels_that_were_asked_for():
    assert "(scalar, " in elutq("--version", ELUTQ_ISA="scalar").stdout


@pytest.mark.parametrize("package", ["elutq", "elutq_cli"])
def test_python_m_is_the_command_too(package):
    result = subprocess.run([sys.executable, "-m", package, "--version"], capture_output=True, text=True, timeout=60)
    assert result.stdout == elutq("--version").stdout


def test_no_arguments_show_the_help():
    result = elutq()
    assert "Usage: elutq" in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("elutq ru", {"run"}),
        ("elutq run --top", {"--top-k", "--top-p"}),
        ("elutq inf", {"info"}),
        ("elutq run --cache-type ", {"f16", "q8"}),
        ("elutq eval --rule pa", {"papers"}),
        ("elutq bench -o json", {"json", "jsonl"}),
        ("elutq quantize --method f", {"fit", "feedback"}),
        ("elutq quantize --tune ", {"block", "e2e", "block,e2e"}),
        ("elutq quantize --group-size ", {"32", "64", "128", "256"}),
        ("elutq quantize --scale-bits ", {"8", "16"}),
        ("elutq quantize --embedding-bits 1", {"1", "16"}),
        ("elutq bench --synthetic llama3-", {"llama3-8b", "llama3-70b"}),
    ],
)
def test_completion(words, expected):
    result = elutq(_ELUTQ_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(words.count(" ")))
    assert set(result.stdout.split()) == expected


@pytest.mark.parametrize(
    ("shell", "file"),
    [("bash", ".bash_completions/elutq.sh"), ("zsh", ".zfunc/_elutq"), ("fish", ".config/fish/completions/elutq.fish")],
)
def test_completion_can_be_installed(tmp_path, shell, file):
    """Typer is told which shell: it would look for one among the processes that started this, and there may be none."""
    told = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    result = elutq("--install-completion", shell, HOME=str(tmp_path), **told)
    assert result.returncode == 0, result.stderr
    assert "elutq" in (tmp_path / file).read_text()


def test_wrong_options_are_named():
    result = elutq("run", "model.gguf", "--no-such-option")
    assert result.returncode == 2
    assert "--no-such-option" in result.stderr
    assert "Traceback" not in result.stderr
