"""What docs/ says can be typed: commands and flags exist, Python runs, links lead somewhere, figures can be drawn."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from elutq_cli.app import app

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md")) + [path for path in [ROOT / "README.md"] if path.exists()]
GROUP = typer.main.get_command(app)


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page):
    """Every line of shell blocks that calls elutq, as words after the name."""
    for block in blocks(page, "sh"):
        for line in block.splitlines():
            for part in re.split(r"[|>;&]", line.partition("#")[0]):
                words = shlex.split(part)
                if words and words[0].split("/")[-1] == "elutq":
                    yield words[1:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_flags_exist(page):
    for verb, *words in commands(page):
        command = GROUP.commands[verb]
        known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        for word in words:
            if re.match(r"--?[a-z]", word):
                assert word in known, f"{page.name}: elutq {verb} has no {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_named_in_the_text_exist(page):
    everywhere = {"--help", "--version", "--install-completion", "--show-completion", "--pid"}
    for command in GROUP.commands.values():
        everywhere |= {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for flag in re.findall(r"`(--[a-z][a-z-]+)", page.read_text(encoding="utf-8")):
        assert flag in everywhere, f"{page.name}: {flag}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_named_files_exist(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"
    for name in re.findall(r"`((?:elutq_cli|formats|native|scripts|tests|docs)/[\w./-]+)`", text):
        assert (ROOT / name).exists() or "NAME" in name, f"{page.name}: {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_runs(page, novels_2bit, tmp_path):
    shutil.copy(novels_2bit, tmp_path / "model.gguf")
    shutil.copy(ROOT / "tests" / "data" / "sampled.txt", tmp_path / "text.txt")
    (tmp_path / "checkpoint").symlink_to(ROOT / "tests" / "data" / "novels-6m")
    for block in blocks(page, "python"):
        result = subprocess.run(
            [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert result.returncode == 0, result.stderr
        assert result.stdout


def test_figures_are_drawn_from_what_the_commands_write(novels_2bit, tmp_path):
    """The same script, fed with the reports of this very version, draws every figure."""
    elutq = Path(sys.executable).with_name("elutq")
    text = ROOT / "tests" / "data" / "sampled.txt"
    other = tmp_path / "other.gguf"
    shutil.copy(novels_2bit, other)
    reports = {
        "quality": ["eval", novels_2bit, other, "-f", text, "-c", "64", "--chunks", "1", "--reference"],
        "speed": ["bench", novels_2bit, "-p", "0", "-n", "8", "-t", "1", "-r", "2", "-o", "json"],
        "layers": ["info", novels_2bit, "--no-measure", "--json"],
    }
    reports["quality"] += [ROOT / "tests" / "data" / "novels-6m", "--json"]
    flags = []
    for name, arguments in reports.items():
        command = [str(argument) for argument in (elutq, *arguments)]
        output = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
        assert json.loads(output)
        (tmp_path / f"{name}.json").write_text(output)
        flags += [f"--{name}", str(tmp_path / f"{name}.json")]
    script = [sys.executable, str(ROOT / "scripts" / "draw_figures.py"), "-o", str(tmp_path / "figures")]
    subprocess.run([*script, *flags], check=True, timeout=120, capture_output=True)
    for name in reports:
        assert (tmp_path / "figures" / f"{name}.svg").read_text().count("<text") > 5
