"""Tuning end to end: its blocks and gradients, the text that it learns from, how long, and what is kept."""

import itertools
import json
import math
import operator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from elutq_cli.pipeline.compute.backend import native_backend
from elutq_cli.pipeline.layout import FREE8, Layout
from elutq_cli.pipeline.recipe import TUNE_TOKENS, Recipe
from elutq_cli.pipeline.run.calibration_text import CalibrationText
from elutq_cli.pipeline.run.fingerprint import fingerprint
from elutq_cli.pipeline.run.preparation import prepare
from elutq_cli.pipeline.run.quantize import quantize
from elutq_cli.pipeline.stages.by_rows import embed
from elutq_cli.pipeline.stages.fit import fit
from elutq_cli.pipeline.stages.tune.budget import (
    KEPT_BYTES,
    keeps_activations,
    tuning_bytes,
    tuning_scratch,
    tuning_seconds,
)
from elutq_cli.reference import Block, Transformer, block_tensor_names
from elutq_cli.shapes import named_shape
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.errors import ElutqError
from elutq_formats.hlq import pack
from elutq_formats.model_file import ModelFile
from elutq_formats.names import gguf_name
from elutq_formats.tensor_record import TensorRecord

torch = pytest.importorskip("torch", reason="tuning needs torch: pip install 'elutq[torch]'")

from elutq_cli.pipeline.compute.torch_device import prepare_torch  # noqa: E402
from elutq_cli.pipeline.stages.tune import end_to_end  # noqa: E402
from elutq_cli.pipeline.stages.tune.end_to_end import Budget, Curriculum  # noqa: E402
from elutq_cli.pipeline.stages.tune.exact_model import ExactModel  # noqa: E402
from elutq_cli.pipeline.stages.tune.fused_block import FusedBlock, fast_products, multiply_halves  # noqa: E402
from elutq_cli.pipeline.stages.tune.learned_model import LearnedModel  # noqa: E402

GOLDEN = Path(__file__).parent.parent / "data" / "golden"
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "some", "walls"]
TOKENS = np.random.default_rng(7).integers(3, 60, (3, 20))
TINY = GOLDEN / "llama2-gqa-sharded"
FAMILIES = sorted(path for path in GOLDEN.iterdir() if path.is_dir())


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Short steps, on one thread."""
    prepare_torch("cpu", 1, "--tune")
    monkeypatch.setattr(end_to_end, "LEVEL_RATE", 3e-3)
    monkeypatch.setattr(end_to_end, "STEP_TOKENS", 4 * 24)
    monkeypatch.setattr(end_to_end, "EXACT_TOKENS", 3 * 4 * 24)


@pytest.fixture(scope="module")
def backend():
    with native_backend(1) as native:
        yield native


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(" ".join(np.random.default_rng(0).choice(WORDS, 4000)))
    return path


def recipe(**options):
    given = {"group_size": 32, "num_samples": 16, "sequence_length": 24, "method": "feedback", "tune": ("e2e",)}
    return Recipe(**given | options)


def read(text, options, folder=TINY):
    with Checkpoint.open(folder) as checkpoint:
        return CalibrationText.read([text], checkpoint, options)


def run(output, text, backend, options, folder=TINY):
    with Checkpoint.open(folder) as checkpoint:
        quantize(checkpoint, output, options, CalibrationText.read([text], checkpoint, options), backend)
    return ModelFile.open(output)


def quantized(checkpoint, backend):
    """Every tensor as a 2-bit run would leave it: a function that returns them."""
    found = []
    for name in checkpoint.config.tensor_shapes():
        values, here = checkpoint.load(name), gguf_name(name)
        if values.ndim == 1:
            found.append((TensorRecord(here, 32, len(values)), values))
        elif values.shape[1] % 32 or not here.startswith("blk."):
            found.append((TensorRecord(here, 16, *values.shape), values.astype(np.float16)))
        else:
            layout, grid = Layout(2, 32, FREE8).settle([values])
            record = TensorRecord(here, 2, *values.shape, group_size=32, kind=grid)
            found.append((record, pack(fit(values, None, layout, backend, grid))))
    return lambda: [(record, lambda contents=contents: contents) for record, contents in found]


class Exactly:
    """A checkpoint's weights as the exact model reads them."""

    def __init__(self, checkpoint):
        self.load, self._checkpoint = checkpoint.load, checkpoint

    def embed(self, tokens):
        return embed(self._checkpoint, tokens)


def all_logits(checkpoint):
    logits = torch.asarray(Transformer(checkpoint).logits(TOKENS)).flatten(0, 1)
    return lambda rows: logits[rows]


# ---- blocks and gradients


