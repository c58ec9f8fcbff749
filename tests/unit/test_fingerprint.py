"""What a run's fingerprint tells of the code: a change of anything that results depend on."""

import ast
import shutil
from pathlib import Path

import pytest

import elutq_cli
import elutq_formats
import elutq_native
from elutq_cli.pipeline.run.fingerprint import code_digest

PACKAGES = {"elutq_cli": elutq_cli, "elutq_formats": elutq_formats, "elutq_native": elutq_native}
FOLDERS = {name: Path(package.__path__[0]) for name, package in PACKAGES.items()}

NO_RESULT = {"generation", "machine", "options.py", "streams.py", "text_input.py", "version.py"}
"""What the pipeline imports besides and no weight depends on: it prints, asks the system, checks a template, or reads a
text whose tokens are told."""


@pytest.mark.parametrize(
    "file",
    [
        "elutq_cli/pipeline/recipe.py",
        "elutq_cli/pipeline/run/units.py",
        "elutq_cli/pipeline/stages/experts.py",
        "elutq_cli/pipeline/stages/tune/matrix.py",
        "elutq_cli/pipeline/compute/loops/fit_groups.py",
        "elutq_cli/reference/experts.py",
        "elutq_formats/expert_stack.py",
        "elutq_formats/families/olmoe.py",
        "elutq_native/quantizer.py",
        "elutq_native/_elutq.abi3.so",
    ],
)
def test_another_line_anywhere_is_another_code(file, tmp_path, monkeypatch):
    package, _, name = file.partition("/")
    if not (FOLDERS[package] / name).exists():
        pytest.skip(f"{file} is called otherwise here")
    copy = shutil.copytree(FOLDERS[package], tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    before = code_digest()
    monkeypatch.setattr(PACKAGES[package], "__path__", [str(copy)])
    assert code_digest() == before
    with (copy / name).open("ab") as changed:
        changed.write(b"\n")
    assert code_digest() != before


def imported(module, found):
    """Add the files of elutq_cli that a module imports, and theirs."""
    for node in ast.walk(ast.parse(module.read_text("utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("elutq_cli"):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            place = FOLDERS["elutq_cli"].parent / name.replace(".", "/")
            for file in (place.with_suffix(".py"), place / "__init__.py"):
                if file.exists() and file not in found:
                    found.add(file)
                    imported(file, found)
    return found


def test_the_pipeline_has_its_results_from_what_is_told():
    root = FOLDERS["elutq_cli"]
    files = imported(root / "pipeline" / "run" / "quantize.py", set())
    parts = {file.relative_to(root).parts[0] for file in files}
    assert {"pipeline", "reference"} < parts
    assert parts - {"pipeline", "reference", "__init__.py"} <= NO_RESULT
