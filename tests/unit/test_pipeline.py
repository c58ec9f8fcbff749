"""The driver: what it makes of checkpoints and texts, what it records, and what it refuses."""

import hashlib
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import TEXT, needs_rounded_products
from recorded_errors import assert_recorded_errors_are_true, check_recorded_error
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from elutq_cli.app import app
from elutq_cli.evaluation import evaluate, split_windows
from elutq_cli.pipeline.compute import products
from elutq_cli.pipeline.compute.backend import native_backend, numpy_backend
from elutq_cli.pipeline.compute.inner_loops import NumpyLoops
from elutq_cli.pipeline.layout import FREE8, Layout
from elutq_cli.pipeline.progress import Progress
from elutq_cli.pipeline.recipe import Recipe
from elutq_cli.pipeline.run.calibration_text import CalibrationText
from elutq_cli.pipeline.run.quantize import quantize
from elutq_cli.pipeline.stages.fit import fit
from elutq_cli.pipeline.stages.rotate import RotatedCheckpoint
from elutq_cli.reference import Transformer
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.errors import ElutqError
from elutq_formats.folder_texts import card_license, read_card
from elutq_formats.model_file import ModelFile
from elutq_formats.tokenizer import Tokenizer

DATA = Path(__file__).parent.parent / "data"
GOLDEN = sorted(path for path in (DATA / "golden").iterdir() if path.is_dir())
NEMO = DATA / "golden" / "mistral-nemo"  # 16 columns in its output projections: too few for any group
TIED = DATA / "golden" / "llama32-tied-head-dim"
UNTIED = DATA / "golden" / "llama1-mha"

SMALL = Recipe(bits=3, group_size=32, num_samples=6, sequence_length=24, method="correct")
ALONE = Recipe(bits=3, group_size=32)


@pytest.fixture(scope="module")
def backend():
    with native_backend(2, rounds=False) as native:
        yield native


def read_text(path, checkpoint, recipe=SMALL):
    return CalibrationText.read([path], checkpoint, recipe)


def run(folder, output, backend, recipe=None, text=None, **options):
    """Quantize; on a text with SMALL, without one with ALONE, unless another recipe is given."""
    recipe = recipe or (ALONE if text is None else SMALL)
    with Checkpoint.open(folder) as checkpoint:
        calibration = None if text is None else read_text(text, checkpoint, recipe)
        return quantize(checkpoint, output, recipe, calibration, backend, **options)


def damaged_copy(folder, target, change):
    """Copy a one-file checkpoint and change its tensors."""
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors")
    return target


def test_a_group_that_does_not_divide_is_refused_with_one_that_does(tmp_path, backend):
    with pytest.raises(ElutqError) as caught:
        run(UNTIED, tmp_path / "out.gguf", backend, Recipe(group_size=128))
    message = str(caught.value)
    assert "groups of 128 do not divide the 32 columns of model.embed_tokens.weight: use groups of 32" in message
    assert list(tmp_path.iterdir()) == []
    # 16-bit embedding and head have no groups: only the linears count.
    with pytest.raises(ElutqError, match=r"model\.layers\.0\.self_attn\.q_proj\.weight: use groups of 32"):
        run(UNTIED, tmp_path / "out.gguf", backend, Recipe(output_bits=16, embedding_bits=16))
    with pytest.raises(ElutqError, match=r"the 16 columns of .*o_proj\.weight: no supported group size fits"):
        run(NEMO, tmp_path / "out.gguf", backend, ALONE)


class Tally(Progress):
    """Adds up what a run says of its progress."""

    total = done = 0

    def begin(self, total, unit):
        self.total += total

    def advance(self, amount):
        self.done += amount