@pytest.mark.parametrize("folder", FAMILIES, ids=lambda folder: folder.name)
def test_the_fused_block_is_the_reference_block(folder):
    with Checkpoint.open(folder) as checkpoint:
        config = checkpoint.config
        weights = {name: checkpoint.load(f"model.layers.0.{name}") for name in block_tensor_names(config, 0)}
    x = np.random.default_rng(1).normal(size=(2, 19, config.hidden_size)).astype(np.float32)
    expected = Block(config, 0, weights)(x)
    fused = FusedBlock(config, 0, {name: torch.asarray(array) for name, array in weights.items()}, torch)
    np.testing.assert_allclose(fused(torch.asarray(x)).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_fast_products_end_with_their_block_and_are_products():
    a, b = (np.random.default_rng(n).normal(size=(70, 70)).astype(np.float32) for n in (1, 2))
    before = torch.backends.mkldnn.matmul.fp32_precision
    with pytest.raises(KeyboardInterrupt), fast_products():
        np.testing.assert_allclose((torch.asarray(a) @ torch.asarray(b)).numpy(), a @ b, atol=0.2)
        raise KeyboardInterrupt
    assert torch.backends.mkldnn.matmul.fp32_precision == before


@pytest.mark.parametrize(
    ("keep", "multiply", "bound"),
    [(True, operator.matmul, 2e-4), (False, operator.matmul, 2e-4), (True, multiply_halves, 0.05)],
    ids=["kept", "computed again", "of bfloat16"],
)
@pytest.mark.parametrize("folder", [TINY, GOLDEN / "qwen3-biases", GOLDEN / "smollm-tied"], ids=lambda it: it.name)
def test_the_gradient_is_that_of_the_divergence(folder, keep, multiply, bound, backend):
    with Checkpoint.open(folder) as checkpoint:
        sources, exact = quantized(checkpoint, backend), all_logits(checkpoint)
        model = LearnedModel(checkpoint.config, sources(), "cpu", keep, multiply)
    loss = model.divergence(TOKENS, exact, learn=True)

    # The same through the reference transformer, all in one graph.
    leaves = {}

    class Leaves:
        config = model.config

        def has(self, name):
            return not (name == "lm_head.weight" and self.config.tie_word_embeddings)

        def load(self, name):
            if name not in leaves:
                leaves[name] = model.load(name).detach().requires_grad_()
            return leaves[name]

    whole = Transformer(
        Leaves(), keep=True, xp=torch, convert=lambda it: it if torch.is_tensor(it) else torch.asarray(it)
    )
    found = torch.log_softmax(whole.logits(torch.asarray(TOKENS)).flatten(0, 1), dim=-1)
    expected = torch.log_softmax(exact(slice(None)), dim=-1)
    divergence = (expected.exp() * (expected - found)).sum(-1).mean()
    divergence.backward()
    assert loss == pytest.approx(float(divergence.detach()), rel=bound)
    assert model.divergence(TOKENS, exact) == pytest.approx(float(divergence.detach()), rel=1e-4)
    gradients = {name: learned.shifts.grad for name, learned in model.learned.items()}
    assert len(gradients) == sum(1 for name in leaves if gguf_name(name) in gradients)
    for name, leaf in leaves.items():
        if gguf_name(name) in gradients:
            learned = model.learned[gguf_name(name)]
            learned.shifts.grad = None
            learned.pass_back(leaf.grad)
            difference = (gradients[gguf_name(name)] - learned.shifts.grad).norm()
            assert float(difference) <= bound * float(learned.shifts.grad.norm()), name


def test_the_exact_models_predictions_do_not_depend_on_what_is_computed_with_them():
    with Checkpoint.open(TINY) as checkpoint:
        exact = ExactModel(checkpoint.config, Exactly(checkpoint), "cpu")
        together, alone = exact.hidden([TOKENS[:2], TOKENS[1:]]), exact.hidden([TOKENS[1:]])
        assert torch.equal(together[1], alone[0])
        expected = Transformer(checkpoint).logits(TOKENS[1:]).reshape(-1, checkpoint.config.vocab_size)
        np.testing.assert_allclose(exact.logits(alone[0])(slice(3, 9)).numpy(), expected[3:9], rtol=1e-4, atol=1e-4)


# ---- the text


def test_fresh_sequences_are_all_those_that_no_stage_has(text):
    found, everything = read(text, recipe()), read(text, recipe(num_samples=10**6)).tokens
    parts = [set(map(bytes, part)) for part in (found.tokens, found.held_out, found.fresh)]
    assert len(found.fresh) == len(everything) - len(found.tokens) - len(found.held_out) > 50
    assert parts[0] | parts[1] | parts[2] == set(map(bytes, everything))
    assert sum(map(len, parts)) == len(everything)
    assert not np.array_equal(found.fresh, read(text, recipe(seed=1)).fresh)
    np.testing.assert_array_equal(found.fresh, read(text, recipe()).fresh)


def test_no_more_fresh_sequences_are_kept_than_are_asked_for(text):
    found = read(text, recipe(tune_tokens=24 * 5 + 1))
    np.testing.assert_array_equal(found.fresh, read(text, recipe()).fresh[:6])
    assert len(read(text, recipe(tune=())).fresh) == 0


def test_none_is_learned_from_twice_before_all_were_and_seen_ones_come_last():
    fresh, seen = np.arange(22).reshape(11, 2), 100 + np.arange(10).reshape(5, 2)
    curriculum = Curriculum(fresh, seen, 3, seed=4)
    assert curriculum.batch_tokens == 6
    order = np.concatenate([curriculum.batch(step) for step in range(11)])[:, 0].tolist()  # twice around, and one
    for around in (order[:16], order[16:32]):
        assert sorted(around[:11]) == fresh[:, 0].tolist()
        assert sorted(around[11:]) == seen[:, 0].tolist()
    assert order[:16] != order[16:32]
    assert np.array_equal(curriculum.batch(4), Curriculum(fresh, seen, 3, seed=4).batch(4))
    assert not np.array_equal(order[:11], np.concatenate([Curriculum(fresh, seen, 11, seed=5).batch(0)])[:, 0])


# ---- how long


def test_the_budget_is_used_by_tokens_and_by_time_whichever_is_first():
    assert Budget(100, None).used(25, 1e9) == 0.25
    assert Budget(None, 60.0).used(10**9, 15.0) == 0.25
    assert Budget(100, 60.0).used(25, 45.0) == 0.75
    assert Budget(100, 60.0).used(95, 45.0) == 0.95


def test_a_recipe_that_says_nothing_has_a_number_of_tokens():
    assert Recipe(tune=("e2e",)).resolved(True).tune_tokens == TUNE_TOKENS
    assert Recipe(tune=("e2e",), tune_minutes=2.0).resolved(True).tune_tokens is None
    assert Recipe(tune=("block",)).resolved(True).tune_tokens is None
    assert Recipe(tune=("block", "e2e"), tune_tokens=7, tune_minutes=2.0).resolved(True).tune_tokens == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tune": (), "tune_tokens": 5}, "add e2e"),
        ({"tune": ("block",), "tune_minutes": 5.0}, "add e2e"),
        ({"tune_tokens": 0}, "0 tokens to tune on: there must be at least 1"),
        ({"tune_minutes": -1.0}, "-1 minutes to tune for: there must be more than 0"),
        ({"tune_minutes": float("nan")}, "nan minutes to tune for"),
    ],
)
def test_a_budget_that_means_nothing_is_refused(options, message):
    with pytest.raises(ElutqError, match=message):
        recipe(**options)


