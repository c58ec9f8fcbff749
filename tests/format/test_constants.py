"""The Python constants are those of the C header, name by name."""

import re
from pathlib import Path

from elutq_formats import constants

HEADER = Path(__file__).parents[2] / "native" / "include" / "elutq_format.h"


def test_every_constant_of_the_header_is_here_and_no_other():
    defines = re.findall(r"^#define ELUTQ_(\w+) (0x[0-9a-fA-F]+|\d+)u?$", HEADER.read_text(), re.MULTILINE)
    header = {name: int(value, 0) for name, value in defines}
    ours = {name: value for name, value in vars(constants).items() if name.isupper()}
    assert len(header) > 15
    assert ours == header
