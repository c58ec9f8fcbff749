"""Tuning by gradients: block reconstruction, end-to-end tuning, and the runs around them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from recorded_errors import assert_recorded_errors_are_true

from elutq_cli.evaluation import log_softmax
from elutq_cli.pipeline.compute.backend import native_backend
from elutq_cli.pipeline.layout import FREE8, Layout
from elutq_cli.pipeline.progress import Progress
from elutq_cli.pipeline.recipe import Recipe
from elutq_cli.pipeline.run.calibration_text import CalibrationText
from elutq_cli.pipeline.run.quantize import quantize
from elutq_cli.pipeline.stages.fit import fit
from elutq_cli.pipeline.stages.streams import compared_sequences
from elutq_cli.reference import Block, Transformer, block_tensor_names
from elutq_formats.block_kind import FREE16, BlockKind
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.errors import ElutqError
from elutq_formats.hlq import HLQTensor
from elutq_formats.model_file import ModelFile
from elutq_formats.names import gguf_name

DATA = Path(__file__).parent.parent / "data"
NOVELS = DATA / "novels-6m"
TINY = DATA / "golden" / "llama2-gqa-sharded"
QWEN3 = DATA / "golden" / "qwen3"
SAMPLED = DATA / "sampled.txt"
KINDS = [FREE16, BlockKind("free8", 10)]
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "some", "walls"]

torch = pytest.importorskip("torch", reason="tuning needs torch: pip install 'elutq[torch]'")

from elutq_cli.pipeline.compute.torch_device import prepare_torch  # noqa: E402
from elutq_cli.pipeline.stages.tune import block as block_tuning  # noqa: E402
from elutq_cli.pipeline.stages.tune import descent, end_to_end  # noqa: E402


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Few steps, on one thread."""
    prepare_torch("cpu", 1, "--tune")
    monkeypatch.setattr(block_tuning, "BIT_RATE", 0.06)
    monkeypatch.setattr(block_tuning, "BLOCK_STEPS", 21)
    monkeypatch.setattr(block_tuning, "BLOCK_TOKENS", 8 * 24)
    monkeypatch.setattr(end_to_end, "LEVEL_RATE", 3e-3)
    monkeypatch.setattr(end_to_end, "STEP_TOKENS", 8 * 24)


@pytest.fixture(scope="module")
def backend():
    with native_backend(1, rounds=False) as native:
        yield native


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(np.random.default_rng(0).choice(WORDS, 3000)))
    return path


def recipe(tune=(), **options):
    options |= {"tune_tokens": 21 * 8 * 24} if "e2e" in tune else {}
    return Recipe(group_size=32, num_samples=64, sequence_length=24, method="feedback", tune=tune, **options)


def run(output, text, backend, options, folder=TINY, progress=None):
    with Checkpoint.open(folder) as checkpoint:
        calibration = CalibrationText.read([text], checkpoint, options)
        return calibration, quantize(checkpoint, output, options, calibration, backend, progress=progress)


# ---- a block


def spoilt(tensor):
    """Make a matrix's levels half again as wide as they should be."""
    wide = tensor.kind.round_half_scales(1.5 * tensor.half_scales.astype(np.float32))
    return HLQTensor(wide, tensor.centers, tensor.codes, tensor.group_size, tensor.kind)


def fitted(weights, backend):
    layout, grid = Layout(2, 32, FREE8).settle([weights])
    return fit(weights, None, layout, backend, grid)


