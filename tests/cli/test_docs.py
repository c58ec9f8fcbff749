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
FOLDERS = ("deploy", "elutq", "elutq_cli", "formats", "native", "scripts", "tests")
SOURCES = [
    path for folder in FOLDERS for ending in ("py", "c", "h", "mk") for path in (ROOT / folder).rglob(f"*.{ending}")
]
WORDS = set(re.findall(r"\w+", "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)))


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def shell_lines(page):
    """Every command that a page shows: in shell blocks, behind a prompt in others, or in indented text."""
    text = page.read_text(encoding="utf-8")
    shown = "".join(blocks(page, "sh"))
    shown += "".join(re.findall(r"^\$ (.*\n)", text, re.MULTILINE))
    outside = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    shown += "".join(re.findall(r"^    (.*\n)", outside, re.MULTILINE))
    for line in shown.replace("\\\n", " ").splitlines():
        yield from re.split(r"[|>;&]", line.partition("#")[0])


def commands(page, program):
    """The words after the name of a program, for every call of it that a page shows."""
    for line in shell_lines(page):
        if program not in line:
            continue
        words = shlex.split(line)
        if words and re.fullmatch(r"(.*/)?(python3?|python -m)", words[0]):
            del words[0]
        if words and (words[0] == program or words[0].endswith("/" + program)):
            yield words[1:]


def flags(words):
    return [word for word in words if re.match(r"--?[a-z]", word)]


def flags_of(command):
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_flags_exist(page):
    for verb, *words in commands(page, "elutq"):
        for flag in flags(words):
            assert flag in flags_of(GROUP.commands[verb]), f"{page.name}: elutq {verb} has no {flag}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_scripts_and_their_flags_exist(page):
    for script in sorted((ROOT / "scripts").glob("*.py")):
        source = script.read_text(encoding="utf-8")
        for words in commands(page, f"scripts/{script.name}"):
            for flag in flags(words):
                passed_on = "parse_known_args" in source and flag in flags_of(GROUP.commands["quantize"])
                assert f'"{flag}"' in source or passed_on, f"{page.name}: {script.name} has no {flag}"
    shown = {word for line in shell_lines(page) for word in re.findall(r"scripts/\w+\.py", line)}
    assert [name for name in sorted(shown) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_exist(page):
    rules = (ROOT / "Makefile").read_text() + (ROOT / "tests" / "native" / "checks.mk").read_text()
    for targets in commands(page, "make"):
        for target in targets:
            assert "=" in target or re.search(rf"^{target}:", rules, re.MULTILINE), f"{page.name}: make {target}"


def test_pages_with_commands_are_looked_at():
    found = {page.name for page in PAGES if re.search(r"\b(elutq|make) |scripts/", "\n".join(shell_lines(page)))}
    assert found >= {"README.md", "accuracy.md", "benchmarks.md", "large-models.md", "measuring.md", "running.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_of_code_in_the_text_exist(page):
    """Names with an underscore, longer than a formula's: of our own code, or of keys and variables that it reads."""
    for name in re.findall(r"`([A-Za-z_][\w.]*)(?:\(\))?`", page.read_text(encoding="utf-8")):
        for word in name.split("."):
            if "_" in word.strip("_") and len(word) > 4:
                assert word in WORDS, f"{page.name}: {name}"


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
    for name in re.findall(r"`((?:deploy|elutq_cli|formats|native|scripts|tests|docs)/[\w./-]+)`", text):
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
    pytest.importorskip("matplotlib", reason="drawing needs matplotlib, of the extra elutq[dev]")
    elutq = Path(sys.executable).with_name("elutq")
    reports = {
        "speed": ["bench", novels_2bit, "-p", "0", "-n", "8", "-t", "1", "-r", "2", "-o", "json"],
        "layers": ["info", novels_2bit, "--no-measure", "--json"],
    }
    flags = ["--accuracy", str(ROOT / "docs" / "figures" / "accuracy.json")]
    for name, arguments in reports.items():
        command = [str(argument) for argument in (elutq, *arguments)]
        output = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
        assert json.loads(output)
        (tmp_path / f"{name}.json").write_text(output)
        flags += [f"--{name}", str(tmp_path / f"{name}.json")]
    script = [sys.executable, str(ROOT / "scripts" / "draw_figures.py"), "-o", str(tmp_path / "figures")]
    subprocess.run([*script, *flags], check=True, timeout=120, capture_output=True)
    for name in ("quality", *reports):
        assert (tmp_path / "figures" / f"{name}.svg").read_text().count("<text") > 5
    drawn, shown = (folder / "quality.svg" for folder in (tmp_path / "figures", ROOT / "docs" / "figures"))
    assert markers(drawn) == markers(shown) > 20, "accuracy.json has other rows: draw docs/figures/quality.svg again"


def markers(figure):
    """Return how many points a figure has: marks that are filled, which those of axes are not."""
    return len(re.findall(r'<use [^>]*style="fill: #', figure.read_text()))
