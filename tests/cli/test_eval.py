"""`elutq eval`: the figures against those of transformers, and one line for every mistake."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from foreign_gguf import describe
from typer.testing import CliRunner

from elutq_cli.commands.eval import eval_command
from elutq_cli.commands.quantize import quantize_command
from elutq_cli.evaluation import evaluate, split_windows
from elutq_cli.reference import Transformer
from elutq_formats.errors import ElutqError
from elutq_formats.model_file import ModelFile
from elutq_formats.tokenizer import Tokenizer
from elutq_native import Engine

DATA = Path(__file__).parent.parent / "data"
NOVELS = DATA / "novels-6m"
GOLDEN = DATA / "golden"
SAMPLED = DATA / "sampled.txt"

PAPERS = "papers' rule: no overlap, no BOS, the first token of each window not scored"

app = typer.Typer()
app.command("eval")(eval_command)
app.command("quantize")(quantize_command)


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def run(*arguments):
    """Run `elutq eval`; errors come out as exceptions, which the real application turns into one line."""
    return invoke("eval", *arguments)


def refusal(*arguments):
    with pytest.raises(ElutqError) as caught:
        run(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def text(tmp_path):
    """Text in the alphabet of the golden checkpoints' tokenizer."""
    path = tmp_path / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog.\n" * 10)
    return path


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    """A 4-bit model file of the bundled checkpoint."""
    path = tmp_path_factory.mktemp("eval") / "novels-6m.gguf"
    assert invoke("quantize", NOVELS, "-o", path, "--bits", 4, "--group-size", 64).exit_code == 0
    return path


@pytest.mark.parametrize(
    ("ctx", "chunks", "nll"),
    [
        # transformers 5.23, float32, log-softmax in float64, on the same windows of tests/data/sampled.txt
        (256, 8, 3.223567645160902),
        (128, 10, 3.297614437353665),
        (512, 4, 3.4936264297165778),
    ],
)
def test_checkpoint_has_the_perplexity_that_transformers_gives(ctx, chunks, nll):
    result = run(NOVELS, "-f", SAMPLED, "-c", ctx, "--chunks", chunks, "--json")
    assert result.exit_code == 0
    assert result.stderr == ""
    values = json.loads(result.stdout)
    assert values["nll"] == pytest.approx(nll, abs=2e-5)
    assert values["ppl"] == pytest.approx(2.718281828459045 ** values["nll"])
    assert (values["n_tokens"], values["ctx"], values["windows"]) == (chunks * (ctx - 1), ctx, chunks)
    assert "kl" not in values
    assert "top1" not in values


def test_checkpoint_against_itself_agrees(text):
    values = json.loads(
        run(GOLDEN / "qwen3", "--file", text, "--ctx-size", 32, "--reference", GOLDEN / "qwen3", "--json").stdout
    )
    assert values["kl"] == pytest.approx(0, abs=1e-12)
    assert values["top1"] == 1.0


def test_checkpoint_against_another_of_the_same_vocabulary(text):
    values = json.loads(run(GOLDEN / "qwen3", "-f", text, "-c", 32, "--reference", GOLDEN / "qwen2", "--json").stdout)
    assert values["kl"] > 0.1
    assert 0 <= values["top1"] < 1


def test_default_uses_every_whole_window_and_says_which_rule(text):
    n_windows = len(text.read_text()) // 32
    result = run(GOLDEN / "llama1-mha", "-f", text, "-c", 32)
    assert result.stderr == ""
    assert f"{31 * n_windows} tokens in {n_windows} windows of 32" in result.stdout
    assert PAPERS in result.stdout
    assert "KL" not in result.stdout


def test_readable_output_names_the_reference_and_its_own_perplexity(text):
    flags = ("-f", text, "-c", 32)
    alone = json.loads(run(GOLDEN / "qwen2", *flags, "--json").stdout)
    output = run(GOLDEN / "qwen3", *flags, "--reference", GOLDEN / "qwen2").stdout
    (line,) = [line for line in output.splitlines() if line.startswith("reference")]
    figures = f"perplexity {alone['ppl']:.4f} +- {alone['ppl_stderr']:.4f}, KL divergence"
    assert line.startswith(f"reference   {GOLDEN / 'qwen2'}: {figures}")
    assert "top-1 agreement" in line


def test_json_of_one_model_has_the_references_own_perplexity(text):
    flags = ("-f", text, "-c", 32, "--json")
    alone = json.loads(run(GOLDEN / "qwen2", *flags).stdout)
    values = json.loads(run(GOLDEN / "qwen3", *flags, "--reference", GOLDEN / "qwen2").stdout)
    for key in ("ppl", "ppl_stderr", "nll"):
        assert values[f"reference_{key}"] == alone[key] != values[key]
    assert "reference_ppl" not in alone


