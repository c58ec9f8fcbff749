"""A run that cannot succeed is refused before a weight is read, with and without a text, in a dry run too."""

import json
import shutil
from pathlib import Path

import pytest
from foreign_gguf import describe

from elutq_cli.commands.making import print_forecast
from elutq_cli.pipeline.compute.backend import native_backend
from elutq_cli.pipeline.recipe import Recipe
from elutq_cli.pipeline.run.calibration_text import CalibrationText
from elutq_cli.pipeline.run.preparation import prepare
from elutq_cli.pipeline.run.quantize import quantize
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.errors import ElutqError
from elutq_formats.gguf_source import GGUFSource
from elutq_formats.model_file import ModelFile
from elutq_formats.safetensors_file import SafetensorsFile

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
TINY = GOLDEN / "llama-linear-rope"
SMALL = Recipe(group_size=32)
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 1234567\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(SafetensorsFile, "load", lambda *_: pytest.fail("a weight was read"))
    return shutil.copytree(TINY, tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("tokenizer.json", POINTER, "is a Git LFS pointer"),
        ("tokenizer.json", "<html>", "is damaged"),
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("chat_template.jinja", "{% for %}", r"chat_template\.jinja: the chat template is not valid Jinja"),
        ("chat_template.jinja", "{{ messages }}" + " " * (1 << 17), "more than a conversation needs"),
        ("chat_template.jinja", "<html>404: Not Found</html>", "writes no messages"),
        ("chat_template.jinja", POINTER, "is a Git LFS pointer"),
        (
            "tokenizer_config.json",
            json.dumps({"chat_template": "{{ a"}),
            r"config\.json: the chat template is not valid",
        ),
    ],
)
def test_a_tokenizer_or_template_that_nobody_could_use_is_refused_before_work(
    folder, name, contents, message, tmp_path
):
    (folder / name).unlink(missing_ok=True)
    if contents is not None:
        (folder / name).write_text(contents)
    with pytest.raises(ElutqError, match=message) as refusal, Checkpoint.open(folder) as checkpoint:
        with pytest.raises(ElutqError, match=message), native_backend(1) as backend:
            quantize(checkpoint, tmp_path / "out.gguf", SMALL, None, backend)
        print_forecast(checkpoint, None, SMALL, [], "cpu", 1, None, json_output=False, resume=True, force=False)
    assert "\n" not in str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("template", "flaw"),
    [
        ("{% for %}", "the chat template is not valid Jinja: "),
        ("<html>404: Not Found</html>", "the chat template writes no messages, it is something else"),
    ],
)
def test_a_template_of_a_gguf_file_that_nobody_could_use_is_left_out(template, flaw, tmp_path, caplog):
    described = describe(TINY)
    described.metadata["tokenizer.chat_template"] = template
    path = described.write(tmp_path / "model.gguf")
    with GGUFSource.open(path) as source, native_backend(1) as backend:
        assert source.chat_template == template
        quantize(source, tmp_path / "out.gguf", SMALL, None, backend)
    assert ModelFile.open(tmp_path / "out.gguf").chat_template is None
    (told,) = (record.message for record in caplog.records if "template" in record.message)
    assert told.startswith(f"{path}: {flaw}")
    assert told.endswith(": the template is left out, as the file cannot be mended")


def test_a_plan_needs_no_output_and_is_that_of_the_rotated_model():
    with Checkpoint.open(GOLDEN / "llama32-tied-head-dim") as checkpoint, native_backend(1) as backend:
        plain, rotated = (
            prepare(checkpoint, None, Recipe(group_size=32, rotate=rotate), None, backend, None, "cpu")
            for rotate in (False, True)
        )
    assert (plain.config.tie_word_embeddings, plain.plan.head) == (True, None)
    assert not rotated.config.tie_word_embeddings
    assert rotated.plan.head is not None
    assert plain.forecast.output_bytes < rotated.forecast.output_bytes


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "text.txt", "link.gguf"])
def test_what_a_run_reads_is_not_replaced_even_by_force(folder, name, tmp_path):
    text = folder / "text.txt"
    text.write_text("It was a dark night. " * 200)
    (folder / "link.gguf").symlink_to("model.safetensors")
    before = (folder / name).read_bytes()
    with Checkpoint.open(folder) as checkpoint, native_backend(1) as backend:
        recipe = Recipe(group_size=32, sequence_length=16, num_samples=2)
        with pytest.raises(ElutqError, match=rf"cannot write .*{name}: this run reads it; choose another name"):
            quantize(
                checkpoint, folder / name, recipe, CalibrationText.read([text], checkpoint, recipe), backend, force=True
            )
    assert (folder / name).read_bytes() == before
    assert not list(folder.glob("*.work"))


def test_a_model_file_in_the_checkpoints_folder_may_be_replaced(folder):
    output = folder / "model.gguf"
    output.write_bytes(b"an older one")
    with Checkpoint.open(folder) as checkpoint, native_backend(1) as backend:
        assert prepare(checkpoint, output, SMALL, None, backend, None, "cpu").n_tokens == 0


@pytest.mark.parametrize("limit", [float("nan"), 0.0, -1.0])
def test_a_limit_of_memory_that_is_none_is_refused(folder, limit):
    refusal = pytest.raises(ElutqError, match=r"limit of memory .--max-memory. is .*: give a number of GB above 0")
    with Checkpoint.open(folder) as checkpoint, native_backend(1) as backend, refusal:
        prepare(checkpoint, None, SMALL, None, backend, limit, "cpu")
