"""Sequences that no stage has seen: which they are, that nothing depends on them, and what is measured on them."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from elutq_cli.commands.making import describe_divergence
from elutq_cli.evaluation import log_softmax
from elutq_cli.pipeline.compute.backend import native_backend, numpy_backend
from elutq_cli.pipeline.layout import Layout
from elutq_cli.pipeline.progress import Progress
from elutq_cli.pipeline.recipe import MatrixPlan, Plan, Recipe
from elutq_cli.pipeline.run import estimate
from elutq_cli.pipeline.run.calibration_text import CalibrationText
from elutq_cli.pipeline.run.estimate import estimate_work
from elutq_cli.pipeline.run.fingerprint import explain_difference, fingerprint
from elutq_cli.pipeline.run.forecast import Forecast
from elutq_cli.pipeline.run.preparation import prepare
from elutq_cli.pipeline.run.quantize import quantize
from elutq_cli.pipeline.stages import by_rows, divergence
from elutq_cli.pipeline.stages.by_rows import MatrixByRows, read_rows, runs_of_rows
from elutq_cli.pipeline.stages.divergence import divergences
from elutq_cli.pipeline.stages.fit import fit
from elutq_cli.pipeline.stages.held_out import n_held_out
from elutq_cli.pipeline.stages.rotate import RotatedCheckpoint
from elutq_cli.pipeline.stages.streams import Streams, compared_sequences
from elutq_cli.reference import Transformer
from elutq_cli.shapes import named_shape
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.model_file import ModelFile

DATA = Path(__file__).parent.parent / "data"
TIED = DATA / "golden" / "llama32-tied-head-dim"
UNTIED = DATA / "golden" / "llama1-mha"
NOVELS = DATA / "novels-6m"
SMALL = Recipe(bits=2, group_size=32, num_samples=20, sequence_length=24, method="correct")
METHODS = ("fit", "feedback", "refine", "correct", "allocate")


@pytest.fixture(scope="module")
def backend():
    with native_backend(1, rounds=False) as native:
        yield native


@pytest.fixture
def read(text):
    """Read the calibration text of a recipe for a checkpoint."""

    def of(folder, recipe):
        with Checkpoint.open(folder) as checkpoint:
            return CalibrationText.read([text], checkpoint, recipe)

    return of


def run(folder, output, recipe, calibration, backend, **options):
    with Checkpoint.open(folder) as checkpoint:
        return quantize(checkpoint, output, recipe, calibration, backend, force=True, **options)


def contents(path):
    """The tensors' bytes, which come last in a file."""
    records = ModelFile.open(path).tensors.values()
    return list(records), path.read_bytes()[-sum(record.n_bytes for record in records) :]


# ---- which they are


def test_they_are_the_seeds_choice_of_what_calibration_leaves(read):
    found = read(UNTIED, SMALL)
    everything = read(UNTIED, replace(SMALL, num_samples=10**6)).tokens.tolist()
    seen, unseen = ([everything.index(row) for row in rows.tolist()] for rows in (found.tokens, found.held_out))
    chosen = np.random.default_rng(0).choice(len(everything), 20, replace=False)  # as if nothing were held out
    assert seen == sorted(everything.index(everything[number]) for number in chosen)
    assert len(unseen) == n_held_out(20) == 3
    assert unseen == sorted(unseen)
    np.testing.assert_array_equal(read(UNTIED, SMALL).held_out, found.held_out)
    assert not np.array_equal(read(UNTIED, replace(SMALL, seed=1)).held_out, found.held_out)


def test_they_are_one_for_eight_sequences_and_not_more_than_the_text_has_to_spare(read):
    assert [n_held_out(n) for n in (1, 8, 9, 64, 256, 1024)] == [1, 1, 2, 8, 32, 32]
    n_sequences = len(read(UNTIED, replace(SMALL, num_samples=10**6)).tokens)
    for n_spare in (0, 1, 2):
        found = read(UNTIED, replace(SMALL, num_samples=n_sequences - n_spare))
        assert len(found.tokens) == n_sequences - n_spare  # none is taken away from calibration
        assert (0 if found.held_out is None else len(found.held_out)) == n_spare


