"""Paths that a stream's encoding, or any encoding, cannot hold: a good run ends well, and its output can be read."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from elutq_cli.streams import printable
from elutq_formats.model_file import ModelFile

TINY = Path(__file__).parent.parent / "data" / "golden" / "llama2-gqa-sharded"
NO_TEXT = os.fsdecode(b"model-\xff.gguf")


def elutq(*arguments, **environment):
    command = [sys.executable, "-m", "elutq_cli", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, timeout=60, check=False, env=os.environ | environment)
    assert b"Traceback" not in result.stderr, result.stderr
    return result


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"PYTHONIOENCODING": "latin-1"}, b"m\xf6del-\\u2192.gguf: "),
        ({"PYTHONIOENCODING": "ascii"}, b"m\\xf6del-\\u2192.gguf: "),
    ],
    ids=["latin-1", "ascii"],
)
def test_a_name_that_stdout_cannot_hold_does_not_spoil_a_run(tmp_path, environment, shown):
    output = tmp_path / "mödel-→.gguf"
    result = elutq("quantize", TINY, "-o", output, "--bits", 4, "--group-size", 32, **environment)
    assert (result.returncode, result.stderr) == (0, b"")
    assert shown in result.stdout
    assert ModelFile.open(output).tensors
    refused = elutq("quantize", TINY, "-o", output, "--bits", 4, "--group-size", 32, **environment)
    assert refused.returncode == 2
    assert shown.split(b": ")[0] + b" exists: choose" in refused.stderr


def test_names_that_are_no_text_are_shown_and_recorded_as_text(tmp_path):
    folder = shutil.copytree(TINY, tmp_path / os.fsdecode(b"check\xfepoint"))
    text, output = tmp_path / os.fsdecode(b"text-\xfd.txt"), tmp_path / NO_TEXT
    text.write_text("A quick brown fox and some dogs. " * 40)
    options = [
        "--group-size",
        32,
        "--calibration",
        text,
        "--sequence-length",
        16,
        "--num-samples",
        4,
        "--method",
        "fit",
    ]
    result = elutq("quantize", folder, "-o", output, *options, "--json")
    assert (result.returncode, result.stderr) == (0, b"")
    found = json.loads(result.stdout)
    assert found["output"] == f"{tmp_path}/model-\\udcff.gguf"
    assert found["model"] == f"{tmp_path}/check\\udcfepoint"
    described = elutq("info", output, "--no-measure", "--json")
    assert json.loads(described.stdout)["path"] == found["output"]
    assert b"check\\udcfepoint: llama" in elutq("info", output, "--no-measure").stdout
    file = ModelFile.open(output)
    assert file.provenance["source"] == "check\\udcfepoint"
    assert file.provenance["calibration.files"] == ["text-\\udcfd.txt"]


def test_printable_changes_no_text():
    assert printable("mödel-→.gguf") == "mödel-→.gguf"
    printable(NO_TEXT).encode("utf-8")
