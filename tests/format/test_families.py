"""The folder of families: one file each, found by its name, and what docs/families.md says of adding one."""

import json
import re
from pathlib import Path

import pytest
from conftest import GOLDEN

from elutq_formats import families
from elutq_formats.families import MODEL_TYPES, find_family
from elutq_formats.family import Family
from elutq_formats.gguf_config import READERS

ROOT = Path(__file__).parents[2]
FOLDER = Path(families.__file__).parent
PAGE = (ROOT / "docs" / "families.md").read_text()
EXAMPLE = re.search(r"```py\n(.*?)```", PAGE, re.DOTALL).group(1)


def test_every_family_is_a_file_named_after_its_model_type():
    assert tuple(sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")) == MODEL_TYPES
    assert all(isinstance(find_family(name), Family) for name in MODEL_TYPES)


@pytest.mark.parametrize("name", ["", "no_such", "__init__", "../llama", "llama.read", "os"])
def test_no_other_file_is_looked_for(name):
    assert find_family(name) is None


def test_the_worked_example_is_a_family_of_the_folder():
    assert (FOLDER / "ministral.py").read_text() == EXAMPLE


def test_the_worked_example_read_by_itself_is_the_family():
    """What the docs show is all that there is: no other file of the package names it."""
    scope = {}
    exec(EXAMPLE, scope)
    found, family = scope["FAMILY"], find_family("ministral")
    assert (found.architecture, found.defaults) == (family.architecture, family.defaults)
    sources = [path for folder in ("formats", "elutq_cli", "native") for path in (ROOT / folder).rglob("*.*")]
    texts = {path.name: path.read_text() for path in sources if path.suffix in (".py", ".c", ".h")}
    naming = {name for name, text in texts.items() if "ministral" in text.lower()}
    assert naming == {"ministral.py", "ministral3.py"}


def test_the_steps_of_the_worked_example_are_taken():
    config = json.loads((GOLDEN / "ministral" / "config.json").read_text())
    assert config["model_type"] == "ministral"
    assert (GOLDEN / "ministral" / "expected.npz").exists()
    assert '"ministral",' in (ROOT / "scripts" / "golden_variants.py").read_text()
    assert '("ministral", {' in (ROOT / "tests" / "unit" / "test_reference.py").read_text()
    assert "Ministral" in (ROOT / "README.md").read_text()


def test_the_docs_list_every_architecture_of_gguf_files_that_is_read():
    listed = re.search(r"Read are (.*?);", PAGE, re.DOTALL).group(1)
    assert sorted(re.findall(r"`(\w+)`", listed)) == sorted(READERS)