def test_they_begin_as_those_to_calibrate_on(read):
    with Checkpoint.open(NOVELS) as checkpoint:
        found = CalibrationText.read([DATA / "sampled.txt"], checkpoint, replace(SMALL, num_samples=64))
        assert set(found.held_out[:, 0]) == set(checkpoint.tokenizer().prefix)
    assert found.held_out.shape == (8, 24)


# ---- what depends on them


@pytest.mark.parametrize("method", METHODS)
def test_no_weight_depends_on_them(tmp_path, backend, read, method):
    recipe = replace(SMALL, method=method, output_bits=2)
    calibration = read(TIED, recipe)
    others = replace(calibration, held_out=calibration.held_out[::-1] * 0 + 5)
    for name, text in {"some": calibration, "none": replace(calibration, held_out=None), "others": others}.items():
        run(TIED, tmp_path / name, recipe, text, backend)
    assert contents(tmp_path / "some") == contents(tmp_path / "none") == contents(tmp_path / "others")


def test_a_run_is_not_continued_with_others(read):
    calibration = read(UNTIED, SMALL)
    with Checkpoint.open(UNTIED) as checkpoint:
        prints = [
            fingerprint(checkpoint, SMALL, replace(calibration, held_out=held_out), "cpu")
            for held_out in (calibration.held_out, calibration.held_out + 1, None)
        ]
    assert explain_difference(prints[0], prints[1]) == "with another calibration text"
    assert explain_difference(prints[0], prints[2]) == "with another calibration text"


# ---- what is measured on them


def direct(weights, path, tokens):
    """KL(checkpoint || file) of all predictions, a token's mean, in float64."""
    expected = log_softmax(Transformer(weights).logits(tokens))
    found = log_softmax(Transformer(ModelFile.open(path)).logits(tokens))
    return float((np.exp(expected) * (expected - found)).sum(axis=-1).mean())


@pytest.mark.parametrize(
    ("folder", "options"),
    [
        *((UNTIED, {"method": method}) for method in METHODS),
        (UNTIED, {"method": "fit", "output_bits": 16, "embedding_bits": 16}),
        (TIED, {"method": "correct"}),
        (TIED, {"method": "feedback", "output_bits": 2}),
        (TIED, {"method": "correct", "rotate": True}),
    ],
    ids=lambda value: value.name if isinstance(value, Path) else " ".join(map(str, value.values())),
)
def test_the_divergences_are_those_of_the_file_that_was_made(tmp_path, backend, read, folder, options):
    recipe = replace(SMALL, **options)
    calibration = read(folder, recipe)
    summary = run(folder, tmp_path / "out.gguf", recipe, calibration, backend)
    with Checkpoint.open(folder) as checkpoint:
        weights = RotatedCheckpoint(checkpoint, recipe.seed) if recipe.rotate else checkpoint
        compared = calibration.tokens[compared_sequences(20)]
        assert summary.kl_seen == pytest.approx(direct(weights, tmp_path / "out.gguf", compared), rel=1e-3, abs=2e-6)
        unseen = direct(weights, tmp_path / "out.gguf", calibration.held_out)
        assert summary.kl_unseen == pytest.approx(unseen, rel=1e-3, abs=2e-6)
    provenance = ModelFile.open(tmp_path / "out.gguf").provenance
    assert provenance["calibration.kl_seen"] == summary.kl_seen
    assert provenance["calibration.kl_unseen"] == summary.kl_unseen
    assert provenance["calibration.held_out_samples"] == 3


def test_what_was_fitted_to_the_text_shows(tmp_path, backend):
    """A trained model that corrects on a few hundred tokens has learned them by heart."""
    recipe = Recipe(num_samples=8, sequence_length=64, method="correct")
    with Checkpoint.open(NOVELS) as checkpoint:
        calibration = CalibrationText.read([DATA / "sampled.txt"], checkpoint, recipe)
    summary = run(NOVELS, tmp_path / "out.gguf", recipe, calibration, backend)
    assert summary.kl_unseen > 2 * summary.kl_seen > 0.0


