"""Who may import whom: the contracts in pyproject.toml, which ``make lint`` checks as well."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_imports_go_one_way(monkeypatch, capsys):
    cli = pytest.importorskip("importlinter.cli", reason="import-linter is of the extra dev")
    monkeypatch.chdir(ROOT)
    status = cli.lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    assert status == 0, capsys.readouterr().out


def test_every_module_of_the_pipeline_stands_in_a_wing():
    ground = {path.name for path in (ROOT / "elutq_cli" / "pipeline").glob("*.py")}
    assert ground == {"__init__.py", "layout.py", "progress.py", "recipe.py"}
