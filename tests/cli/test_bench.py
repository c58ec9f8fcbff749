"""elutq bench: its outputs' form and consistency. No speed is asserted anywhere."""

import csv
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from elutq_cli.benchmark.synthetic import plan_records
from elutq_cli.pipeline.recipe import Plan, Recipe
from elutq_cli.shapes import named_shape
from elutq_formats.block_kind import BlockKind

ELUTQ = Path(sys.executable).parent / "elutq"
LLAMA_BENCH_KEYS = {
    *("cpu_info", "model_size", "n_threads", "n_prompt", "n_gen", "n_depth", "test_time"),
    *("avg_ns", "stddev_ns", "avg_ts", "stddev_ts", "samples_ns", "samples_ts"),
}
OUR_KEYS = {"read_gbps", "roof_ts", "roof_fraction", "peak_rss", "isa", "bytes_per_token", "joules_per_token"}


def bench(*arguments):
    return subprocess.run([ELUTQ, "bench", *map(str, arguments)], capture_output=True, text=True, check=False)


def test_json_has_llama_benchs_keys_and_ours(novels_2bit):
    run = bench(novels_2bit, "-p", "16,32", "-n", 12, "-d", "0,20", "-t", "1,2", "-r", 2, "-o", "json", "--profile")
    assert run.returncode == 0, run.stderr
    rows = json.loads(run.stdout)
    assert [(row["n_threads"], row["n_depth"], row["n_prompt"], row["n_gen"]) for row in rows] == [
        (threads, depth, prompt, gen)
        for threads in (1, 2)
        for depth in (0, 20)
        for prompt, gen in ((16, 0), (32, 0), (0, 12))
    ]
    for row in rows:
        assert row.keys() >= LLAMA_BENCH_KEYS | OUR_KEYS
        assert len(row["samples_ns"]) == 2 and row["model_size"] == novels_2bit.stat().st_size
        n_tokens = row["n_prompt"] + row["n_gen"]
        assert row["samples_ts"] == pytest.approx([1e9 * n_tokens / ns for ns in row["samples_ns"]])
        # parts of the passes that were timed, by the same clock
        assert all(seconds > 0 for seconds in row["operations_s"].values())
        assert sum(row["operations_s"].values()) <= sum(row["samples_ns"]) / 1e9
        if row["n_gen"]:
            assert row["roof_ts"] > 0 and row["roof_fraction"] > 0
            bytes_at_middle = row["bytes_per_token"] + 6 * 2 * 6 * 2 * 64 * 2
            assert row["roof_ts"] == pytest.approx(row["read_gbps"] * 1e9 / bytes_at_middle)
        else:
            assert row["roof_ts"] is None


def test_an_int8_cache_counts_half_the_bytes(novels_2bit):
    run = bench(novels_2bit, "-p", 0, "-n", 12, "-d", 20, "-r", 1, "-t", 1, "-o", "json", "--cache-type", "q8")
    row = json.loads(run.stdout)[0]
    assert (row["type_k"], row["type_v"]) == ("q8", "q8")
    bytes_at_middle = row["bytes_per_token"] + 6 * 2 * 6 * 2 * (64 + 4)
    assert row["roof_ts"] == pytest.approx(row["read_gbps"] * 1e9 / bytes_at_middle)


def test_other_forms_hold_the_same_tests(novels_2bit):
    options = (novels_2bit, "-p", 8, "-n", 4, "-r", 1, "-t", 1)
    lines = [json.loads(line) for line in bench(*options, "-o", "jsonl").stdout.splitlines()]
    assert [(row["n_prompt"], row["n_gen"]) for row in lines] == [(8, 0), (0, 4)]
    table = list(csv.DictReader(io.StringIO(bench(*options, "-o", "csv").stdout)))
    assert [row["n_prompt"] for row in table] == ["8", "0"]
    markdown = bench(*options).stdout
    assert "| pp8 |" in markdown and "| tg4 |" in markdown


