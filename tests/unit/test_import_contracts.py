"""Who may import whom: the contracts in pyproject.toml, which ``make lint`` checks as well."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_imports_go_one_way():
    pytest.importorskip("importlinter", reason="import-linter is of the extra dev")
    check = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    # in a process of its own: it configures logging for all
    found = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stdout


def test_every_module_of_the_pipeline_stands_in_a_wing():
    ground = {path.name for path in (ROOT / "elutq_cli" / "pipeline").glob("*.py")}
    assert ground == {"__init__.py", "layout.py", "methods.py", "progress.py", "recipe.py"}
