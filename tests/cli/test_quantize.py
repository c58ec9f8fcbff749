"""`elutq quantize`: what it prints, what it refuses, and that a killed run leaves no output."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import paused_quantize, started

from elutq_cli.pipeline.layout import Layout
from elutq_cli.pipeline.recipe import Recipe
from elutq_formats.model_file import ModelFile

DATA = Path(__file__).parent.parent / "data"
NOVELS = DATA / "novels-6m"
TINY = DATA / "golden" / "llama2-gqa-sharded"
NARROW = DATA / "golden" / "smollm-tied"
SAMPLED = DATA / "sampled.txt"

ELUTQ = [sys.executable, "-m", "elutq_cli"]


def run(*arguments):
    command = [*ELUTQ, "quantize", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def refusal(*arguments):
    """Run what must be refused as bad input; return its one line."""
    result = run(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    return result.stderr


def test_prints_one_line_and_nothing_else(tmp_path):
    output = tmp_path / "out.gguf"
    result = run(TINY, "-o", output, "--bits", 4, "--group-size", 32, "-t", 1)
    assert result.returncode == 0
    assert result.stderr == ""
    file = ModelFile.open(output)
    line = f"{output}: {file.bits_per_weight():.3f} bits per weight, {output.stat().st_size / 1e6:.2f} MB, "
    assert result.stdout.startswith(line)
    assert result.stdout.endswith(" s\n")
    bits = {name: record.bits for name, record in file.tensors.items() if record.group_size}
    assert set(bits.values()) == {4}
    assert {path.name for path in tmp_path.iterdir()} == {"out.gguf"}


@pytest.mark.parametrize("bits", [2, 3])
def test_few_bits_by_weights_alone_come_with_a_warning(tmp_path, bits):
    output = tmp_path / "out.gguf"
    result = run(TINY, "-o", output, "--bits", bits, "--group-size", 32, "-t", 1)
    assert result.returncode == 0
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"{bits} bits by weights alone lose much of a model: calibrate it on a text")
    of_file = {name: record.bits for name, record in ModelFile.open(output).tensors.items() if record.group_size}
    assert of_file.pop("token_embd.weight") == of_file.pop("output.weight") == 4
    assert set(of_file.values()) == {bits}


def test_json_and_the_log_say_every_error(tmp_path):
    output = tmp_path / "out.gguf"
    calibration = tmp_path / "text.txt"
    calibration.write_text("A quick brown fox and some dogs. " * 60)
    options = ["--group-size", 32, "--calibration", calibration, "--num-samples", 8, "--sequence-length", 16]
    result = run(TINY, "-o", output, *options, "--seed", 7, "--json", "-v")
    assert result.returncode == 0
    values = json.loads(result.stdout)
    file = ModelFile.open(output)
    assert values["output"] == str(output)
    assert values["model"] == str(TINY)
    assert values["size_bytes"] == output.stat().st_size
    assert values["bits_per_weight"] == pytest.approx(file.bits_per_weight())
    assert values["seconds"] > 0
    recorded = {name: record.error for name, record in file.tensors.items() if record.group_size}
    assert values["errors"] == pytest.approx(recorded)
    log = [entry for entry in result.stderr.splitlines() if ", error " in entry]
    assert len(log) == len(recorded)
    for name, error in recorded.items():
        assert any(entry.startswith(f"{name}: ") and f"error {error:.4f}" in entry for entry in log)
    assert 0.0 < values["kl_seen"] == file.provenance["calibration.kl_seen"]
    assert 0.0 < values["kl_unseen"] == file.provenance["calibration.kl_unseen"]
    assert file.provenance["seed"] == 7
    assert file.provenance["calibration.files"] == ["text.txt"]


def test_bits_are_chosen_under_a_budget_and_overridden(tmp_path):
    output, plain, lines = tmp_path / "out.gguf", tmp_path / "a.txt", tmp_path / "b.jsonl"
    plain.write_text("A quick brown fox and some dogs. " * 40)
    lines.write_text('{"text": "Some dogs and a quick brown fox."}\n' * 40)
    options = ["--group-size", 32, "--calibration", plain, "--calibration", lines, "--sequence-length", 16]
    budget = ["--target-bpw", 3.2, "--tensor-type", r"blk\.1\.attn_q$=4g32", "--num-samples", 8, "--rotate", "-v"]
    result = run(TINY, "-o", output, *options, *budget)
    assert result.returncode == 0, result.stderr
    assert "model.layers.0.mlp.up_proj.weight: " in result.stderr
    assert len(result.stdout.splitlines()) == 2
    assert result.stdout.splitlines()[1].startswith("KL divergence from the checkpoint, nats a token: ")
    file = ModelFile.open(output)
    records = {name: record for name, record in file.tensors.items() if name.startswith("blk.") and record.group_size}
    assert (records["blk.1.attn_q.weight"].bits, records["blk.1.attn_q.weight"].group_size) == (4, 32)
    weights = sum(record.n_weights for record in records.values())
    layouts = {name: Layout(r.bits, r.group_size, r.kind.name) for name, r in records.items()}
    spent = sum(layout.bits_per_weight * records[name].n_weights for name, layout in layouts.items())
    assert 2.7 < spent / weights <= 3.2
    assert file.provenance["method"] == "rotate, allocate, calibrate, correct, feedback, refine"
    assert json.loads(file.provenance["recipe"])["target_bpw"] == 3.2
    assert file.provenance["calibration.files"] == ["a.txt", "b.jsonl"]
    assert len(file.provenance["calibration.sha256"]) == 2


def test_numpy_waits_until_its_threads_are_chosen():
    check = "import sys, elutq_cli.app; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], timeout=60, check=False).returncode == 0


def test_help_tells_the_recipes_own_defaults():
    said = " ".join(run("--help").stdout.split())
    assert f"Calibration sequences; default: {Recipe().num_samples}." in said
    assert f"Tokens in a calibration sequence; default: {Recipe().sequence_length}." in said


def test_refusals(tmp_path):
    output = tmp_path / "out.gguf"
    assert "is not a checkpoint folder" in refusal(tmp_path / "nowhere", "-o", output)
    assert "bits 7 is not possible: choose 1, 2, 3 or 4" in refusal(TINY, "-o", output, "--bits", 7)
    assert "scale bits 4 is not possible: choose 8 or 16" in refusal(TINY, "-o", output, "--scale-bits", 4)
    assert "group size 100" in refusal(TINY, "-o", output, "--group-size", 100)
    assert "groups of 32 (--group-size)" in refusal(NARROW, "-o", output)
    assert "does not exist" in refusal(TINY, "-o", tmp_path / "no" / "out.gguf", "--group-size", 32)
    assert "method best is not known" in refusal(TINY, "-o", output, "--group-size", 32, "--method", "best")
    assert "add one (--calibration)" in refusal(TINY, "-o", output, "--group-size", 32, "--target-bpw", 3)
    both = ["--group-size", 32, "--bits", 3, "--target-bpw", 3]
    assert "--bits and --target-bpw are two totals" in refusal(TINY, "-o", output, *both)
    feedback = ["--group-size", 32, "--method", "feedback"]
    assert "method feedback needs a text to calibrate on: add one (--calibration)" in refusal(
        TINY, "-o", output, *feedback
    )
    for option, value in (("--num-samples", 64), ("--sequence-length", 512)):  # their defaults, but asked for
        said = refusal(TINY, "-o", output, "--group-size", 32, option, value)
        assert said == f"elutq: {option} is of calibration sequences: add --calibration\n"
    assert "write REGEX=BITS" in refusal(TINY, "-o", output, "--group-size", 32, "--tensor-type", "attn=9")
    missing = ["--group-size", 32, "--calibration", tmp_path / "none.txt", "--sequence-length", 64]
    assert "cannot read" in refusal(TINY, "-o", output, *missing)
    longer = ["--group-size", 32, "--calibration", SAMPLED, "--sequence-length", 4096]
    assert "use a smaller sequence length (--sequence-length)" in refusal(TINY, "-o", output, *longer)
    assert list(tmp_path.iterdir()) == []
    output.write_bytes(b"precious")
    assert "--force" in refusal(TINY, "-o", output, "--group-size", 32)
    assert output.read_bytes() == b"precious"
    assert run(TINY, "-o", output, "--group-size", 32, "--force").returncode == 0
    assert ModelFile.open(output).tensors


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda kill: kill.name)
def test_a_stopped_run_leaves_no_output(tmp_path, kill):
    output, work = tmp_path / "out.gguf", tmp_path / "out.gguf.work"
    options = [NOVELS, "-o", output, "--calibration", SAMPLED, "--method", "feedback"]
    with paused_quantize(options, work, "blk.0.attn_q.weight.npy", 1) as process:
        process.send_signal(kill)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert stdout == ""
    assert "Traceback" not in stderr
    assert not output.exists()
    assert [path.name for path in tmp_path.iterdir()] == [work.name]
    if kill == signal.SIGINT:
        assert process.returncode == 130
        assert f"what is finished is kept in {work}: the same command goes on after it\nelutq: interrupted\n" in stderr
    for dry in ([], ["--dry-run"]):
        refused = run(*options, "--bits", 3, *dry).stderr
        assert f"{work} holds a run that was stopped, with bits 2, not 3" in refused
        assert run(*options, "--bits", 3, "--dry-run", "--no-resume").returncode == 0
    assert run(TINY, "-o", output, "--group-size", 32, "--no-resume").returncode == 0
    assert ModelFile.open(output).tensors
    assert [path.name for path in tmp_path.iterdir()] == [output.name]


def test_dry_run_tells_sizes_before_any_work(tmp_path):
    output = tmp_path / "out.gguf"
    options = [TINY, "-o", output, "--group-size", 32]
    result = run(*options, "--dry-run", "--json")
    assert result.returncode == 0
    assert list(tmp_path.iterdir()) == []
    plan = json.loads(result.stdout)
    assert run(*options).returncode == 0
    file = ModelFile.open(output)
    assert {record["name"]: (record["bits"], record["kind"]) for record in plan["records"]} == {
        name: (record.bits, record.kind.name if record.group_size else None) for name, record in file.tensors.items()
    }
    whole = plan["output_bytes"] + plan["metadata_bytes"]
    assert whole - 24_000 < output.stat().st_size < whole
    assert plan["seconds"] > 0
    output.unlink()
    printed = run(*options, "--dry-run").stdout
    assert "within this total" not in printed
    chosen = run(*options, "--calibration", SAMPLED, "--sequence-length", 32, "--dry-run")
    assert "are chosen when they are quantized, within this total" in chosen.stdout, chosen.stderr
    assert re.search(r"blk\.0\.attn_q\.weight .* 2 bits, groups of 32, free8\n", printed)
    assert re.search(r"output +0\.\d\d MB\nscratch disk 0\.\d\d MB .*\npeak memory +\d+\.\d\d MB", printed)
    assert re.search(r"time +about [1-9]\d* seconds with", printed)
    assert "above the limit of 0.01 GB (--max-memory)" in refusal(*options, "--max-memory", 0.01)
    assert "above the limit of 0.01 GB (--max-memory)" in refusal(*options, "--max-memory", 0.01, "--dry-run")
    assert run(*options, "--max-memory", 1).returncode == 0


def test_memory_stays_below_the_forecast(tmp_path):
    """Peak memory without mapped files, sampled while the bundled model is quantized."""
    options = [
        NOVELS,
        "-o",
        tmp_path / "out.gguf",
        "--calibration",
        SAMPLED,
        "--num-samples",
        4,
        "--sequence-length",
        128,
    ]
    bound = json.loads(run(*options, "--dry-run", "--json").stdout)["memory_bytes"]
    command = [*ELUTQ, "quantize", *map(str, options)]
    peak = 0
    with started(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            lines = status.read_text().splitlines()
            peak = max(peak, sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem"))))
            time.sleep(0.02)
    assert process.returncode == 0
    assert 0 < peak * 1024 < bound