def test_without_text_to_spare_only_the_seen_is_measured(tmp_path, backend, read):
    calibration = replace(read(UNTIED, SMALL), held_out=None)
    summary = run(UNTIED, tmp_path / "out.gguf", SMALL, calibration, backend)
    provenance = ModelFile.open(tmp_path / "out.gguf").provenance
    assert (provenance["calibration.kl_seen"], summary.kl_unseen) == (summary.kl_seen, None)
    assert "calibration.kl_unseen" not in provenance
    assert provenance["calibration.held_out_samples"] == 0
    alone = run(UNTIED, tmp_path / "alone.gguf", Recipe(group_size=32), None, backend)
    assert (alone.kl_seen, alone.kl_unseen) == (None, None)


def test_divergence_is_that_of_the_whole_vocabulary(monkeypatch):
    """However the vocabulary and the tokens are cut, with logits far beyond what float32's exponential holds."""
    monkeypatch.setattr(divergence, "TOKENS_AT_ONCE", 3)
    rng = np.random.default_rng(0)
    head, other = (rng.normal(scale=40, size=(50, 8)).astype(np.float32) for _ in range(2))
    other = head + other / 40
    sequences = [tuple(rng.normal(size=(2, 7, 8)).astype(np.float32)) for _ in range(4)]
    rows = [(head[part], other[part]) for part in (slice(0, 1), slice(1, 30), slice(30, 50))]
    found = divergences(sequences, lambda x: 2 * x, rows, numpy_backend())
    for value, (hidden, exact) in zip(found, sequences, strict=True):
        p, q = log_softmax(2 * exact @ head.T), log_softmax(2 * hidden @ other.T)
        assert value == pytest.approx((np.exp(p) * (p - q)).sum(axis=-1).mean(), rel=1e-5)
        assert value > 1.0


def test_predictions_that_are_not_finite_are_told_and_not_a_number(caplog):
    streams = Streams(*np.ones((4, 1, 5, 8), np.float32))
    head = np.ones((3, 8), np.float32)
    for spoilt in (np.inf, np.nan):
        rows = [(head, head), (head, head * spoilt)]
        assert divergence.measure_divergence(streams, lambda x: x, rows, numpy_backend()) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    found = divergence.measure_divergence(streams, lambda x: x, [(head, head)], numpy_backend())
    assert found == divergence.Divergence(0.0, 0.0)


@pytest.mark.parametrize("plan", [MatrixPlan("lm_head.weight", layout) for layout in (Layout(2, 32), None)])
def test_rows_of_a_finished_matrix_are_those_that_were_put_there(monkeypatch, plan):
    """Of a head with more rows than go through the stages together, the last run a short one."""
    monkeypatch.setattr(by_rows, "ROWS_AT_ONCE", by_rows.SUPERBLOCK_ROWS)
    numpy_only = numpy_backend()
    weights = np.random.default_rng(1).normal(size=(2 * by_rows.SUPERBLOCK_ROWS + 5, 64)).astype(np.float32)
    matrix, restored = MatrixByRows(plan, weights.shape, numpy_only), []
    runs = runs_of_rows(len(weights))
    for rows in runs:
        tensor = None if plan.layout is None else fit(weights[rows], None, plan.layout, numpy_only)
        restored.append(matrix.add(rows, weights[rows], tensor)())
    assert len(runs) == 3
    for rows, expected in zip(reversed(runs), reversed(restored), strict=True):
        found = read_rows(matrix.record(None), matrix.contents, rows, numpy_only.crew)
        np.testing.assert_array_equal(found, expected)


# ---- a run that is stopped, and what it takes