def test_model_file_has_the_perplexity_of_its_dequantized_weights(model_file):
    file = ModelFile.open(model_file)
    tokens = Tokenizer.from_json(file.tokenizer_json, file.config).encode(SAMPLED.read_text(encoding="utf-8"))
    expected = evaluate(Transformer(file), split_windows(tokens, 256, 4))
    result = run(model_file, "-f", SAMPLED, "-c", 256, "--chunks", 4, "--json")
    assert result.stderr == ""
    values = json.loads(result.stdout)
    assert values["ppl"] == pytest.approx(expected.ppl, rel=5e-3)
    assert (values["n_tokens"], values["ctx"], values["windows"]) == (4 * 255, 256, 4)


def test_model_file_against_its_checkpoint(model_file, monkeypatch):
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(variable, "1")  # -t sets them; they are taken back after the test
    flags = ("-f", SAMPLED, "-c", 128, "--chunks", 3, "--reference", NOVELS, "--json")
    values = json.loads(run(model_file, *flags).stdout)
    assert 0 < values["kl"] < 0.05
    assert 0.8 < values["top1"] < 1
    assert json.loads(run(model_file, *flags, "-t", 1).stdout) == values


def test_an_int8_cache_changes_a_little(model_file):
    flags = ("-f", SAMPLED, "-c", 128, "--chunks", 3, "--json")
    values, other = (json.loads(run(model_file, *flags, "--cache-type", name).stdout) for name in ("f16", "q8"))
    assert values["ppl"] != other["ppl"] == pytest.approx(values["ppl"], rel=2e-3)


def test_readable_output_names_the_runtime(model_file):
    assert f"{model_file} (C runtime, " in run(model_file, "-f", SAMPLED, "-c", 16, "--chunks", 1).stdout


def test_model_file_with_a_context_too_large(model_file):
    assert "larger than the context" in refusal(model_file, "-f", SAMPLED, "-c", 1025)


def test_truncated_model_file(model_file, tmp_path):
    (tmp_path / "cut.gguf").write_bytes(model_file.read_bytes()[:-4096])
    assert "cut.gguf" in refusal(tmp_path / "cut.gguf", "-f", SAMPLED)


