"""The allocate stage: the budget is kept and well spent, and sensitivities are what they say."""

import itertools
import json
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from single_linears import errors_of

from elutq_cli.evaluation import log_softmax
from elutq_cli.pipeline.compute.backend import native_backend
from elutq_cli.pipeline.layout import EVEN8C, FREE8, Layout
from elutq_cli.pipeline.recipe import Plan, Recipe
from elutq_cli.pipeline.run.calibration_text import CalibrationText
from elutq_cli.pipeline.run.preparation import prepare
from elutq_cli.pipeline.run.quantize import quantize
from elutq_cli.pipeline.stages import allocate as stage
from elutq_cli.pipeline.stages.allocate import Candidate, allocate, measure_candidates, spend
from elutq_cli.pipeline.stages.feedback import feedback, inverse_factor
from elutq_cli.pipeline.stages.row_errors import RowErrors
from elutq_cli.pipeline.stages.sensitivity import gradient_squares
from elutq_cli.reference import Block, Transformer
from elutq_cli.reference.backward import draw
from elutq_formats.block_kind import FREE16
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.errors import ElutqError
from elutq_formats.model_file import ModelFile

GOLDEN = Path(__file__).parent.parent / "data" / "golden"
TINY = GOLDEN / "llama2-gqa-sharded"
RECIPE = Recipe(group_size=32, num_samples=6, sequence_length=16, target_bpw=3.0, output_bits=16, embedding_bits=16)


@pytest.fixture(scope="module")
def backend():
    with native_backend(2) as native:
        yield native


def tokens_of(checkpoint, count=6):
    return np.random.default_rng(1).integers(0, checkpoint.config.vocab_size, (count, 16))


def test_a_total_below_what_outliers_leave_is_refused():
    """Bytes would do with 2.1875 bits a weight; float16 scales, all that this matrix can have, take more."""
    candidate = Candidate("model.layers.0.mlp.up_proj.weight", 4096, {Layout(2, 128): 0.1})
    assert spend([candidate], 2.375) == {candidate.name: Layout(2, 128)}
    with pytest.raises(ElutqError, match=r"2.2 bits per weight cannot be reached: .* the least is 2\.375"):
        spend([candidate], 2.2)


def test_outliers_that_leave_less_than_bits_has_are_no_error(tmp_path, text, backend):
    """Two linears have float16 scales then, and the others cannot have as much less than they bring."""
    folder = shutil.copytree(GOLDEN / "qwen3", tmp_path / "model")
    with Checkpoint.open(folder) as checkpoint:
        weights = {name: checkpoint.load(name) for name in checkpoint.names}
    for layer in (0, 1):
        for name in (f"model.layers.{layer}.mlp.{linear}_proj.weight" for linear in ("gate", "up")):
            weights[name][3, 5] = 4100.0  # bytes then reach to 8192
            assert Layout(1, 32, FREE8).settle([weights[name]])[1] == FREE16
    save_file(weights, folder / "model.safetensors")
    recipe = replace(RECIPE, bits=1, target_bpw=None)
    with Checkpoint.open(folder) as checkpoint:
        tokens = CalibrationText.read([text], checkpoint, recipe).tokens
        chosen = allocate(checkpoint, replace(recipe, method="allocate"), tokens, backend)
    assert chosen["model.layers.0.mlp.up_proj.weight"] == Layout(1, 32)


def test_bits_per_weight_counts_scales_and_centers():
    assert Layout(2, 128).bits_per_weight == 2.375
    assert Layout(2, 64).bits_per_weight == 2.75
    assert Layout(3, 128).bits_per_weight == 3.5


def test_a_budget_is_kept_and_spent_nearly_as_well_as_possible():
    rng = np.random.default_rng(2)
    layouts = [Layout(bits, 128) for bits in (1, 2, 3, 4)]
    candidates = [
        Candidate(str(index), 1000, {layout: sensitivity * 4.0**-layout.bits for layout in layouts})
        for index, sensitivity in enumerate(np.exp(rng.normal(size=6)))
    ]
    tables = [candidate.harms for candidate in candidates]
    for target in (1.5, 2.0, 2.5, 3.0, 4.0):
        chosen = spend(candidates, target)
        assert sum(layout.bits_per_weight for layout in chosen.values()) <= 6 * target
        harm = sum(table[chosen[str(index)]] for index, table in enumerate(tables))
        possible = (
            sum(table[layout] for table, layout in zip(tables, combination, strict=True))
            for combination in itertools.product(layouts, repeat=6)
            if sum(layout.bits_per_weight for layout in combination) <= 6 * target
        )
        assert harm <= 1.5 * min(possible)  # a hull's steps leave less than one step of the budget