@pytest.mark.parametrize("sink", [False, True], ids=["even", "with a sink"])
@pytest.mark.parametrize("unseen", [False, True], ids=["some held out", "others unseen"])
@pytest.mark.parametrize("folder", [TINY, QWEN3], ids=lambda folder: folder.name)
def test_a_tuned_block_is_nearer_to_the_exact_one(folder, unseen, sink, backend):
    """Also where the first token of every sequence is so large that it would be all that an unweighted error sees."""
    with Checkpoint.open(folder) as checkpoint:
        config = checkpoint.config
        weights = {name: checkpoint.load(f"model.layers.1.{name}") for name in block_tensor_names(config, 1)}
    exact = Block(config, 1, weights)
    linears = [name for name in weights if name.endswith("proj.weight") and weights[name].shape[1] % 32 == 0]
    matrices = {name: spoilt(fitted(weights[name], backend)) for name in linears}
    rough = Block(config, 1, weights | {name: matrix.dequantize() for name, matrix in matrices.items()})
    outputs_of = np.random.default_rng(4).normal(size=(64, 24, config.hidden_size)).astype(np.float32)
    noise = 0.02 * np.random.default_rng(5).normal(size=outputs_of.shape).astype(np.float32)
    if sink:
        outputs_of[:, 0] *= 1000
        noise[:, 0] *= 50 * 1000
    inputs = outputs_of + noise
    outputs = np.asarray(exact(outputs_of))
    if unseen:
        calibration, held_out = (inputs[:56], outputs[:56]), (inputs[56:], outputs[56:])
        judged = held_out
    else:
        calibration, held_out = (inputs, outputs), None
        _, judges = descent.split_sequences(len(inputs))
        judged = inputs[judges], outputs[judges]

    def held_out_error(tensors):
        block = Block(config, 1, weights | {name: tensor.dequantize() for name, tensor in tensors.items()})
        errors, sizes = (np.square(part).sum(axis=-1) for part in (np.asarray(block(judged[0])) - judged[1], judged[1]))
        return np.sqrt((errors / sizes).mean())

    tuned = block_tuning.tune_block(rough, matrices, calibration, held_out, 0, "cpu")
    assert tuned.before == pytest.approx(held_out_error(matrices), rel=1e-4)
    assert tuned.after == pytest.approx(held_out_error(tuned.matrices), rel=1e-4)
    assert tuned.after < 0.9 * tuned.before
    assert any((tuned.matrices[name].codes != matrices[name].codes).any() for name in linears)


def test_a_block_that_cannot_gain_stays_as_it_was(backend):
    with Checkpoint.open(TINY) as checkpoint:
        weights = {name: checkpoint.load(f"model.layers.0.{name}") for name in block_tensor_names(checkpoint.config, 0)}
        name = "mlp.down_proj.weight"
        matrices = {name: fitted(weights[name], backend)}
        block = Block(checkpoint.config, 0, weights | {name: matrices[name].dequantize()})
    inputs = np.random.default_rng(6).normal(size=(8, 24, checkpoint.config.hidden_size)).astype(np.float32)
    tuned = block_tuning.tune_block(block, matrices, (inputs, np.asarray(block(inputs))), None, 0, "cpu")
    assert tuned.after == tuned.before
    assert tuned.matrices[name] is matrices[name]


# ---- whole runs


def kl(output, folder, tokens):
    """KL(exact || quantized) on sequences, with the numpy transformer."""
    with Checkpoint.open(folder) as checkpoint:
        expected = log_softmax(Transformer(checkpoint).logits(tokens))
    found = log_softmax(Transformer(ModelFile.open(output)).logits(tokens))
    return float((np.exp(expected) * (expected - found)).sum(axis=-1).mean())


@pytest.mark.parametrize("folder", [TINY, QWEN3], ids=lambda folder: folder.name)
def test_tuning_lowers_the_divergence_and_is_recorded(tmp_path, text, backend, caplog, folder):
    divergence = {}
    caplog.set_level("INFO")
    for tune in ((), ("block",), ("e2e",), ("block", "e2e")):
        output = tmp_path / f"{'-'.join(tune)}.gguf"
        calibration, summary = run(output, text, backend, recipe(tune=tune), folder)
        divergence[tune] = kl(output, folder, calibration.held_out)
        assert summary.kl_unseen == pytest.approx(divergence[tune], rel=1e-3)
        seen = calibration.tokens[compared_sequences(len(calibration.tokens))]
        assert summary.kl_seen == pytest.approx(kl(output, folder, seen), rel=1e-3)
        provenance = ModelFile.open(output).provenance
        assert json.loads(provenance["recipe"])["tune"] == list(tune)
        stages = {"block": "block reconstruction", "e2e": "end-to-end tuning"}
        assert provenance["method"] == ", ".join(["calibrate", "feedback", *(stages[name] for name in tune)])
    assert divergence["e2e",] < 0.95 * divergence[()]
    assert divergence["block", "e2e"] <= divergence["block",]
    measured = [record.args for record in caplog.records if record.msg.startswith("KL %.5f")]
    assert measured[0] == (pytest.approx(divergence[()], rel=1e-3),) * 2
    tuned = ModelFile.open(tmp_path / "e2e.gguf")
    plain = ModelFile.open(tmp_path / ".gguf")
    for both in (tuned, ModelFile.open(tmp_path / "block.gguf")):  # with the exponents that they had
        assert {r.name: r.kind for r in both.tensors.values()} == {r.name: r.kind for r in plain.tensors.values()}
    assert {str(r.kind) for r in tuned.tensors.values() if r.group_size} == {"free8"}
    name = gguf_name("model.layers.0.mlp.up_proj.weight")
    np.testing.assert_array_equal(tuned.hlq(name).codes, plain.hlq(name).codes)
    assert (tuned.hlq(name).half_scales != plain.hlq(name).half_scales).any()
    with Checkpoint.open(folder) as checkpoint:
        for tune in ((), ("block",), ("e2e",), ("block", "e2e")):
            output = tmp_path / f"{'-'.join(tune)}.gguf"
            calibration = CalibrationText.read([text], checkpoint, recipe(tune=tune))
            assert_recorded_errors_are_true(output, checkpoint, calibration.tokens, head="e2e" not in tune)