@pytest.mark.parametrize("calibrated", [False, True], ids=["weights only", "calibrated"])
@pytest.mark.parametrize("folder", [path for path in GOLDEN if path != NEMO], ids=lambda folder: folder.name)
def test_every_family_becomes_a_file_close_to_the_checkpoint(tmp_path, backend, folder, calibrated, text):
    output = tmp_path / "out.gguf"
    recipe = replace(SMALL if calibrated else ALONE, bits=4, embedding_bits=16, output_bits=4)
    progress = Tally()
    summary = run(folder, output, backend, recipe, text if calibrated else None, progress=progress)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gguf", "text.txt"]
    file = ModelFile.open(output)
    with Checkpoint.open(folder) as checkpoint:
        kept = checkpoint.config.float_names()
        n_weights = sum(np.prod(shape) for name, shape in checkpoint.config.tensor_shapes().items() if name not in kept)
        if checkpoint.config.tie_word_embeddings:  # stored apart here: its bits are others
            n_weights += checkpoint.config.vocab_size * checkpoint.config.hidden_size
        assert progress.done == progress.total == n_weights
        assert file.tokenizer_json == checkpoint.tokenizer_json
        for name, shape in checkpoint.config.tensor_shapes().items():
            original, stored = checkpoint.load(name), file.load(name)
            assert stored.shape == shape
            relative = np.linalg.norm(stored - original) / np.linalg.norm(original)
            # Feedback moves weights away from the original on purpose, to keep the outputs close.
            largest = 0.5 if calibrated else 0.15
            assert relative < (1e-6 if name in kept else largest)
    assert summary.size_bytes == output.stat().st_size
    assert summary.bits_per_weight == pytest.approx(file.bits_per_weight())
    assert file.tensors["output.weight"].bits == 4
    assert file.tensors["token_embd.weight"].bits == 16
    for name, error in summary.errors.items():
        assert 0.0 < error < 0.15
        assert file.tensors[name].error == pytest.approx(error)


def test_the_file_says_how_it_was_made(tmp_path, backend, text):
    run(UNTIED, tmp_path / "out.gguf", backend, SMALL, text)
    file = ModelFile.open(tmp_path / "out.gguf")
    assert file.name == "llama1-mha"
    assert file.provenance["source"] == "llama1-mha"
    assert file.provenance["method"] == "calibrate, correct, feedback, refine"
    assert json.loads(file.provenance["recipe"]) == {
        "bits": 3,
        "group_size": 32,
        "scale_bits": 8,
        "output_bits": 4,
        "embedding_bits": 4,
        "num_samples": 6,
        "sequence_length": 24,
        "seed": 0,
        "damping": 0.3,
        "method": "correct",
        "tune": [],
        "tune_tokens": None,
        "tune_minutes": None,
        "rotate": False,
        "target_bpw": None,
        "tensor_types": [],
    }
    assert file.provenance["calibration.files"] == ["text.txt"]
    assert file.provenance["calibration.sha256"] == [hashlib.sha256(TEXT.encode()).hexdigest()]
    assert file.provenance["calibration.samples"] == 6
    assert file.provenance["calibration.sequence_length"] == 24