@pytest.mark.parametrize(
    ("target", "types", "message"),
    [
        (1.1, (), r"^1\.1 bits per weight cannot be reached: this model's linears can have 1\.\d+ to 5\.250$"),
        (5.3, (), r"^5\.3 bits .* can have 1\.\d+ to 5\.250$"),
        (1.5, (r"ffn=4g32",), r"^1\.5 bits per weight cannot be reached: .* can have [34]\.\d+ to 5\.250$"),
        (
            3.0,
            (r"^blk=3g32", r"ffn=2g32"),
            r"tensor types fix every linear, at 3\.\d+ bits .*: leave out the target of 3",
        ),
    ],
)
def test_a_total_that_cannot_be_reached_is_refused_before_anything_is_measured(
    backend, monkeypatch, target, types, message
):
    monkeypatch.setattr("elutq_cli.pipeline.stages.allocate.measure_candidates", refuse_to_measure)
    recipe = replace(RECIPE, target_bpw=target, tensor_types=types)
    with Checkpoint.open(TINY) as checkpoint:
        with pytest.raises(ElutqError, match=message):
            allocate(checkpoint, recipe, tokens_of(checkpoint), backend)
        calibration = CalibrationText(tokens_of(checkpoint), (), ())
        with pytest.raises(ElutqError, match=message):  # what a dry run does
            prepare(checkpoint, None, recipe, calibration, backend, None, "cpu")


@pytest.mark.parametrize("linear", ["self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"])
def test_a_harm_is_the_divergence_when_one_linear_is_quantized(backend, linear, monkeypatch):
    """To second order, from sampled gradients: to a third. Quantizing as the stage does, with every row sampled."""
    name = f"model.layers.1.{linear}.weight"
    with Checkpoint.open(TINY) as checkpoint:
        tokens = tokens_of(checkpoint, 16)
        weights = checkpoint.load(name)
        monkeypatch.setattr(stage, "SAMPLED_ROWS", len(weights))
        [found] = measure_candidates(checkpoint, RECIPE, {name}, tokens, backend)
        model = Transformer(checkpoint, keep=True)
        expected = [log_softmax(model.logits(row)) for row in tokens]
        inputs = {}
        model.block(1)(model.block(0)(model.embed(tokens)), observe=inputs.__setitem__)
        shared = next(linears[0] for linears in model.config.layer(1).shared_inputs if linear in linears)
        x = inputs[shared].reshape(-1, weights.shape[1])
        factor = inverse_factor(x.T @ x / np.float32(len(x)), RECIPE.damping, backend)
        layout, grid = Layout(3, 64, FREE8).settle([weights])
        model._kept[name] = feedback(weights, factor, layout, backend, grid).dequantize()
        changed = [log_softmax(model.logits(row)) for row in tokens]
    divergence = np.mean([(np.exp(p) * (p - q)).sum(-1).mean() for p, q in zip(expected, changed, strict=True)])
    assert found.harms[layout] == pytest.approx(divergence, rel=0.35)
    falling = [found.harms[Layout(bits, 64, FREE8)] for bits in (1, 2, 3, 4)]
    assert all(more > less > 0 for more, less in itertools.pairwise(falling))


@pytest.mark.parametrize("rows", [192, 576, 1536, 2048, 4096, 8192, 14336])
def test_rows_are_sampled_at_all_places_of_a_head(backend, rows):
    weights = np.random.default_rng(rows).normal(size=(rows, 32)).astype(np.float32)
    hessian = np.eye(32, dtype=np.float32)
    found = errors_of(weights, hessian, inverse_factor(hessian, 0.1, backend), [Layout(2, 32)], backend)
    sampled = np.arange(rows)[found.sampled]
    assert len(found.errors[Layout(2, 32)]) == len(sampled) >= 48
    assert sampled[0] < rows // 48
    assert sampled[-1] >= rows - rows // 48
    assert len(set(sampled % 128)) >= 32


def test_harms_of_sampled_rows_are_scaled_up_to_all():
    rng = np.random.default_rng(6)
    sizes, squares = np.exp(rng.normal(size=(2, 100)))
    errors = 0.01 * sizes[10::10]
    found = RowErrors(sizes, slice(10, 100, 10), {Layout(2, 64): errors}).harms(squares)
    assert found[Layout(2, 64)] == pytest.approx(0.005 * sizes @ squares)