def test_a_mistake_is_one_line_and_exit_2(tmp_path):
    (tmp_path / "empty.txt").touch()
    command = [sys.executable, "-m", "elutq_cli", "eval", NOVELS, "-f", tmp_path / "empty.txt", "--json"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == "elutq: the text is empty: nothing to evaluate\n"


def test_empty_text(tmp_path):
    (tmp_path / "empty.txt").touch()
    assert "text is empty" in refusal(NOVELS, "-f", tmp_path / "empty.txt")


def test_text_shorter_than_a_window(tmp_path):
    (tmp_path / "short.txt").write_text("A short text.")
    assert "less than one window of 512" in refusal(NOVELS, "-f", tmp_path / "short.txt")


def test_text_that_is_not_there(tmp_path):
    assert "cannot read" in refusal(NOVELS, "-f", tmp_path / "nothing.txt")
    assert "cannot read" in refusal(NOVELS, "-f", tmp_path)


def test_text_that_is_not_utf8(tmp_path):
    (tmp_path / "latin1.txt").write_bytes("Caf\xe9 ".encode("latin-1") * 1000)
    assert "not UTF-8 text (byte 3)" in refusal(NOVELS, "-f", tmp_path / "latin1.txt")


def test_context_larger_than_the_models():
    assert "larger than the context" in refusal(NOVELS, "-f", SAMPLED, "-c", 1025)


@pytest.mark.parametrize(("flag", "value"), [("-c", 1), ("-c", 0), ("-c", -5), ("--chunks", 0), ("--chunks", -1)])
def test_sizes_too_small(flag, value):
    assert str(value) in refusal(NOVELS, "-f", SAMPLED, flag, value)


def test_model_that_is_not_there(tmp_path):
    assert "does not exist" in refusal(tmp_path / "model.gguf", "-f", SAMPLED)
    assert "does not exist" in refusal(NOVELS, "-f", SAMPLED, "--reference", tmp_path / "checkpoint")


def test_model_of_another_format(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"not a model")
    assert "model.gguf" in refusal(tmp_path / "model.gguf", "-f", SAMPLED)
    assert "is not a checkpoint" in refusal(tmp_path, "-f", SAMPLED)


def test_reference_of_another_vocabulary(text, tmp_path):
    message = refusal(NOVELS, "-f", SAMPLED, "-c", 64, "--reference", GOLDEN / "qwen3")
    assert "different vocabularies" in message
    # The same size of vocabulary, but other tokens.
    other = tmp_path / "other"
    shutil.copytree(GOLDEN / "qwen3", other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["e"], vocabulary["o"] = vocabulary["o"], vocabulary["e"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "different vocabularies" in refusal(GOLDEN / "qwen3", "-f", text, "-c", 64, "--reference", other)


def test_damaged_weights_are_reported(text, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(GOLDEN / "llama-linear-rope", broken)
    data = bytearray((broken / "model.safetensors").read_bytes())
    data[-4096:] = b"\xff" * 4096  # NaN in float32
    (broken / "model.safetensors").write_bytes(data)
    assert re.fullmatch(
        f"{re.escape(str(broken))} is damaged: tensor [a-z_.0-9]+ holds values that are not finite",
        refusal(broken, "-f", text, "-c", 32),
    )


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_weight_that_is_not_finite_is_named_with_its_file(bad, tmp_path):
    described = describe(NOVELS)
    described.tensors["blk.3.ffn_up.weight"][5, 7] = bad
    path = described.write(tmp_path / "model.gguf")
    said = f"{path} is damaged: tensor model.layers.3.mlp.up_proj.weight holds values that are not finite"
    assert refusal(path, "-f", SAMPLED, "-c", 32, "--chunks", 1) == said
    assert refusal(NOVELS, "-f", SAMPLED, "-c", 32, "--chunks", 1, "--reference", path) == said


@pytest.mark.filterwarnings("error")
def test_weights_whose_products_overflow_are_told_in_one_line(tmp_path):
    described = describe(NOVELS)
    described.tensors["blk.3.ffn_up.weight"][5, 7] = 3e38
    described.tensors["blk.3.ffn_down.weight"][:, 5] = 3e38
    path = described.write(tmp_path / "model.gguf")
    assert "not finite or absurdly large" in refusal(path, "-f", SAMPLED, "-c", 32, "--chunks", 1)


def test_several_models_make_a_table_and_the_reference_its_last_row(model_file, novels_2bit):
    flags = ("-f", SAMPLED, "-c", 128, "--chunks", 3, "--reference", NOVELS)
    result = run(model_file, novels_2bit, *flags)
    assert result.stderr == ""
    rule, _, heads, *rows = result.stdout.splitlines()
    assert rule == "381 tokens in 3 windows of 128: " + PAPERS
    assert "KL, nats" in heads
    assert [row.split()[0] for row in rows] == [str(model_file), str(novels_2bit), str(NOVELS)]
    values = json.loads(run(model_file, novels_2bit, *flags, "--json").stdout)
    four, two, full = values["models"]
    assert four["kl"] < two["kl"]
    assert four["bits_per_weight"] > two["bits_per_weight"]
    assert full["bits_per_weight"] == pytest.approx(16, abs=0.1)
    assert "kl" not in full
    assert values["rule"] == "papers"
    alone = json.loads(run(novels_2bit, *flags, "--json").stdout)
    assert {key: alone[key] for key in two} == two


def test_llama_cpp_rule_puts_bos_first(model_file):
    output = run(model_file, "-f", SAMPLED, "-c", 64, "--chunks", 2, "--rule", "llama.cpp").stdout
    assert "62 tokens in 2 windows of 64: llama.cpp's rule: no overlap, BOS first in each window" in output
    assert "bits per weight" in output


def test_stride(model_file):
    flags = ("-f", SAMPLED, "-c", 64, "--chunks", 4, "--stride", 16)
    assert "111 tokens in 4 windows of 64: windows 16 tokens apart" in run(model_file, *flags).stdout
    assert json.loads(run(model_file, *flags, "--json").stdout)["stride"] == 16


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (("--rule", "theirs"), "choose papers or llama.cpp"),
        (("--stride", 0), "stride is 0"),
        (("--stride", 8, "--rule", "llama.cpp"), "--stride"),
    ],
)
def test_impossible_rules(flags, word):
    assert word in refusal(NOVELS, "-f", SAMPLED, *flags)


def test_models_of_different_vocabularies_do_not_compare(model_file, text):
    assert "different vocabularies" in refusal(model_file, GOLDEN / "qwen3", "-f", text, "-c", 32)


@pytest.mark.parametrize("way", [[], ["--token-by-token"]], ids=["prefill", "decode"])
def test_of_runtime_measures_what_the_runtime_rounds(model_file, way, monkeypatch):
    """Far below what 4 bits lose (0.004 nats), and not zero: the runtime rounds activations."""
    given, evaluate = [], Engine.eval
    monkeypatch.setattr(Engine, "eval", lambda self, runs: given.append(len(runs[0].tokens)) or evaluate(self, runs))
    values = json.loads(run(model_file, "-f", SAMPLED, "-c", 128, "--chunks", 1, "--of-runtime", *way, "--json").stdout)
    assert 1e-7 < values["kl"] < 1e-4
    assert values["reference"].endswith("dequantized")
    assert given == ([1] * 128 if way else [128])


@pytest.mark.parametrize("flags", [("--token-by-token",), ("--cache-type", "q8")])
def test_what_only_the_runtime_does_is_refused_for_a_checkpoint(flags, model_file, text):
    assert f"{flags[0]} is about the C runtime" in refusal(GOLDEN / "qwen3", "-f", text, "-c", 32, *flags)
    assert run(model_file, "-f", SAMPLED, "-c", 32, "--chunks", 1, "--reference", NOVELS, *flags).exit_code == 0


def test_of_runtime_wants_one_model_file_and_a_text(model_file):
    assert "one model file" in refusal(model_file, model_file, "-f", SAMPLED, "--of-runtime")
    assert "one model file" in refusal(model_file, "-f", SAMPLED, "--of-runtime", "--reference", NOVELS)
    assert "not such a file" in refusal(NOVELS, "-f", SAMPLED, "--of-runtime")
