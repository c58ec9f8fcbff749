"""What is packed: all that a build needs, and metadata fit for an index's page. `make packages` builds and installs."""

import re
import subprocess
import sys
import tarfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("elutq", "elutq_cli", "formats", "native")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The sdist's files by their path in the repository, and its metadata."""
    folder = tmp_path_factory.mktemp("sdist")
    code = f"from setuptools import build_meta; print(build_meta.build_sdist({str(folder)!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        metadata = archive.extractfile(f"{path.name.removesuffix('.tar.gz')}/PKG-INFO").read().decode()
    return names, Parser().parsestr(metadata)


def test_the_sdist_holds_every_source_that_a_build_needs(sdist):
    names, _ = sdist
    listed = subprocess.run(["git", "ls-files", *PACKAGES], cwd=ROOT, check=True, capture_output=True, text=True)
    wanted = {"pyproject.toml", "setup.py", "README.md", "LICENSE", *listed.stdout.split()}
    assert {"native/build_ffi.py", "native/src/arm/neon.c", "native/include/elutq.h"} <= wanted
    assert wanted - names == set()


def test_nothing_that_was_built_is_in_the_repository():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    built = []
    for name in filter(None, listed.stdout.split("\0")):
        with (ROOT / name).open("rb") as file:
            built += [name] if file.read(4) == b"\x7fELF" else []
    assert built == []


def test_links_of_the_index_page_are_absolute(sdist):
    _, metadata = sdist
    links = re.findall(r"\]\(([^)]*)\)", metadata.get_payload())
    assert any("/raw/main/docs/figures/" in link for link in links)
    assert [link for link in links if not link.startswith(("https://", "#"))] == []


def test_metadata_name_the_licence_the_pythons_and_where_the_project_is(sdist):
    _, metadata = sdist
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.10"
    assert {url.partition(",")[0] for url in metadata.get_all("Project-URL")} >= {"Source", "Documentation", "Issues"}
    assert "Typing :: Typed" in metadata.get_all("Classifier")
    assert metadata["Keywords"]
