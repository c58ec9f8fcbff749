"""scripts/accuracy_table.py: its rows are what elutq eval says, are made once, and are what docs/accuracy.md shows."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from conftest import GOLDEN, NOVELS
from foreign_gguf import describe
from gguf import GGMLQuantizationType
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import accuracy_rows
import accuracy_table
from accuracy_methods import METHODS, usual_group_size

from elutq_cli.commands.eval import eval_command
from elutq_cli.evaluation import evaluate_all, split_windows
from elutq_cli.evaluation.models import open_model
from elutq_cli.reference import Transformer
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.errors import ElutqError

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "docs" / "figures" / "accuracy.json"
SAMPLED = NOVELS.parent / "sampled.txt"
SIZES = ("--ctx-size", 64, "--chunks", 3, "--runtime-chunks", 1, "--num-samples", 4, "--threads", 2)

app = typer.Typer()
app.command("eval")(eval_command)
app.callback()(lambda: None)  # so that eval is a subcommand


@pytest.fixture
def make(tmp_path, monkeypatch, capsys):
    """Returns a function that runs the script; it gives the exit status, stdout, stderr and the rows."""
    monkeypatch.setattr(accuracy_table, "current_commit", lambda: "0123456789abcdef")

    def run(*flags, methods=("uniform", "fit"), texts=None, model=NOVELS):
        texts = texts or {"sampled": SAMPLED}
        words = ["--models", f"small={model}", "--texts", *(f"{name}={path}" for name, path in texts.items())]
        words += ["--calibration", SAMPLED, "--methods", *methods, "--bits", 2, *SIZES, *flags]
        words = ["--json", tmp_path / "rows.json", "--cache", tmp_path / "cache", *words]
        monkeypatch.setattr(sys, "argv", ["accuracy_table.py", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            accuracy_table.main()
        path = tmp_path / "rows.json"
        rows = json.loads(path.read_text())["rows"] if path.exists() else []
        return caught.value.code, *capsys.readouterr(), rows

    return run


def test_rows_are_what_the_evaluation_says_of_the_pipelines_files(make, make_model, tmp_path):
    status, out, _, rows = make()
    assert status == 0
    assert [[row[name] for name in accuracy_rows.KEY] for row in rows] == [
        ["small", "sampled", "uniform", 2, 64, 16, 0, 0],
        ["small", "sampled", "fit", 2, 64, 8, 0, 0],
    ]
    uniform, fit = rows
    path = make_model(output_bits=16, embedding_bits=16)
    tokens_of = SAMPLED.read_text(encoding="utf-8")
    with open_model(path, 64, 1) as model, Checkpoint.open(NOVELS) as checkpoint:
        windows = split_windows(model.tokenizer.encode(tokens_of), 64, 3)
        result, full = evaluate_all([model.logits_model], windows, Transformer(checkpoint))
        bits_per_weight = model.block_bits_per_weight
    assert fit["kl"] == pytest.approx(result.kl, rel=1e-5)
    assert fit["ppl"] == pytest.approx(result.ppl, rel=1e-5)
    assert (fit["top1"], fit["bits_per_weight"]) == (result.top1, bits_per_weight)
    assert fit["reference_ppl"] == pytest.approx(full.ppl, rel=1e-6)
    assert uniform["kl"] > 1.2 * fit["kl"]
    arguments = ["eval", path, "-f", SAMPLED, "-c", 64, "--chunks", 1, "--of-runtime", "-t", 2, "--json"]
    said = json.loads(CliRunner().invoke(app, [str(word) for word in arguments], catch_exceptions=False).stdout)
    assert 0 < fit["runtime_kl"] == pytest.approx(said["kl"], rel=1e-5)
    assert fit["seconds"] > 0
    assert "| 2 | 64 | 8 bits | HLQ fit, weights only |  | 2.375 |" in out
    assert str(tmp_path) not in json.dumps(rows)  # it is committed: no path of this machine
    assert fit["commit"] == "0123456789abcdef"
    assert not list((tmp_path / "cache").glob("*.gguf*"))


def test_a_gguf_file_of_other_tools_is_a_model_too(make, tmp_path):
    coarse = describe(NOVELS).quantized(GGMLQuantizationType.Q4_0).write(tmp_path / "coarse.gguf")
    status, _, err, (row,) = make(methods=("fit",), model=coarse)
    assert status == 0
    assert row["kl"] > 0
    assert "small: its weights have 4.50 bits already" in err
    assert "--models small=coarse.gguf" in row["command"]


def test_rows_that_are_there_are_not_made_again(make, tmp_path, monkeypatch):
    before = make(methods=("fit",))[3]
    quantized, quantize = [], accuracy_table.quantize
    monkeypatch.setattr(accuracy_table, "quantize", lambda *a, **k: quantized.append(a) or quantize(*a, **k))
    assert make(methods=("fit",))[3] == before
    assert quantized == []
    (tmp_path / "other.txt").write_text(SAMPLED.read_text(encoding="utf-8")[3000:], encoding="utf-8")
    texts = {"sampled": SAMPLED, "other": tmp_path / "other.txt"}
    both = make(methods=("fit",), texts=texts)[3]
    assert both[: len(before)] == before
    assert [row["text"] for row in both] == ["sampled", "other"]
    assert len(quantized) == 1
    assert make("--again", methods=("fit",))[3][-1]["date"] >= before[0]["date"]
    assert len(quantized) == 2


def test_a_run_that_was_stopped_as_it_evaluated_does_not_quantize_again(make, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(accuracy_table, "evaluate_all", stop)
        with pytest.raises(KeyboardInterrupt):
            make(methods=("fit-weighted",))
    other = tmp_path / "other.txt"
    other.write_text(SAMPLED.read_text(encoding="utf-8")[3000:], encoding="utf-8")
    changed = ("--calibration", other, "--json", tmp_path / "other.json")
    assert make(*changed, methods=("fit-weighted",))[0] == 0  # a file of its own
    assert json.loads((tmp_path / "other.json").read_text())["rows"][0]["seconds"] is not None
    monkeypatch.setattr(accuracy_table, "quantize", None)
    (row,) = make(methods=("fit-weighted",))[3]
    assert row["seconds"] is None  # nobody knows how long it took in all
    assert row["kl"] > 0


def test_files_of_another_commit_are_not_used_and_those_of_changed_code_never(make, tmp_path, monkeypatch):
    made, quantize = [], accuracy_table.quantize
    monkeypatch.setattr(accuracy_table, "quantize", lambda *a, **k: made.append(a[1].name) or quantize(*a, **k))
    monkeypatch.setattr(accuracy_table, "current_commit", lambda: "0123456789abcdef" + accuracy_table.DIRTY)
    for _ in range(2):
        with monkeypatch.context() as patched:
            patched.setattr(accuracy_table, "evaluate_all", lambda *_: (_ for _ in ()).throw(ElutqError("stopped")))
            assert make(methods=("fit",))[0] == 1
    assert len(made) == 2
    assert [path.name for path in (tmp_path / "cache").glob("*.gguf")] == [made[0]]
    monkeypatch.setattr(accuracy_table, "current_commit", lambda: "fedcba9876543210")
    assert make(methods=("fit",))[0] == 0
    assert len(made) == 3
    assert list((tmp_path / "cache").glob("*.gguf*")) == []  # neither the one that was used nor the other commit's


def test_more_sequences_and_other_seeds_make_rows_of_their_own_where_a_text_is_seen(make):
    methods = ("fit", "fit-weighted")
    make(methods=methods)
    make("--num-samples", 2, methods=methods)
    rows = make("--num-samples", 2, "--seed", 1, methods=methods)[3]
    assert [(row["method"], row["num_samples"], row["seed"]) for row in rows] == [
        ("fit", 0, 0),
        ("fit-weighted", 4, 0),
        ("fit-weighted", 2, 0),
        ("fit-weighted", 2, 1),
    ]
    assert len({row["kl"] for row in rows}) == 4


def test_a_row_that_fails_is_a_line_and_the_others_are_made(make, monkeypatch):
    quantize = accuracy_table.quantize

    def fail(source, output, *others, **options):
        if "uniform" in output.name:
            raise ElutqError("the disk is full")
        return quantize(source, output, *others, **options)

    monkeypatch.setattr(accuracy_table, "quantize", fail)
    status, _, err, rows = make()
    assert status == 1
    assert "small, uniform, 2 bits, groups of 64: the disk is full\n" in err
    assert [row["method"] for row in rows] == ["fit"]


def test_rows_of_other_settings_or_another_text_do_not_go_into_the_same_file(make, tmp_path):
    make(methods=("fit",))
    assert "was made with chunks 3, not 2: give another --json" in make("--chunks", 2)[0]
    (tmp_path / "sampled.txt").write_text("Something else. " * 400)
    status = make(texts={"sampled": tmp_path / "sampled.txt"})[0]
    assert "has rows of another text called sampled" in status


def test_what_is_kept_of_one_text_is_not_that_of_another_called_alike(make, tmp_path):
    (tmp_path / "other.txt").write_text(SAMPLED.read_text(encoding="utf-8")[3000:], encoding="utf-8")
    status, _, _, rows = make(methods=("fit",), texts={"news-2": SAMPLED, "news": tmp_path / "other.txt"})
    assert status == 0
    assert [row["text"] for row in rows] == ["news-2", "news"]
    assert len(list((tmp_path / "cache").glob("small-news-*.npy"))) == 2
    for name in ("news", "news-2"):  # of other code
        (tmp_path / "cache" / f"small-{name}-0123456789abcdef.npy").touch()
    make("--again", methods=("fit",), texts={"news": tmp_path / "other.txt"})
    left = {path.name for path in (tmp_path / "cache").glob("*-0123456789abcdef.npy")}
    assert left == {"small-news-2-0123456789abcdef.npy"}


def test_the_kept_reference_is_exact(tmp_path):
    with Checkpoint.open(GOLDEN / "qwen2") as checkpoint:
        windows = split_windows(np.arange(100) % 60, 10)
        for n_wanted in (10, 3):  # computed, and found
            n_logits = [n_wanted] * len(windows)
            expected = Transformer(checkpoint).window_logits(windows.tokens, n_logits=n_logits)
            kept = accuracy_table.KeptReference(checkpoint, windows, tmp_path / "kept.npy")
            found = kept.window_logits(windows.tokens, lambda _: None, n_logits)
            assert np.array_equal(list(found), list(expected))


@pytest.mark.parametrize(("family", "expected"), [("smollm-tied", 32), (None, 64)])
def test_the_group_size_is_the_usual_or_the_largest_below_that_divides_all_columns(family, expected):
    with Checkpoint.open(NOVELS if family is None else GOLDEN / family) as checkpoint:
        columns = [shape[1] for shape in checkpoint.config.linear_shapes(0).values()]
        assert usual_group_size(checkpoint.config) == expected
    assert all(count % expected == 0 for count in columns)
    assert expected == 64 or any(count % (2 * expected) for count in columns)


def test_docs_show_the_committed_rows_and_nothing_else():
    rows = json.loads(COMMITTED.read_text(encoding="utf-8"))["rows"]
    for name in ("README.md", "docs/accuracy.md"):
        page = (ROOT / name).read_text(encoding="utf-8")
        assert accuracy_rows.insert(page, rows) == page, f"run scripts/accuracy_table.py --render {name}"
    assert accuracy_rows.shows_rows(page)
    changed = [rows[0] | {"kl": rows[0]["kl"] + 0.01}, *rows[1:]]
    assert accuracy_rows.insert(page, changed) != page


def test_committed_rows_are_whole():
    found = json.loads(COMMITTED.read_text(encoding="utf-8"))
    keys = [accuracy_rows.key_of(row) for row in found["rows"]]
    assert len(set(keys)) == len(keys)
    for row in found["rows"]:
        assert row.keys() == {*accuracy_rows.KEY, *accuracy_rows.FIGURES, *accuracy_rows.CIRCUMSTANCES}
        assert row["method"] in METHODS
        assert row["text"] in found["texts"]
        assert row["kl"] > 0
        assert 0 < row["top1"] <= 1
        assert row["bits"] < row["bits_per_weight"] < 6
        assert re.fullmatch(r"[0-9a-f]{40}", row["commit"])  # of a clean tree
    assert "/" not in json.dumps(found).replace("scripts/accuracy_table.py", "")


def row(text, method, bits, kl, **others):
    figures = {"bits_per_weight": bits + 0.75, "kl": kl, "top1": 0.5, "ppl": 1234.5 if text == "news" else 9}
    figures |= {"ppl_stderr": 1.0, "reference_ppl": 20.0, "runtime_kl": None, "seconds": None}
    return (
        {"model": "m", "text": text, "method": method, "bits": bits, "group_size": 64, "scale_bits": 16}
        | {"num_samples": 64 if METHODS[method].is_calibrated else 0, "seed": 0}
        | figures
        | others
    )


def test_tables_have_a_line_for_each_file_and_a_column_for_each_text():
    rows = [
        row("code", "fit", 3, 0.5),
        row("news", "fit", 2, 0.25, runtime_kl=0.0012, seconds=61.4),
        row("news", "uniform", 3, 2.0),
        row("news", "correct", 3, 0.0625, num_samples=16),
        row("news", "correct", 3, 0.0312),
        row("news", "correct", 3, 0.0352, seed=2),
        row("code", "fit", 2, 0.125),
    ]
    assert accuracy_rows.tables(rows).splitlines() == [
        "## m",
        "",
        "| bits | group | scales | method | sequences | bits/weight | KL code | KL news | top-1, % code |"
        " top-1, % news | perplexity code | perplexity news | runtime's KL | seconds |",
        "|" + 14 * "---|",
        "|  |  |  | full precision |  |  | 0 | 0 | 100 | 100 | 20.00 | 20.00 |  |  |",
        "| 2 | 64 | 16 bits | HLQ fit, weights only |  | 2.750 | 0.1250 | 0.2500 | 50.0 | 50.0 | 9.00 | 1,234.50 |"
        " 0.0012 | 61 |",
        "| 3 | 64 | 16 bits | uniform, round to nearest |  | 3.750 |  | 2.0000 |  | 50.0 |  | 1,234.50 |  |  |",
        "| 3 | 64 | 16 bits | HLQ fit, weights only |  | 3.750 | 0.5000 |  | 50.0 |  | 9.00 |  |  |  |",
        "| 3 | 64 | 16 bits | + correct | 16 | 3.750 |  | 0.0625 |  | 50.0 |  | 1,234.50 |  |  |",
        "| 3 | 64 | 16 bits | + correct | 64 | 3.750 |  | 0.0312 |  | 50.0 |  | 1,234.50 |  |  |",
        "| 3 | 64 | 16 bits | + correct, seed 2 | 64 | 3.750 |  | 0.0352 |  | 50.0 |  | 1,234.50 |  |  |",
    ]


def test_a_summary_has_the_smallest_files_that_there_are_on_each_models_first_text():
    rows = [
        row("code", "allocate", 2, 0.515),
        row("news", "fit", 2, 4.0),
        row("code", "fit", 2, 6.85, model="smollm2-135m", reference_ppl=24.3, ppl=26792.6, top1=0.053),
        row("code", "allocate", 3, 0.0821, top1=0.87, model="smollm2-135m", bits_per_weight=4.0),
        row("code", "allocate", 3, 0.0721, model="smollm2-135m", bits_per_weight=4.5, group_size=32),
        row("code", "allocate", 3, 0.0921, model="smollm2-135m", bits_per_weight=4.0, num_samples=16),
        row("code", "allocate", 3, 0.0621, model="smollm2-135m", bits_per_weight=3.9998, seed=3),
        row("code", "refine", 3, 0.1, model="smollm2-135m"),
    ]
    assert accuracy_rows.summary(rows).splitlines()[2:] == [
        "| SmolLM2-135M-Instruct | full precision | | 24.3 | | |",
        "| | 2, weights alone | 2.75 | 26,792.6 | 6.8 | 5 % |",
        "| | 3, calibrated | 4 | 9.0 | 0.082 | 87 % |",
        "| m | full precision | | 20.0 | | |",
        "| | 2, calibrated | 2.75 | 9.0 | 0.52 | 50 % |",
    ]


def test_a_page_without_a_place_for_figures_is_refused(tmp_path, monkeypatch):
    (tmp_path / "page.md").write_text("# Nothing\n")
    monkeypatch.setattr(sys, "argv", ["accuracy_table.py", "--render", str(tmp_path / "page.md")])
    with pytest.raises(SystemExit) as caught:
        accuracy_table.main()
    assert "page.md has no place for figures: a line <!-- Every row of" in str(caught.value.code)


def test_no_rows_leave_a_page_as_it_is(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(text := f"{accuracy_rows.BEGIN.format('Every row')}\n| rows |\n{accuracy_rows.END}\n")
    rows = tmp_path / "rows.json"
    for content, word in ((None, "has no rows"), ("{", "is not JSON"), ("[]", "is not a file of rows")):
        if content is not None:
            rows.write_text(content)
        monkeypatch.setattr(sys, "argv", ["accuracy_table.py", "--render", str(page), "--json", str(rows)])
        with pytest.raises(SystemExit) as caught:
            accuracy_table.main()
        assert word in str(caught.value.code)
        assert page.read_text() == text
    monkeypatch.setattr(sys, "argv", ["accuracy_table.py", "--render", str(tmp_path / "none.md")])
    with pytest.raises(SystemExit) as caught:
        accuracy_table.main()
    assert "none.md" in str(caught.value.code)


@pytest.mark.parametrize("name", accuracy_rows.BLOCKS)
def test_rendering_again_changes_nothing(name):
    page = f"# Page\n\n{accuracy_rows.BEGIN.format(name)}\nold\n{accuracy_rows.END}\n\nMore\n"
    once = accuracy_rows.insert(page, [row("code", "allocate", 2, 0.515)])
    assert "old" not in once
    assert "2.750" in once or "2.75 |" in once
    assert once.startswith("# Page\n\n<!--")
    assert once.endswith("-->\n\nMore\n")
    assert accuracy_rows.insert(once, [row("code", "allocate", 2, 0.515)]) == once
