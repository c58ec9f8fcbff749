"""elutq bench --submit-text: one row of docs/benchmarks.md's table of machines."""

from pathlib import Path

import pytest

from elutq_cli.benchmark import submission
from elutq_cli.benchmark.submission import COLUMNS, Watch, check_tests, to_row
from elutq_cli.machine.sensors import Throttling
from elutq_formats.errors import ElutqError

DOCS = Path(__file__).parents[2] / "docs/benchmarks.md"
USUAL = {"-p": [512], "-n": [128], "-d": [0], "-t": [4], "--parallel": [1]}


def row(test, speed, **others):
    return {
        "model_filename": "a|b.gguf",
        "model_size": 2_075_000_000,
        "n_threads": 4,
        "isa": "neon-dotprod",
        "test": test,
        "avg_ts": speed,
        "stddev_ts": 0.25,
        "roof_ts": None,
    } | others


@pytest.fixture
def board(monkeypatch):
    """A board that gets warm, and is slowed down from the second look on."""
    degrees = iter((48.2, 71.0, 84.6))
    slowed = iter((False, False, True))
    monkeypatch.setattr(submission, "machine_name", lambda: "Raspberry Pi 5 Model B Rev 1.0")
    monkeypatch.setattr(submission, "cpu_model", lambda: "Raspberry Pi 5 Model B Rev 1.0")
    monkeypatch.setattr(submission, "platform_name", lambda: "linux-glibc-aarch64")
    monkeypatch.setattr(submission, "total_memory", lambda: 8_323_000_000)
    monkeypatch.setattr(submission, "temperature_c", lambda: next(degrees))
    monkeypatch.setattr(Throttling, "read", staticmethod(lambda: Throttling(None, next(slowed))))
    monkeypatch.setattr(submission, "__version__", "1.2.3")


def test_a_row_says_the_machine_the_speed_and_how_hot_it_was(board):
    watch = Watch()
    watch.look()
    watch.look()
    assert to_row([row("pp512", 13.5), row("tg128", 5.5, roof_ts=5.625)], watch) == (
        "| Raspberry Pi 5 Model B Rev 1.0, linux-glibc-aarch64 | 8.3 | a/b.gguf, 2.08 GB | 4 | neon-dotprod "
        "| 13.50 ± 0.25 (pp512) | 5.50 ± 0.25 (tg128) | 5.62 | 48, 85 | yes | 1.2.3 |"
    )


def test_what_the_system_does_not_tell_is_left_empty(monkeypatch):
    monkeypatch.setattr(submission, "temperature_c", lambda: None)
    monkeypatch.setattr(Throttling, "read", staticmethod(lambda: Throttling(None, None)))
    watch = Watch()
    watch.look()
    assert (watch.temperatures, watch.throttled) == ("", "")


def test_a_row_fits_the_table_of_the_docs(board):
    watch = Watch()
    watch.look()
    head = "| " + " | ".join(name for name, _ in COLUMNS) + " |"
    lines = DOCS.read_text("utf-8").splitlines()
    place = lines.index(head)
    assert lines[place + 1] == "|" + "|".join(align for _, align in COLUMNS) + "|"
    made = to_row([row("tg128", 5.5, roof_ts=5.6)], watch)
    for line in [made, *lines[place + 2 : lines.index("", place)]]:
        assert line.startswith("| ") and line.endswith(" |") and line.count("|") == len(COLUMNS) + 1


@pytest.mark.parametrize(
    ("changed", "output", "profile", "words"),
    [
        ({"-p": [64, 512]}, "md", False, "give -p one number"),
        ({"-t": [1, 2]}, "md", False, "give -t one number"),
        ({"-n": [0]}, "md", False, "give -n a number above 0"),
        ({"-d": [512]}, "md", False, "leave out -d"),
        ({"--parallel": [4]}, "md", False, "leave out --parallel"),
        ({}, "json", False, "leave out -o"),
        ({}, "md", True, "--profile"),
    ],
)
def test_what_is_no_row_is_refused(changed, output, profile, words):
    with pytest.raises(ElutqError, match=words):
        check_tests(USUAL | changed, output, profile)
    check_tests(USUAL, "md", False)
    check_tests(USUAL | {"-p": [0]}, "md", False)