@pytest.mark.parametrize(
    "options",
    [
        {"method": "fit"},
        {"method": "feedback"},
        {"method": "correct"},
        {"method": "correct", "rotate": True},
        {"method": None, "tensor_types": ("blk.1.attn=16",)},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_recorded_errors_are_against_the_checkpoints_weights(tmp_path, backend, text, options):
    recipe = replace(SMALL, output_bits=3, **options)
    for folder in (UNTIED, TIED):
        run(folder, tmp_path / "out.gguf", backend, recipe, text, force=True)
        with Checkpoint.open(folder) as checkpoint:
            weights = RotatedCheckpoint(checkpoint, recipe.seed) if recipe.rotate else checkpoint
            tokens = read_text(text, checkpoint, recipe).tokens
            corrected = recipe.resolved(calibrated=True).corrects
            assert_recorded_errors_are_true(tmp_path / "out.gguf", weights, tokens, corrected=corrected)
    run(UNTIED, tmp_path / "alone.gguf", backend)
    with Checkpoint.open(UNTIED) as checkpoint:
        file = ModelFile.open(tmp_path / "alone.gguf")
        for name in ("model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"):
            check_recorded_error(file, checkpoint, name, None)


def test_fit_with_a_text_weighs_columns_by_the_diagonal_of_the_hessian(tmp_path, backend, text):
    recipe = replace(SMALL, bits=2, method="fit", embedding_bits=16, output_bits=2)
    run(UNTIED, tmp_path / "out.gguf", backend, recipe, text)
    file = ModelFile.open(tmp_path / "out.gguf")
    assert file.provenance["method"] == "calibrate, fit"
    assert json.loads(file.provenance["recipe"])["method"] == "fit"
    model = Transformer(file)
    with Checkpoint.open(UNTIED) as checkpoint:
        tokens = read_text(text, checkpoint, recipe).tokens
        for layer, linear in ((0, "self_attn.k_proj"), (1, "mlp.down_proj")):
            name, inputs = f"model.layers.{layer}.{linear}.weight", {}
            x = model.embed(tokens)
            for block in list(model.blocks())[: layer + 1]:
                x = block(x, observe=inputs.__setitem__)
            shared = next(linears[0] for linears in block.data.shared_inputs if linear in linears)
            columns = inputs[shared].reshape(-1, inputs[shared].shape[-1])
            weights = checkpoint.load(name)
            found = file.load(name)
            layout, grid = Layout(2, 32, FREE8).settle([weights])
            hessian = columns.T @ columns / np.float32(len(columns))
            expected = fit(weights, hessian, layout, backend, grid).dequantize()
            plain = fit(weights, None, layout, backend, grid).dequantize()
            assert (found == expected).mean() > 0.99  # sums in another order may move a level by a bit
            assert (found == plain).mean() < 0.9


def test_the_method_follows_from_the_text(tmp_path, backend, text):
    run(UNTIED, tmp_path / "with.gguf", backend, replace(SMALL, method=None), text)
    run(UNTIED, tmp_path / "without.gguf", backend)
    found = [json.loads(ModelFile.open(tmp_path / f"{name}.gguf").provenance["recipe"]) for name in ("with", "without")]
    assert [recipe["method"] for recipe in found] == ["allocate", "fit"]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        *(({"method": method}, f"method {method}") for method in ("feedback", "refine", "correct", "allocate")),
        ({"num_samples": 16}, "a number of samples"),
        ({"sequence_length": 64}, "a sequence length"),
        ({"damping": 0.01}, "damping"),
        ({"tune": ("e2e",)}, "tuning"),
        ({"target_bpw": 3.0}, "a target of bits per weight"),
    ],
)
def test_what_only_a_text_can_honour_is_refused_without_one(tmp_path, backend, options, what):
    with pytest.raises(ElutqError, match=f"^{what} needs a text to calibrate on: add one .--calibration.$"):
        run(UNTIED, tmp_path / "out.gguf", backend, replace(ALONE, **options))
    assert list(tmp_path.iterdir()) == []


def test_a_snapshot_of_the_hub_is_named_after_its_repository(tmp_path, backend):
    snapshot = tmp_path / "models--someone--tiny" / "snapshots" / "0123abcd"
    shutil.copytree(UNTIED, snapshot)
    run(snapshot, tmp_path / "out.gguf", backend)
    provenance = ModelFile.open(tmp_path / "out.gguf").provenance
    assert (provenance["source"], provenance["source_revision"]) == ("someone/tiny", "0123abcd")


@pytest.mark.parametrize("calibrated", [False, True], ids=["weights only", "calibrated"])
def test_the_same_run_gives_the_same_file_with_any_backend(tmp_path, backend, text, calibrated):
    with native_backend(1, rounds=False) as one, native_backend(3, rounds=False) as three:
        used = {"two": backend, "again": backend, "one": one, "three": three, "numpy": numpy_backend()}
        for name, chosen in used.items():
            run(TIED, tmp_path / name, chosen, text=text if calibrated else None)
    assert len({(tmp_path / name).read_bytes() for name in used}) == 1