def test_gradients_are_how_the_loss_changes_at_every_block(backend):
    """Of the squares: along the axis of each channel of the stream, from there on in float64."""
    with Checkpoint.open(TINY) as checkpoint:
        tokens = tokens_of(checkpoint, 2)
        model = Transformer(checkpoint)
        inputs = [model.embed(tokens)]
        for block in model.blocks():
            inputs.append(block(inputs[-1]))
        found = gradient_squares(model, np.stack(inputs[:-1]), inputs[-1], 5, backend)
        exact = Transformer(checkpoint, convert=lambda array: array.astype(np.float64))
        head, last = exact.load_head(), exact.block(checkpoint.config.num_hidden_layers - 1)

    after = inputs[-1].astype(np.float64)
    drawn = [
        draw(np.exp(log_softmax(head(x))), np.random.default_rng((5, index)).random(len(x), np.float32), np)
        for index, x in enumerate(after)
    ]
    channels, total = (0, 7, 40), np.zeros(3)
    for (index, position), (place, channel) in itertools.product(np.ndindex(after.shape[:2]), enumerate(channels)):
        ends = np.repeat(after[index, position][None], 2, axis=0)
        ends[:, channel] += (1e-5, -1e-5)
        more, less = log_softmax(head(ends))[:, drawn[index][position]]
        total[place] += ((more - less) / 2e-5) ** 2
    np.testing.assert_allclose(
        found[f"model.layers.{last.layer}.mlp.down_proj.weight"][list(channels)], total / 32, rtol=1e-3
    )


def test_gradients_that_overflow_are_refused_by_name(backend):
    with Checkpoint.open(TINY) as checkpoint:
        model = Transformer(checkpoint)
        inputs = model.embed(tokens_of(checkpoint, 2))[None].repeat(checkpoint.config.num_hidden_layers, axis=0)
        with pytest.raises(ElutqError, match=r"^output\.weight: gradients overflow on the calibration text"):
            gradient_squares(model, inputs, np.full_like(inputs[0], np.inf), 5, backend)


