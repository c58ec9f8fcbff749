"""Only what pyproject.toml cannot say: the C extension, and a README whose relative links work on the index's page."""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent


def absolute_readme() -> str:
    """Return README.md with its links to files of the repository made absolute: pictures to the raw files."""
    source = re.search(r'^Source = "(.*)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.M)[1]
    links = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)]*)\)")
    return links.sub(
        lambda link: f"{link[1]}[{link[2]}]({source}/{'raw' if link[1] else 'blob'}/main/{link[3]})",
        (ROOT / "README.md").read_text("utf-8"),
    )


setup(
    cffi_modules=["native/build_ffi.py:builder"],
    long_description=absolute_readme(),
    long_description_content_type="text/markdown",
)