@needs_rounded_products
def test_threads_do_not_change_a_file_whose_activations_were_rounded(tmp_path, text):
    for threads in (1, 3):
        with native_backend(threads, rounds=True) as backend:
            run(TIED, tmp_path / str(threads), backend, SMALL, text)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "3").read_bytes()


def test_a_tall_matrix_goes_through_the_stages_in_parts(tmp_path, backend, text, monkeypatch):
    whole = run(UNTIED, tmp_path / "whole.gguf", backend, SMALL, text)
    monkeypatch.setattr(products, "ROWS_AT_ONCE", 24)
    parts = run(UNTIED, tmp_path / "parts.gguf", backend, SMALL, text)
    assert (
        ModelFile.open(tmp_path / "parts.gguf").tensors.keys() == ModelFile.open(tmp_path / "whole.gguf").tensors.keys()
    )
    assert parts.errors == {name: pytest.approx(error, rel=0.01) for name, error in whole.errors.items()}


def test_a_rotated_model_predicts_the_same(tmp_path, backend, text):
    recipe = replace(SMALL, bits=4, embedding_bits=16, output_bits=16)
    tokens = np.arange(20)
    with Checkpoint.open(TIED) as checkpoint:
        expected = Transformer(checkpoint).logits(tokens)
    distance = {}
    for rotate in (False, True):
        output = tmp_path / f"{rotate}.gguf"
        summary = run(TIED, output, backend, replace(recipe, rotate=rotate), text)
        file = ModelFile.open(output)
        distance[rotate] = np.abs(Transformer(file).logits(tokens) - expected).max()
        assert file.provenance["method"].startswith("rotate, calibrate" if rotate else "calibrate")
        assert summary.size_bytes == output.stat().st_size
    assert distance[True] < 2 * distance[False]


def test_a_tied_head_is_stored_once_or_as_often_as_it_has_bits(tmp_path, backend, text):
    run(TIED, tmp_path / "shared.gguf", backend, SMALL, text)
    assert "output.weight" not in ModelFile.open(tmp_path / "shared.gguf").tensors
    run(TIED, tmp_path / "apart.gguf", backend, Recipe(bits=3, group_size=32, output_bits=3), None)
    apart = ModelFile.open(tmp_path / "apart.gguf")
    assert apart.tensors["output.weight"].bits == 3
    assert not apart.config.tie_word_embeddings


