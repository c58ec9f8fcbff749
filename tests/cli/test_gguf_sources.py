"""`elutq quantize`, `elutq eval` and the Python API on GGUF files of other tools."""

import json

import pytest
import typer
from conftest import NOVELS
from foreign_gguf import describe
from gguf import GGMLQuantizationType
from typer.testing import CliRunner

import elutq
from elutq_cli.commands.eval import eval_command
from elutq_cli.commands.quantize import quantize_command
from elutq_formats.errors import ElutqError
from elutq_formats.model_file import ModelFile

SAMPLED = NOVELS.parent / "sampled.txt"

app = typer.Typer()
app.command("eval")(eval_command)
app.command("quantize")(quantize_command)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory):
    described = describe(NOVELS, GGMLQuantizationType.F16)
    described.metadata["general.name"] = "Novels"
    return described.write(tmp_path_factory.mktemp("gguf") / "novels.gguf")


def test_eval_gives_a_gguf_file_and_its_checkpoint_the_same_perplexity(gguf_file):
    result = run("eval", gguf_file, "-f", SAMPLED, "-c", 64, "--chunks", 2, "--reference", NOVELS, "--json")
    found = json.loads(result.stdout)
    assert found["ppl"] == pytest.approx(found["reference_ppl"], rel=1e-4)
    assert found["kl"] < 1e-5
    assert found["bits_per_weight"] == pytest.approx(16, abs=2)


def test_a_model_file_is_compared_with_the_gguf_file_that_it_was_made_from(gguf_file, tmp_path):
    made = tmp_path / "small.gguf"
    assert run("quantize", gguf_file, "-o", made, "--bits", 4, "--output-bits", 16).exit_code == 0
    assert ModelFile.open(made).name == "Novels"
    result = run("eval", made, "-f", SAMPLED, "-c", 64, "--chunks", 2, "--reference", gguf_file, "--json")
    assert 0 < json.loads(result.stdout)["kl"] < 0.05


def test_a_dry_run_reads_a_gguf_file_and_says_what_it_has_lost(tmp_path):
    path = describe(NOVELS).quantized(GGMLQuantizationType.Q4_0).write(tmp_path / "coarse.gguf")
    result = run("quantize", path, "--dry-run")
    assert "peak memory" in result.stdout
    assert result.stderr.count("\n") == 1
    assert "its weights have 4.50 bits already (Q4_0), and what that lost stays lost" in result.stderr


def test_the_api_takes_a_gguf_file(gguf_file, tmp_path):
    summary = elutq.quantize(gguf_file, tmp_path / "out.gguf", elutq.Recipe(bits=3))
    assert summary.bits_per_weight > 3


def test_a_file_that_is_no_model_is_one_line(tmp_path):
    (tmp_path / "text.gguf").write_text("some text")
    with pytest.raises(ElutqError, match=r"text.gguf is not a GGUF file: it begins with b'some'"):
        run("quantize", tmp_path / "text.gguf", "--dry-run")
    with pytest.raises(ElutqError, match=r"text.gguf is not a GGUF file: it begins with b'some'"):
        run("eval", tmp_path / "text.gguf", "-f", SAMPLED)