@pytest.mark.parametrize(("count", "n_used", "last"), [(5, 5, 4), (17, 16, 15), (31, 16, 29), (64, 16, 60)])
def test_sequences_are_of_all_parts_of_the_text_and_as_many_as_there_are(backend, count, n_used, last, monkeypatch):
    class Seen(Exception):
        pass

    def look(source, tokens):
        raise Seen(tokens[:, 0].tolist())

    monkeypatch.setattr(stage, "embed", look)
    with Checkpoint.open(TINY) as checkpoint, pytest.raises(Seen) as seen:
        allocate(checkpoint, RECIPE, np.repeat(np.arange(count)[:, None], 16, axis=1), backend)
    [used] = seen.value.args
    assert len(set(used)) == n_used
    assert (used[0], used[-1]) == (0, last)
    assert set(np.diff(used)) <= {count // n_used, -(-count // n_used)}


def test_one_block_is_in_memory_at_a_time(monkeypatch):
    """Forwards, at the head, and back: none that was read before is held, nor its weights, when the next is read.

    On one thread: another lets go of what it did last a moment after its result is known.
    """
    held, n_read = [], []

    def reading(read):
        def read_alone(*arguments):
            n_read.append(1)
            assert not any(reference() is not None for reference in held)
            part = read(*arguments)
            held.extend(
                map(weakref.ref, [part, *(part.weights.values() if isinstance(part, Block) else [part.weight])])
            )
            return part

        return read_alone

    monkeypatch.setattr(Transformer, "block", reading(Transformer.block))
    monkeypatch.setattr(Transformer, "load_head", reading(Transformer.load_head))
    with native_backend(1) as backend, Checkpoint.open(TINY) as checkpoint:
        assert allocate(checkpoint, RECIPE, tokens_of(checkpoint), backend)
        assert len(n_read) == 2 * checkpoint.config.num_hidden_layers + 1


def test_tensor_types_are_left_alone_and_count(backend):
    recipe = replace(RECIPE, tensor_types=(r"blk\.0\.ffn_down=4g32",), target_bpw=3.5)
    with Checkpoint.open(TINY) as checkpoint:
        chosen = allocate(checkpoint, recipe, tokens_of(checkpoint), backend)
        plan = Plan.make(checkpoint.config, recipe, chosen)
        shapes = checkpoint.config.tensor_shapes()
    assert "model.layers.0.mlp.down_proj.weight" not in chosen
    entries = [entry for block in plan.blocks for entry in block]
    weights = sum(np.prod(shapes[entry.name]) for entry in entries)
    spent = sum(entry.bits_per_weight * np.prod(shapes[entry.name]) for entry in entries)
    assert 3.0 * weights < spent <= 3.5 * weights
    assert [entry.layout.bits for entry in entries if entry.name == "model.layers.0.mlp.down_proj.weight"] == [4]


def test_a_fixed_tensor_takes_nothing_from_the_others(backend):
    free_rate = {}
    for types in ((), (r"blk\.0\.ffn=16",), (r"blk\.0\.ffn=1g32",)):
        recipe = replace(RECIPE, target_bpw=None, tensor_types=types)
        with Checkpoint.open(TINY) as checkpoint:
            chosen = allocate(checkpoint, recipe, tokens_of(checkpoint), backend)
            shapes = checkpoint.config.tensor_shapes()
        spent = sum(layout.bits_per_weight * np.prod(shapes[name]) for name, layout in chosen.items())
        free_rate[types] = spent / sum(np.prod(shapes[name]) for name in chosen)
    rate = RECIPE.layout(RECIPE.bits).bits_per_weight
    assert all(0.8 * rate < found <= rate for found in free_rate.values()), free_rate


@pytest.mark.parametrize(("scale_bits", "kind"), [(8, FREE8), (16, FREE16.name)])
def test_bits_and_groups_of_32_to_128_are_measured_in_the_recipes_kind(scale_bits, kind):
    every = itertools.product((1, 2, 3, 4), (128, 64, 32))
    usual = Recipe(scale_bits=scale_bits)
    assert set(stage._options(256, usual)) == {Layout(bits, group_size, kind) for bits, group_size in every}
    wide = stage._options(256, replace(usual, group_size=256))
    assert {layout.group_size for layout in wide} == {256, 128, 64, 32}
    assert {layout.group_size for layout in stage._options(576, usual)} == {64, 32}


@pytest.mark.parametrize("changed", [{"bits": 3}, {"bits": 4}, {"target_bpw": 3.0}])
def test_evenly_spaced_levels_are_measured_from_3_bits_on_where_they_can_be_had(changed):
    recipe = replace(Recipe(), **changed)
    even = {Layout(bits, group_size, EVEN8C) for bits in (3, 4) for group_size in (128, 64, 32)}
    assert even < set(stage._options(256, recipe))
    for without in ({"scale_bits": 16}, {"tune": ("block",)}, {"bits": 2, "target_bpw": 2.9}):
        assert not even & set(stage._options(256, replace(recipe, **without)))


def test_at_4_bits_some_linears_get_evenly_spaced_levels_and_the_file_keeps_them(tmp_path, backend):
    recipe = replace(RECIPE, target_bpw=4.5)
    with Checkpoint.open(TINY) as checkpoint:
        calibration = CalibrationText(tokens_of(checkpoint), (), ())
        quantize(checkpoint, tmp_path / "out", recipe, calibration, backend)
    records = ModelFile.open(tmp_path / "out").tensors.values()
    assert EVEN8C in {record.kind.name for record in records if record.group_size}


def test_matrices_that_bytes_do_not_suit_are_given_what_float16_takes(backend):
    """The layouts that are compared are those that the file will have."""
    weights = np.random.default_rng(6).normal(size=(40, 64)).astype(np.float32) * np.float32(1e-6)
    hessian = np.eye(64, dtype=np.float32)
    options = stage._options(64, RECIPE)
    found = errors_of(weights, hessian, inverse_factor(hessian, 0.1, backend), options, backend).errors
    assert set(found) == {replace(option, kind=FREE16.name) for option in options}
    weights = np.random.default_rng(6).normal(size=(40, 64)).astype(np.float32)
    weights[3, 4] = 300.0  # at 4 bits too large beside the others where levels are free
    found = errors_of(weights, hessian, inverse_factor(hessian, 0.1, backend), options, backend).errors
    assert {layout.kind for layout in found if layout.bits == 4} == {FREE16.name, EVEN8C}
    assert {layout.kind for layout in found if layout.bits == 2} == {FREE8}


def refuse_to_measure(*arguments):
    raise AssertionError("nothing is to be measured")


def test_when_every_linear_is_fixed_nothing_is_measured(tmp_path, backend, monkeypatch):
    monkeypatch.setattr("elutq_cli.pipeline.stages.allocate.measure_candidates", refuse_to_measure)
    recipe = replace(RECIPE, tensor_types=(r"^blk=3g32", r"ffn=2g32"), target_bpw=None)
    text = tmp_path / "text.txt"
    text.write_text("A quick brown fox and some dogs. " * 40)
    with Checkpoint.open(TINY) as checkpoint:
        assert allocate(checkpoint, recipe, tokens_of(checkpoint), backend) == {}
        quantize(checkpoint, tmp_path / "out", recipe, CalibrationText.read([text], checkpoint, recipe), backend)
    records = ModelFile.open(tmp_path / "out").tensors
    assert {records[f"blk.1.{name}.weight"].bits for name in ("attn_q", "attn_output")} == {3}
    assert {records[f"blk.1.{name}.weight"].bits for name in ("ffn_up", "ffn_down")} == {2}


def test_one_short_sequence_is_enough(backend):
    recipe = replace(RECIPE, num_samples=1, sequence_length=2)
    with Checkpoint.open(TINY) as checkpoint:
        assert allocate(checkpoint, recipe, tokens_of(checkpoint)[:1, :2], backend)


def test_the_file_has_the_bits_that_were_chosen(tmp_path, backend):
    texts = tmp_path / "text.jsonl", tmp_path / "more.jsonl"
    for text, words in zip(texts, np.random.default_rng(3).choice(list("abcdefgh"), (2, 20, 20)), strict=True):
        text.write_text("".join(json.dumps({"text": " ".join(row)}) + "\n" for row in words))
    with Checkpoint.open(TINY) as checkpoint:
        calibration = CalibrationText.read(texts, checkpoint, RECIPE)
        quantize(checkpoint, tmp_path / "out.gguf", RECIPE, calibration, backend)
        with pytest.raises(ElutqError, match=r"add one .--calibration"):
            quantize(checkpoint, tmp_path / "none.gguf", RECIPE, None, backend)
    file = ModelFile.open(tmp_path / "out.gguf")
    records = [record for record in file.tensors.values() if record.group_size]
    assert len({record.bits for record in records}) > 1
    bits = sum(Layout(r.bits, r.group_size, r.kind.name).bits_per_weight * r.n_weights for r in records)
    assert 2.5 < bits / sum(r.n_weights for r in records) <= 3.0
    assert file.provenance["method"] == "allocate, calibrate, correct, feedback, refine"
    assert file.provenance["calibration.files"] == ["text.jsonl", "more.jsonl"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("ffn_down", "write REGEX=BITS"),
        ("ffn_down=5", "write REGEX=BITS"),
        ("ffn_down=3g100", "write REGEX=BITS"),
        ("=3", "write REGEX=BITS"),
        ("(=3", "is not a regular expression"),
    ],
)
def test_malformed_tensor_types_are_refused(entry, message):
    with pytest.raises(ElutqError, match=message):
        Recipe(tensor_types=(entry,))