def test_a_head_that_config_json_did_not_expect_is_told_and_recorded(tmp_path, backend, caplog):
    folder = shutil.copytree(UNTIED, tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    with caplog.at_level(logging.WARNING):
        run(folder, tmp_path / "out.gguf", backend)
    file = ModelFile.open(tmp_path / "out.gguf")
    assert "output.weight" in file.tensors
    (note,) = file.provenance["notes"]
    assert "but another is stored (lm_head.weight)" in note
    assert note in caplog.text
    assert CliRunner().invoke(app, ["info", str(file.path), "--no-measure"]).stdout.count(note) == 1


@pytest.fixture(scope="module")
def novels_kl(tmp_path_factory, backend):
    """Quantize the trained checkpoint and measure KL divergence from it, on text it was not calibrated on."""
    folder, sampled = DATA / "novels-6m", (DATA / "sampled.txt").read_text(encoding="utf-8")
    half = sampled.index("\n", len(sampled) // 2)
    calibration_file = tmp_path_factory.mktemp("novels") / "text.txt"
    calibration_file.write_text(sampled[:half], encoding="utf-8")

    def measure(recipe, calibrated):
        output = calibration_file.with_suffix(".gguf")
        summary = run(folder, output, backend, recipe, calibration_file if calibrated else None, force=True)
        with Checkpoint.open(folder) as checkpoint:
            tokenizer = Tokenizer.from_json(checkpoint.tokenizer_json, checkpoint.config)
            windows = split_windows(tokenizer.encode(sampled[half:]), 128, 10)
            result = evaluate(Transformer(ModelFile.open(output)), windows, Transformer(checkpoint))
        return result.kl, summary

    return measure


def test_accuracy_on_the_trained_checkpoint(novels_kl):
    options = {"output_bits": 16, "embedding_bits": 16}
    plain, summary = novels_kl(Recipe(bits=2, **options), calibrated=False)
    options |= {"num_samples": 24, "sequence_length": 128}
    weighted, _ = novels_kl(Recipe(bits=2, **options, method="fit"), calibrated=True)
    options["method"] = "correct"
    calibrated, _ = novels_kl(Recipe(bits=2, **options), calibrated=True)
    three_bits, _ = novels_kl(Recipe(bits=3, **options), calibrated=True)
    print(f"KL: 2 bits {plain:.4f}, weighted {weighted:.4f}, calibrated {calibrated:.4f}, 3 bits {three_bits:.4f}")
    assert plain < 0.095
    assert calibrated < weighted < 0.98 * plain
    assert calibrated < 0.75 * plain
    assert three_bits < 0.3 * calibrated
    assert 0.25 < np.mean(list(summary.errors.values())) < 0.36  # a normal distribution's: 0.34 with even levels


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e5])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "model.embed_tokens.weight"])
def test_impossible_weights_are_refused_by_name(tmp_path, backend, text, name, value):
    def change(tensors):
        tensors[name] = tensors[name].astype(np.float32)
        tensors[name][3, 5] = value

    folder = damaged_copy(UNTIED, tmp_path / "checkpoint", change)
    for calibration in (None, text):
        with pytest.raises(ElutqError, match=name.replace(".", r"\.")):
            run(folder, tmp_path / "out.gguf", backend, text=calibration, resume=False)
    assert not (tmp_path / "out.gguf").exists()


def test_activations_that_overflow_are_refused_by_name(tmp_path, backend, text):
    def change(tensors):
        name = "model.layers.0.mlp.up_proj.weight"
        tensors[name] = tensors[name].astype(np.float32) * 0 + 6e4
        name = "model.layers.0.post_attention_layernorm.weight"
        tensors[name] = tensors[name].astype(np.float32) * 0 + 1e20

    folder = damaged_copy(UNTIED, tmp_path / "checkpoint", change)
    with pytest.raises(ElutqError, match=r"blk\.0\.ffn_gate\.weight: activations overflow"), np.errstate(all="ignore"):
        run(folder, tmp_path / "out.gguf", backend, SMALL, text)
    assert not (tmp_path / "out.gguf").exists()


def test_an_existing_file_stays_unless_forced(tmp_path, backend):
    output = tmp_path / "out.gguf"
    output.write_bytes(b"precious")
    with pytest.raises(ElutqError, match="--force"):
        run(UNTIED, output, backend)
    assert output.read_bytes() == b"precious"

    class Failing(NumpyLoops):
        def fit_groups(self, *arguments):
            raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError):
        run(UNTIED, output, numpy_backend(Failing()), force=True)
    assert output.read_bytes() == b"precious"
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]
    run(UNTIED, output, backend, force=True)
    assert ModelFile.open(output).tensors


@pytest.mark.parametrize(
    ("readme", "found"),
    [
        (b"---\nlicense: mit\n---\n", "mit"),
        (b"---\nlanguage: en\nlicense: other\nlicense_name: llama3\n---\n", "llama3"),
        (b"---\nlicense: other\n---\n", "other"),
        (b"---\nlicense: [a, b]\n---\n", None),
        (b"---\nlicense: [\n---\n", None),
        (b"---\n- license\n---\n", None),
        (b"license: mit", None),
        (b"\xff\xfe", None),
        (None, None),
    ],
)
def test_the_licence_is_the_one_in_the_front_matter_of_the_readme(tmp_path, readme, found):
    if readme is not None:
        (tmp_path / "README.md").write_bytes(readme)
    assert card_license(read_card(tmp_path)) == found
