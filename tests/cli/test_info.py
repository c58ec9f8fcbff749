"""`elutq info`: what the file holds, and whether it will run here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from elutq_cli.generation import fitness
from elutq_cli.generation.fitness import assess, describe_fitness, measure_roof
from elutq_formats.errors import ElutqError
from elutq_formats.model_file import ModelFile
from elutq_native import Model

ELUTQ = Path(sys.executable).with_name("elutq")


def info(*arguments):
    command = [str(argument) for argument in (ELUTQ, "info", *arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


def test_json_holds_everything(novels_2bit):
    values = json.loads(info(novels_2bit, "--json"))
    file = ModelFile.open(novels_2bit)
    assert values["size_bytes"] == novels_2bit.stat().st_size
    assert values["bits_per_weight"] == file.bits_per_weight()
    assert values["config"]["hidden_size"] == 256
    kinds = {(tensor["bits"] <= 4, tensor["kind"]) for tensor in values["tensors"]}
    assert kinds == {(True, "free8"), (False, None)}
    assert values["provenance"]["source"] == "novels-6m"
    assert values["chat_template"] is False
    assert {tensor["name"] for tensor in values["tensors"]} == set(file.tensors)
    assert sum(tensor["n_bytes"] for tensor in values["tensors"]) < values["size_bytes"]
    here = values["here"]
    assert here["needed_bytes"] > here["weights_bytes"] + here["kv_bytes"]
    assert here["ctx_size"] == 1024
    assert here["fits"] is True
    assert here["read_gbps"] > 0
    assert here["roof_ts"] == pytest.approx(1e9 * here["read_gbps"] / here["bytes_per_token"])
    assert here["roof_full_ts"] < here["roof_ts"]


def test_an_int8_cache_needs_less(novels_2bit):
    here, other = (
        json.loads(info(novels_2bit, "--no-measure", "--json", "--cache-type", name))["here"] for name in ("f16", "q8")
    )
    assert other["kv_bytes"] / here["kv_bytes"] == pytest.approx((64 + 4) / 128)
    assert here["needed_bytes"] - other["needed_bytes"] == here["kv_bytes"] - other["kv_bytes"]


def test_readable_output_groups_tensors_and_answers_whether_it_runs(novels_2bit):
    text = info(novels_2bit, "-c", 100, "-t", 1)
    assert "bits per weight" in text.splitlines()[0]
    line = next(line for line in text.splitlines() if "blk.*.attn_q.weight (6)" in line)
    assert "2 g64 free8" in line
    assert "blk.0" not in text
    assert "no chat template" in text
    assert "at a context of 100 tokens" in text
    assert "it fits" in text
    assert ", 1 thread" in text
    assert "tokens/s" in text


def test_nothing_is_measured_when_not_asked(novels_2bit):
    assert "tokens/s" not in info(novels_2bit, "--no-measure")
    assert json.loads(info(novels_2bit, "--no-measure", "--json"))["here"]["read_gbps"] is None


def test_too_little_memory_is_said_and_nothing_measured(novels_2bit, monkeypatch):
    monkeypatch.setattr(fitness, "available_memory", lambda: 10_000_000)
    with Model(novels_2bit) as model:
        result = measure_roof(model, assess(model, None, 1))
    assert result.fits is False
    assert result.read_gbps is None
    assert "TOO LITTLE" in describe_fitness(result)


def test_the_tokenizer_is_counted(novels_2bit):
    with Model(novels_2bit) as model:
        found = assess(model, 64, 1)
        beside = found.needed_bytes - found.weights_bytes - found.kv_bytes
        assert beside == fitness.PROCESS_BYTES + 750 * model.vocab_size


def test_unknown_memory_is_not_judged(novels_2bit, monkeypatch):
    monkeypatch.setattr(fitness, "available_memory", lambda: None)
    with Model(novels_2bit) as model:
        result = assess(model, None, 1)
    assert result.fits is None
    assert result.ctx_size == 1024
    assert "available" not in describe_fitness(result)


def test_context_out_of_range(novels_2bit):
    with Model(novels_2bit) as model, pytest.raises(ElutqError, match="5000"):
        assess(model, 5000, 1)