class StopAt(Progress):
    """Stops a run after so many calls."""

    def __init__(self, n_calls):
        self.n_calls = n_calls

    def advance(self, amount):
        self.note("")

    def note(self, text):
        self.n_calls -= 1
        if self.n_calls == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("method", ["feedback", "correct"])
def test_a_run_that_is_stopped_ends_with_the_same_file(tmp_path, backend, read, method):
    recipe = replace(SMALL, method=method)
    calibration = read(UNTIED, recipe)
    run(UNTIED, tmp_path / "whole.gguf", recipe, calibration, backend)
    n_stops = 0
    for n_calls in range(2, 40):
        try:
            run(UNTIED, tmp_path / "out.gguf", recipe, calibration, backend, progress=StopAt(n_calls))
        except KeyboardInterrupt:
            n_stops += 1
        else:
            break
    assert n_stops > 5
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert not (tmp_path / "out.gguf.work").exists()


class Disk(Progress):
    """Watches how much lies in a work folder."""

    most = 0

    def __init__(self, folder):
        self.folder = folder

    def advance(self, amount):
        if self.folder.is_dir():
            self.most = max(self.most, sum(path.stat().st_size for path in self.folder.iterdir()))

    def note(self, text):
        self.advance(0)


@pytest.mark.parametrize("method", ["feedback", "correct"])
def test_their_streams_are_in_the_forecast_of_scratch_disk(tmp_path, backend, read, method):
    recipe = replace(SMALL, method=method)
    calibration, disk = read(UNTIED, recipe), Disk(tmp_path / "out.gguf.work")
    found = []
    with Checkpoint.open(UNTIED) as checkpoint:
        for text in (calibration, replace(calibration, held_out=None)):
            found.append(prepare(checkpoint, None, recipe, text, backend, None, "cpu"))
        assert found[0].held_out_tokens == calibration.held_out.size
        hidden_size = checkpoint.config.hidden_size
    more = found[0].forecast.scratch_bytes - found[1].forecast.scratch_bytes
    assert more == 2 * 2 * 4 * hidden_size * calibration.held_out.size
    run(UNTIED, tmp_path / "out.gguf", recipe, calibration, backend, progress=disk)
    headers = 1000 * 64  # of the arrays, and what the spool writes of itself
    assert 0 < disk.most < found[0].forecast.scratch_bytes + headers


def test_they_take_less_than_an_eighth_of_the_forward_passes(backend, monkeypatch):
    monkeypatch.setattr(estimate, "_seconds", lambda function: 1.0)
    config, recipe = named_shape("llama3-8b"), Recipe(method="correct")
    plan, n_tokens, held_out = Plan.make(config, recipe), 64 * 512, 8 * 512
    sizes = [Forecast.make(config, plan, recipe, n_tokens, 2, held_out_tokens=n) for n in (0, held_out)]
    assert sizes[0].memory_bytes == sizes[1].memory_bytes
    assert sizes[0].scratch_bytes < sizes[1].scratch_bytes < 1.1 * sizes[0].scratch_bytes
    without, with_them = (estimate_work(config, plan, recipe, n_tokens, backend, n).seconds() for n in (0, held_out))
    n_weights = sum(math.prod(config.tensor_shapes()[entry.name]) for block in plan.blocks for entry in block)
    all_passes = 3 * n_weights * n_tokens * (1.0 / estimate.PROBE_COLUMNS**3)
    assert 1 / 16 < (with_them - without) / all_passes < 1 / 8


# ---- what is said


def test_the_line_at_the_end_names_both_texts_and_what_helps():
    begin = "KL divergence from the checkpoint, nats a token: 0.206 on text that calibration saw, "
    apart, near, alone = (describe_divergence(0.2061, unseen) for unseen in (0.5714, 0.211, None))
    assert apart == begin + (
        "0.571 on text of the same kind that it did not see: more text narrows this gap (--num-samples)"
    )
    assert near == begin + "0.211 on text of the same kind that it did not see"
    assert alone == begin + "more on other text: to tell how much, give it a text longer than what it uses"