def test_tensor_types_apply_in_order_to_every_matrix():
    types = ("attn=3", r"^blk\.1\.=4g32", "^output$=16", "token_embd=2")
    with Checkpoint.open(TINY) as checkpoint:
        plan = Plan.make(checkpoint.config, Recipe(group_size=64, tensor_types=types))
        with pytest.raises(ElutqError, match=r"type blk\\.99=3 matches no matrix"):
            Plan.make(checkpoint.config, Recipe(group_size=64, tensor_types=(r"blk\.99=3",)))
    found = {entry.name: entry.layout for entry in plan.matrices()}
    assert found["model.layers.0.self_attn.q_proj.weight"] == Layout(3, 64, FREE8)
    assert found["model.layers.0.mlp.up_proj.weight"] == Layout(2, 64, FREE8)
    assert found["model.layers.1.self_attn.q_proj.weight"] == Layout(4, 32, FREE8)
    assert found["lm_head.weight"] is None
    assert found["model.embed_tokens.weight"] == Layout(2, 64, FREE8)
    assert plan.blocks[0][3].layout.bits == 3  # attn_output is no head


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a fox"}\n{"body": "b"}\n', "line 2 has no field text that is a string"),
        ('{"text": 3}\n', "line 1 has no field text"),
        ('{"text": "a"}\nfox\n', "line 2 is not JSON"),
        ("\n\n", "has 0 tokens"),
    ],
)
def test_malformed_jsonl_is_refused(tmp_path, content, message):
    path = tmp_path / "text.jsonl"
    path.write_text(content)
    with Checkpoint.open(TINY) as checkpoint, pytest.raises(ElutqError, match=message):
        CalibrationText.read([path], checkpoint, RECIPE)
