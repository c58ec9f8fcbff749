"""Experts through the stages: their Hessians, what becomes of them, and what of them is in memory."""

import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDEN
from safetensors.numpy import save_file
from typer.testing import CliRunner

from elutq_cli.app import app
from elutq_cli.commands.info import tensor_lines
from elutq_cli.pipeline.compute.backend import native_backend, numpy_backend
from elutq_cli.pipeline.layout import Layout
from elutq_cli.pipeline.recipe import Recipe
from elutq_cli.pipeline.run import preparation
from elutq_cli.pipeline.run.calibration_text import CalibrationText
from elutq_cli.pipeline.run.quantize import quantize
from elutq_cli.pipeline.run.spool import Spool
from elutq_cli.pipeline.stages.calibrate import block_statistics
from elutq_cli.pipeline.stages.checked_weights import CheckedWeights
from elutq_cli.pipeline.stages.experts import Routes, shrunk
from elutq_cli.pipeline.stages.feedback import feedback, inverse_factor
from elutq_cli.pipeline.stages.fit import fit
from elutq_cli.pipeline.stages.refine import refine
from elutq_cli.pipeline.stages.streams import run_block
from elutq_cli.reference import Transformer, transformer
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.errors import ElutqError
from elutq_formats.expert_names import expert_names, split_expert
from elutq_formats.model_file import ModelFile
from elutq_formats.tensor_record import STACK_DIMENSIONS, TensorRecord

MIXTURES = "qwen3-moe", "mixtral", "olmoe", "qwen2-moe"
SMALL = Recipe(bits=3, group_size=32, num_samples=6, sequence_length=24, embedding_bits=4, output_bits=4)


def run(family, output, recipe, text=None, threads=2, **options):
    with native_backend(threads, rounds=False) as backend, Checkpoint.open(GOLDEN / family) as checkpoint:
        calibration = None if text is None else CalibrationText.read([text], checkpoint, recipe)
        quantize(checkpoint, output, recipe, calibration, backend, **options)
    return ModelFile.open(output)


# ---- Hessians


def test_few_tokens_count_for_little_and_many_for_nearly_all():
    rng = np.random.default_rng(0)
    own, of_layer = (x.T @ x for x in rng.normal(size=(2, 64, 16)).astype(np.float32))
    size = np.trace(own) / np.trace(of_layer)
    np.testing.assert_allclose(shrunk(own, 16, of_layer), (own + of_layer * size) / 2, rtol=1e-5)
    np.testing.assert_allclose(shrunk(own, 8 * 16, of_layer), (8 * own + of_layer * size) / 9, rtol=1e-5)
    np.testing.assert_array_equal(shrunk(np.zeros_like(own), 0, of_layer), of_layer)
    assert np.isclose(np.trace(shrunk(own, 3, of_layer)), np.trace(own), rtol=1e-5)
    assert np.isnan(shrunk(own * np.nan, 5, of_layer)).any()  # to be refused by name


def statistics_of(family, n_sequences=8):
    """Each expert's weights, Hessian and factor, of the last layer, on random tokens."""
    with Checkpoint.open(GOLDEN / family) as checkpoint:
        model = Transformer(checkpoint)
        tokens = np.random.default_rng(1).integers(0, checkpoint.config.vocab_size, (n_sequences, 24))
        hidden, backend = model.embed(tokens), numpy_backend()
        for block in model.blocks():
            found = block_statistics(block, hidden, None, backend)
            for linears, statistics in found:
                if block.layer == checkpoint.config.num_hidden_layers - 1 and split_expert(linears[0]):
                    factor = inverse_factor(statistics.hessian, 0.3, backend)
                    for linear in linears:
                        yield linear, block.weight(linear), statistics.hessian, factor


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("family", MIXTURES)
def test_no_expert_has_more_error_under_its_hessian_than_from_its_weights_alone(family, bits):
    n_experts = 0
    with native_backend(2, rounds=False) as backend:
        for linear, weights, hessian, factor in statistics_of(family):
            layout, kind = Layout(bits, 32, "free8").settle([weights])
            start = feedback(weights, factor, layout, backend, kind)
            calibrated = refine(weights, hessian, start, 0.3, backend, kind)
            alone = fit(weights, None, layout, backend, kind)
            differences = [tensor.dequantize() - weights for tensor in (calibrated, alone)]
            errors = [float(((difference @ hessian) * difference).sum()) for difference in differences]
            assert errors[0] <= errors[1], linear
            n_experts += 1
    with Checkpoint.open(GOLDEN / family) as checkpoint:
        assert n_experts == 3 * checkpoint.config.n_experts