@pytest.mark.parametrize("tune", ["block", "e2e"])
def test_tuning_that_only_helps_on_text_it_has_seen_is_not_kept(tmp_path, text, backend, monkeypatch, tune):
    """What judges is made to be text for which the untuned model is exact."""
    run(tmp_path / "plain.gguf", text, backend, recipe())
    if tune == "block":
        tuned = block_tuning.tune_block

        def judged_by_itself(block, matrices, calibration, held_out, *more):
            return tuned(block, matrices, calibration, (held_out[0], np.asarray(block(held_out[0]))), *more)

        monkeypatch.setattr(block_tuning, "tune_block", judged_by_itself)
    else:
        monkeypatch.setattr(end_to_end.EndToEnd, "_held_out_loss", lambda self: float(len(self.losses)))
    run(tmp_path / "tuned.gguf", text, backend, recipe(tune=(tune,)))
    plain, kept = (ModelFile.open(tmp_path / f"{name}.gguf") for name in ("plain", "tuned"))
    names = [name for layer in range(plain.config.num_hidden_layers) for name in plain.config.linear_names(layer)]
    assert [plain.load(name).tolist() for name in names] == [kept.load(name).tolist() for name in names]


class StopAt(Progress):
    """Stops a run after so many calls."""

    def __init__(self, n_calls):
        self.n_calls = n_calls

    def advance(self, amount):
        self.n_calls -= 1
        if self.n_calls == 0:
            raise KeyboardInterrupt


def test_one_sequence_is_too_few_before_any_work(tmp_path, text, backend):
    options, short = replace(recipe(tune=("e2e",)), num_samples=1), tmp_path / "short.txt"
    short.write_text(text.read_text()[:40])
    with pytest.raises(ElutqError, match="tuning needs 2 calibration sequences at least"):
        run(tmp_path / "out.gguf", short, backend, options, progress=StopAt(1))
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]


@pytest.mark.parametrize("tune", [("block",), ("e2e",)])
def test_a_block_that_is_left_in_float16_is_passed(tmp_path, text, backend, tune):
    options = replace(recipe(tune=tune), tensor_types=(r"^blk\.0\.=16",))
    run(tmp_path / "out.gguf", text, backend, options)
    bits = {record.bits for name, record in ModelFile.open(tmp_path / "out.gguf").tensors.items() if "blk.0." in name}
    assert bits == {16, 32}
    with pytest.raises(ElutqError, match="every linear in float16"):
        run(tmp_path / "none.gguf", text, backend, replace(options, tensor_types=("^blk=16",)))


def test_a_run_goes_on_where_it_was_stopped_and_ends_the_same(tmp_path, text, backend, monkeypatch):
    monkeypatch.setattr(end_to_end, "SAVE_SECONDS", 0.0)  # the state is on disk after every step
    options = replace(recipe(tune=("block", "e2e")), tune_tokens=10 * 8 * 24)
    run(tmp_path / "whole.gguf", text, backend, options)
    run(tmp_path / "again.gguf", text, backend, options)
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    output, units = tmp_path / "out.gguf", []
    for n_calls in (12, 18, 26, 28):  # within the second block, then after some steps each time
        with pytest.raises(KeyboardInterrupt):
            run(output, text, backend, options, progress=StopAt(n_calls))
        units.append(len(list((tmp_path / "out.gguf.work").glob("*.unit"))))
    print(f"finished units: {units}")
    assert units[1] <= 4 < units[2] < units[3]  # embedding, two blocks, head, and steps
    run(output, text, backend, options)
    assert output.read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert not (tmp_path / "out.gguf.work").exists()