def test_more_tokens_are_nearer_and_their_number_is_recorded(tmp_path, text, backend):
    divergence = {}
    for n_tokens in (4 * 24, 40 * 4 * 24 - 1):
        file = run(tmp_path / f"{n_tokens}.gguf", text, backend, recipe(tune_tokens=n_tokens))
        divergence[n_tokens] = file.provenance["calibration.kl_unseen"]
        assert file.provenance["tuned_tokens"] == -(-n_tokens // 96) * 96
        assert json.loads(file.provenance["recipe"])["tune_tokens"] == n_tokens
    assert divergence[40 * 96 - 1] < 0.97 * divergence[96]
    plain = run(tmp_path / "plain.gguf", text, backend, recipe(tune=()))
    assert "tuned_tokens" not in plain.provenance


def test_a_text_that_is_too_short_is_told_in_one_line(text, backend, caplog):
    with Checkpoint.open(TINY) as checkpoint:
        for n_tokens in (24 * 40, 10**6):
            options = recipe(tune_tokens=n_tokens)
            prepare(checkpoint, None, options, read(text, options), backend, None, "cpu")
    fresh = read(text, recipe()).fresh.size
    assert [record.message.split(":")[0] for record in caplog.records] == [
        f"the text has {fresh} tokens that calibration leaves, fewer than the 1000000 to tune on"
    ]


def test_minutes_end_it_and_the_tokens_are_recorded(tmp_path, text, backend, monkeypatch, caplog):
    clock = iter(range(10**6))
    monkeypatch.setattr(end_to_end.time, "perf_counter", lambda: float(next(clock)))
    file = run(tmp_path / "out.gguf", text, backend, recipe(tune_minutes=0.5))
    assert 96 * 10 < file.provenance["tuned_tokens"] < 96 * 31
    assert "for the same file again give a number of tokens" in caplog.text
    caplog.clear()
    both = run(tmp_path / "both.gguf", text, backend, recipe(tune_minutes=0.5, tune_tokens=96 * 3))
    assert both.provenance["tuned_tokens"] == 96 * 3
    assert caplog.text == ""


# ---- what it depends on, and what it takes


def test_a_run_is_not_continued_on_other_fresh_text(text):
    calibration = read(text, recipe())
    with Checkpoint.open(TINY) as checkpoint:
        one, other = (
            fingerprint(checkpoint, recipe(), it, "cpu")
            for it in (calibration, replace(calibration, fresh=calibration.fresh[::-1]))
        )
    assert one != other


def test_time_and_scratch_are_foretold_by_tokens_and_minutes():
    config = named_shape("smollm2-135m")
    seconds = [
        tuning_seconds(config, Recipe(tune=("e2e",), **options), 1e-11)
        for options in ({"tune_tokens": 1 << 18}, {"tune_tokens": 1 << 19}, {"tune_minutes": 3.0})
    ]
    assert seconds[1] == pytest.approx(2 * seconds[0])
    assert seconds[2] == 180.0
    assert tuning_seconds(config, Recipe(tune=("e2e",), tune_minutes=3.0, tune_tokens=1024), 1e-11) < 180.0
    assert tuning_seconds(config, Recipe(tune=("block", "e2e"), tune_minutes=3.0), 1e-11) > 180.0
    assert tuning_scratch(config, Recipe(tune=("block",))) == 0
    n_levels = 3 * 106_168_320 // 64
    assert tuning_scratch(config, Recipe(tune=("e2e",))) == pytest.approx(2 * 16 * n_levels, rel=0.01)


@pytest.mark.parametrize(
    ("options", "given_up"),
    [
        ({"output_bits": 4}, 0.0),
        ({"scale_bits": 16, "group_size": 128, "embedding_bits": 4}, 0.0),
        ({"bits": 4, "output_bits": 4}, 0.0),
        ({"target_bpw": 1.6}, 0.0),
        ({}, (4.625 - 1.125) * 49152 * 576 / 106_168_320),  # of the head, which is the embedding, too
        ({"bits": 4}, math.inf),
    ],
)
def test_what_is_foretold_of_levels_is_the_most_that_a_total_buys(options, given_up):
    """However two layouts are mixed to make it; with groups of 32 alone it is exactly that."""
    config, chosen = named_shape("smollm2-135m"), Recipe(method="allocate", tune=("e2e",), **options)
    total = min(chosen.budget + given_up, 5.25 * (1 - 1e-9))  # no more than 4 bits in groups of 32
    layouts = [replace(chosen.layout(bits), group_size=size) for bits in (1, 2, 3, 4) for size in (32, 64, 128)]
    most = 0.0
    for low, high in itertools.product(layouts, layouts):
        if low.bits_per_weight <= total < high.bits_per_weight:
            part = (total - low.bits_per_weight) / (high.bits_per_weight - low.bits_per_weight)
            levels = [(layout.bits + 1) / layout.group_size for layout in (low, high)]
            most = max(most, levels[0] * (1 - part) + levels[1] * part)
    assert tuning_scratch(config, chosen) == pytest.approx(2 * 16 * most * 106_168_320, rel=0.01)


def test_memory_and_time_of_tuning_grow_with_long_sequences_and_scores_that_are_softened():
    plain, short = named_shape("tinyllama-1.1b", blocks=2), Recipe()
    long = replace(short, sequence_length=2048)
    softened = replace(plain, attention_softcap=50.0)
    for tune in (("block",), ("e2e",)):
        bytes_of = [
            tuning_bytes(config, replace(recipe, tune=tune)) for config in (plain, softened) for recipe in (short, long)
        ]
        assert bytes_of[0] < min(bytes_of[1:3]) < max(bytes_of[1:3]) < bytes_of[3]
    seconds = [tuning_seconds(plain, replace(recipe, tune=("block",)), 1e-10) for recipe in (short, long)]
    assert seconds[0] == tuning_seconds(plain, replace(short, tune=("block",), num_samples=256), 1e-10) == seconds[1]
    assert tuning_seconds(plain, replace(long, tune=("block",), num_samples=256), 1e-10) == 4 * seconds[1]


def test_activations_are_kept_where_they_are_small_and_memory_says_which():
    small, large = named_shape("tinyllama-1.1b", blocks=2), named_shape("llama3-8b")
    assert keeps_activations(small, 512)
    assert not keeps_activations(large, 512)
    assert tuning_bytes(large, Recipe(tune=("e2e",))) < 30e9
    assert KEPT_BYTES < 10e9