def test_texts_that_generate_together_count_all_their_tokens(novels_2bit):
    run = bench(novels_2bit, "-p", 8, "-n", 4, "-d", 3, "-r", 2, "-t", 2, "-o", "json", "--parallel", "1,3")
    rows = json.loads(run.stdout)
    assert [(row["test"], row["n_parallel"]) for row in rows] == [
        ("pp8 @ d3", 1),
        ("tg4 @ d3", 1),
        ("3 x tg4 @ d3", 3),
    ]
    assert rows[2]["samples_ts"] == pytest.approx([1e9 * 3 * 4 / ns for ns in rows[2]["samples_ns"]])
    assert rows[2]["roof_ts"] is None and rows[2]["roof_fraction"] is None and rows[2]["read_gbps"] > 0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ((), "2 bits, groups of 64, free8"),
        (("--bits", 1, "--group-size", 32, "--kind", "even8c"), "1 bits, groups of 32, even8c"),
    ],
)
def test_synthetic_needs_no_file(options, named):
    run = bench("--synthetic", "smollm2-135m", *options, "-p", 4, "-n", 2, "-r", 1, "-o", "json")
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)[0]["model_filename"] == f"smollm2-135m, {named}"


def test_synthetic_is_laid_out_as_quantize_does_by_default():
    config = named_shape("smollm2-135m")
    wanted = [entry.record(config.tensor_shapes()[entry.name]) for entry in Plan.make(config, Recipe()).matrices()]
    matrices = [record for record in plan_records(config) if record.columns > 1]
    assert [replace(record, kind=BlockKind(record.kind.name)) for record in matrices] == wanted
    assert 8 * matrices[1].n_bytes / matrices[1].n_weights == 2.375


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "either a model file or --synthetic"),
        (("--synthetic", "gpt-5"), "no shape is called 'gpt-5'"),
        (("--synthetic", "smollm2-135m", "--group-size", 128), "group"),
        (("--synthetic", "llama2-7b", "--kind", "free4"), "no HLQ matrix is of kind 'free4': kinds are free16, free8"),
        (("--synthetic", "llama2-7b", "--group-size", 0), "group size 0"),
        (("MODEL", "--kind", "free8"), "--kind is of --synthetic: a model file has its own"),
        (("MODEL", "--bits", 2, "--group-size", 64), "--bits is of --synthetic: a model file has its own"),
        (("MODEL", "-o", "yaml"), "choose md, csv, json or jsonl"),
        (("MODEL", "-p", "many"), "give whole numbers"),
        (("MODEL", "-p", 0, "-n", 0), "nothing to measure"),
        (("MODEL", "-p", 4096), "context of 4097 tokens"),
        (("MODEL", "-t", 0), "at least 1"),
        (("MODEL", "--parallel", "4,0"), "at least 1"),
        (("MODEL", "--parallel", "1,2", "-n", 0), "--parallel is of texts that generate"),
        (("MODEL", "--parallel", 99999999999, "-p", 0), "the number of sequences cannot be 99999999999"),
        (("MODEL", "-t", 99999999999), "the number of threads cannot be 99999999999"),
        (("MODEL", "--cache-type", "q4_0"), "choose f16 or q8"),
        (("/nonexistent.gguf",), "nonexistent"),
    ],
)
def test_bad_input_takes_one_line(arguments, message, novels_2bit):
    run = bench(*(novels_2bit if argument == "MODEL" else argument for argument in arguments))
    assert run.returncode == 2 and run.stdout == ""
    assert message in run.stderr and len(run.stderr.splitlines()) == 1


def test_submit_text_is_one_row_on_stdout(novels_2bit):
    run = bench(novels_2bit, "-p", 0, "-n", 4, "-r", 1, "-t", 1, "--submit-text")
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("\n") == 1 and run.stdout.startswith("| ") and "(tg4)" in run.stdout
    assert bench(novels_2bit, "-p", "1,2", "--submit-text").returncode == 2