def test_the_log_says_how_many_experts_saw_few_tokens(tmp_path, text, caplog):
    with caplog.at_level(logging.INFO):
        run("olmoe", tmp_path / "out.gguf", replace(SMALL, method="correct"), text)
    (line,) = (record.message for record in caplog.records if "fewer tokens than columns" in record.message)
    assert line.startswith("blk.0: ")
    assert "of 6 experts saw fewer tokens than columns (32), the fewest " in line
    routes = Routes(tuple(np.arange(n) for n in (40, 32, 31, 0)), ())
    assert routes.describe(32) == "2 of 4 experts saw fewer tokens than columns (32), the fewest 0"


# ---- streams


@pytest.mark.parametrize("family", MIXTURES)
def test_streams_pass_the_experts_of_their_own_model(family):
    """The exact model's those of the checkpoint, whatever the others become; held out ones as a block runs them."""
    with Checkpoint.open(GOLDEN / family) as checkpoint:
        model = Transformer(checkpoint)
        block = model.block(checkpoint.config.num_hidden_layers - 1)
        tokens = np.random.default_rng(1).integers(0, checkpoint.config.vocab_size, (5, 24))
        start, backend = model.embed(tokens), numpy_backend()
    held_out, hidden, exact, changed = start.copy(), start.copy(), start.copy(), block.copy()
    run_block(block, held_out, backend)
    wanted = block(start)
    np.testing.assert_allclose(held_out, wanted, rtol=1e-4, atol=1e-5)
    for linears, _ in block_statistics(block, hidden, exact, backend):
        for linear in linears:
            block.weights[f"{linear}.weight"] = changed.weights[f"{linear}.weight"] = 0.5 * block.weight(linear)
    np.testing.assert_allclose(exact, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(hidden, changed(start), rtol=1e-4, atol=1e-5)
    assert np.abs(hidden - exact).max() > 0.01


# ---- files


@pytest.mark.parametrize("family", MIXTURES)
def test_all_experts_of_a_stack_share_what_was_allocated_to_it(family, tmp_path, text):
    recipe = replace(SMALL, target_bpw=3.6)
    file = run(family, tmp_path / "out.gguf", recipe, text)
    shapes = file.config.tensor_shapes()
    assert all(file.load(name).shape == shape for name, shape in shapes.items())
    stacks = {name: record for name, record in file.tensors.items() if record.n_experts is not None}
    assert len(stacks) == 3 * sum(file.config.has_experts(layer) for layer in range(file.config.num_hidden_layers))
    assert all(0.0 < record.error < 0.6 for record in stacks.values())
    weights = [record for record in file.tensors.values() if record.name.startswith("blk.") and record.bits <= 16]
    sizes = [Layout(of.bits, of.group_size, of.kind.name).bits_per_weight * of.n_weights for of in weights]
    assert 3.3 < sum(sizes) / sum(record.n_weights for record in weights) <= 3.6


@pytest.mark.parametrize("factor", [0.0, 1e-6])
def test_an_expert_unlike_the_others_has_the_layouts_of_its_stack(factor, tmp_path, text):
    """Alone it could have float16 scales only, the others only bytes."""
    folder = shutil.copytree(GOLDEN / "olmoe", tmp_path / "model")
    with Checkpoint.open(folder) as checkpoint:
        weights = {name: checkpoint.load(name) for name in checkpoint.names}
    weights = {
        own: part
        for name, of in weights.items()
        for own, part in (zip(expert_names(name, len(of)), of, strict=True) if of.ndim == 3 else [(name, of)])
    }
    for name in weights:
        weights[name] = weights[name] * np.float32(factor) if ".experts.0." in name else weights[name]
    save_file(weights, folder / "model.safetensors")
    file = run(folder, tmp_path / "out.gguf", replace(SMALL, bits=2, method=None), text)
    kinds = {record.kind.name for record in file.tensors.values() if record.n_experts is not None}
    assert "free16" not in kinds


@pytest.mark.parametrize("family", ["qwen3-moe", "qwen2-moe"])
def test_threads_and_weights_read_one_by_one_change_no_byte(family, tmp_path, text, monkeypatch):
    contents = set()
    for threads, stack_bytes in ((1, transformer.STACK_BYTES), (3, 0)):
        monkeypatch.setattr(transformer, "STACK_BYTES", stack_bytes)
        run(family, tmp_path / "out.gguf", replace(SMALL, method=None), text, threads, force=True)
        contents.add((tmp_path / "out.gguf").read_bytes())
    assert len(contents) == 1


@pytest.mark.parametrize("method", ["correct", "fit", None])
def test_of_a_stack_one_expert_is_read_at_a_time(method, tmp_path, text, monkeypatch):
    monkeypatch.setattr(transformer, "STACK_BYTES", 0)
    read, load = [], CheckedWeights.load

    def watched(self, name, rows=slice(None)):
        found = load(self, name, rows)
        if found.ndim == STACK_DIMENSIONS:
            read.append(len(found))
        return found

    monkeypatch.setattr(CheckedWeights, "load", watched)
    run("qwen2-moe", tmp_path / "out.gguf", replace(SMALL, method=method), text)
    assert set(read) == {1}


def test_what_experts_add_to_streams_of_comparison_is_on_disk(tmp_path, text, monkeypatch):
    """To those that run beside: held out sequences, and the exact model's."""
    rooms, make_room = [], Spool.make_room
    monkeypatch.setattr(Spool, "make_room", lambda self, shape: rooms.append(shape) or make_room(self, shape))
    run("olmoe", tmp_path / "out.gguf", replace(SMALL, method="fit"), text)
    added = [tokens for tokens, width in (shape for shape in rooms if len(shape) == 2) if width == 32]
    assert added.count(24) >= 3  # one sequence held out, followed in both models, and one to calibrate on in the exact


def test_experts_may_stay_float16_and_rotate(tmp_path, text):
    recipe = replace(SMALL, method="correct", tensor_types=("ffn_up_exps=16",), rotate=True)
    file = run("qwen2-moe", tmp_path / "out.gguf", recipe, text)
    assert file.tensors["blk.1.ffn_up_exps.weight"].bits == 16
    assert file.tensors["blk.1.ffn_up_exps.weight"].dims == (32, 32, 5)
    tokens = np.load(GOLDEN / "qwen2-moe" / "expected.npz")
    difference = Transformer(file).logits(tokens["tokens"]) - tokens["logits"]
    assert np.linalg.norm(difference) < 0.6 * np.linalg.norm(tokens["logits"])


def test_a_stack_survives_a_run_that_was_stopped(tmp_path):
    record = TensorRecord("blk.0.ffn_up_exps.weight", 16, 4, 8, n_experts=3)
    values = np.arange(96, dtype=np.float16).reshape(3, 4, 8)
    with pytest.raises(KeyboardInterrupt), Spool(tmp_path / "out.gguf", {"a": "b"}) as spool:
        file = spool.open_stack(record.name, record.shape, np.float16)
        for number, matrix in enumerate(values):
            file.add(matrix)
            np.testing.assert_array_equal(file.read(number), matrix)
        spool.add_stack(record, file)
        spool.finish_unit()
        raise KeyboardInterrupt
    with Spool(tmp_path / "out.gguf", {"a": "b"}) as spool:
        ((found, contents),) = spool.sources()
        assert found == record
        np.testing.assert_array_equal(contents(), values)


def test_dry_run_and_info_say_how_many_experts_a_tensor_has(tmp_path):
    planned = CliRunner().invoke(app, ["quantize", str(GOLDEN / "olmoe"), "--group-size", "32", "--dry-run"]).stdout
    assert "blk.0.ffn_up_exps.weight          32 x 32      2 bits, groups of 32, free8, each of 6 experts" in planned
    shown = "\n".join(tensor_lines(run("olmoe", tmp_path / "out.gguf", Recipe(bits=2, group_size=32))))
    assert re.search(r"ffn_up_exps\.weight +6 x 32 x 32 +2 g32 free8", shown)
    assert re.search(r"ffn_gate_inp\.weight +6 x 32 +32 ", shown)


# ---- what is not done to them


@pytest.mark.parametrize(
    ("options", "calibrated", "said"),
    [
        ({"tune": ("block",)}, True, "tuning .--tune. is not for experts, as olmoe has them: leave it out"),
        ({"method": "import"}, False, "levels of experts, as olmoe has them, are not imported"),
    ],
)
def test_what_is_not_done_to_experts_is_refused_in_one_line(options, calibrated, said, text):
    recipe = Recipe(group_size=32, num_samples=6, sequence_length=24, **options)
    recipe = recipe if calibrated else Recipe(group_size=32, **options)
    with Checkpoint.open(GOLDEN / "olmoe") as checkpoint, native_backend(1) as backend:
        calibration = CalibrationText.read([Path(text)], checkpoint, recipe) if calibrated else None
        with pytest.raises(ElutqError, match=said):
            preparation.prepare(checkpoint, None, recipe, calibration, backend, None, "cpu")
