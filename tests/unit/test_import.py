"""elutq import: files of checkpoints that others have quantized, against what those stand for."""

import json
import logging
import re

import numpy as np
import pytest
from conftest import DATA, NOVELS
from quantized_folders import (
    awq_gemm_parts,
    compressed_parts,
    compressed_settings,
    gptq_parts,
    write_gptq,
    write_rounded,
)
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from elutq_cli.app import app
from elutq_cli.pipeline.compute.backend import native_backend
from elutq_cli.pipeline.recipe import IMPORT, Recipe
from elutq_cli.pipeline.run.quantize import quantize
from elutq_cli.reference import Transformer
from elutq_formats.errors import ElutqError
from elutq_formats.model_file import ModelFile
from elutq_formats.open_source import open_source
from elutq_native import Model

QUANTIZED = DATA / "quantized"
TOKENS = (np.arange(24) * 37 % 128).astype(np.int32)


def import_model(folder, output, **options):
    recipe = Recipe(method=IMPORT, **{"output_bits": 16, "embedding_bits": 16} | options)
    with open_source(folder) as source, native_backend(2) as backend:
        return quantize(source, output, recipe, None, backend)


def relative(found, expected):
    return np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean())


def logits_of(path, tokens=TOKENS):
    with Model(path) as model, model.session(len(tokens), 1, "f16") as session:
        return session.eval(tokens, all_logits=True)


@pytest.fixture(scope="module")
def gptq(tmp_path_factory):
    """A folder of 4 bits in groups of 64, with zero points."""
    folder = tmp_path_factory.mktemp("import") / "name-GPTQ"
    write_gptq(folder)
    return folder


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_runtime_computes_what_the_checkpoint_stands_for(tmp_path, bits):
    write_gptq(tmp_path / "model", bits=bits, sym=bits == 3)
    summary = import_model(tmp_path / "model", tmp_path / "model.gguf")
    assert set(summary.errors.values()) == {0.0}
    with open_source(tmp_path / "model") as source:
        expected = Transformer(source).logits(TOKENS)
    assert relative(logits_of(tmp_path / "model.gguf"), expected) < 0.01


@pytest.mark.parametrize("folder", sorted(path.name for path in QUANTIZED.iterdir()))
def test_the_runtime_computes_what_the_packages_that_wrote_a_checkpoint_say_it_stands_for(tmp_path, folder):
    """A file is off by what gptqmodel rounds to float16 alone; random weights amplify the tables' rounding."""
    summary = import_model(QUANTIZED / folder, tmp_path / "model.gguf")
    assert set(summary.errors.values()) == {0.0}
    golden = np.load(QUANTIZED / folder / "expected.npz")
    file = ModelFile.open(tmp_path / "model.gguf")
    assert relative(Transformer(file).logits(golden["tokens"]), golden["logits"]) < 1e-3
    assert relative(logits_of(tmp_path / "model.gguf", golden["tokens"]), golden["logits"]) < 0.02


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 64}, gptq_parts),
        ({"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm"}, awq_gemm_parts),
        (compressed_settings(), compressed_parts),
    ],
    ids=["gptq", "awq", "compressed-tensors"],
)
def test_logits_of_a_trained_model_are_within_one_percent_of_what_its_checkpoint_stands_for(tmp_path, settings, parts):
    write_rounded(tmp_path / "model", NOVELS, settings, parts)
    import_model(tmp_path / "model", tmp_path / "model.gguf")
    with open_source(tmp_path / "model") as source:
        expected = Transformer(source).logits(TOKENS)
    assert relative(logits_of(tmp_path / "model.gguf"), expected) < 0.01


def test_a_file_names_kind_source_and_method_and_has_the_size_of_its_source(tmp_path):
    write_gptq(tmp_path / "model", group_size=128)
    import_model(tmp_path / "model", tmp_path / "model.gguf", embedding_bits=3)
    file = ModelFile.open(tmp_path / "model.gguf")
    matrices = [record for name, record in file.tensors.items() if name.startswith("blk.") and record.group_size]
    assert {record.kind.name for record in matrices} == {"even16c"}
    assert file.provenance["method"] == "import"
    assert file.provenance["source"] == "model"
    assert "bits" not in json.loads(file.provenance["recipe"])
    assert "notes" not in file.provenance
    assert file.tensors["token_embd.weight"].bits == 3
    with open_source(tmp_path / "model") as source:
        parts = [source.quantized(name).parts for name in source.names if source.quantized(name) is not None]
        theirs = sum(len(part.read().tobytes()) for each in parts for key, part in each.items() if key[0] == "q")
        theirs += sum(part.load().size * 2 for each in parts for key, part in each.items() if key == "scales")
    assert sum(record.n_bytes for record in matrices) == pytest.approx(theirs, rel=0.01)


def test_a_quantized_folder_is_a_source_like_any_other(tmp_path, gptq, caplog):
    with open_source(gptq) as source, native_backend(2) as backend, caplog.at_level(logging.WARNING):
        quantize(source, tmp_path / "again.gguf", Recipe(bits=4, output_bits=16, embedding_bits=16), None, backend)
        expected = Transformer(source).logits(TOKENS)
    told = "its weights have 4 bits already (gptq), and what that lost stays lost: elutq import keeps their levels"
    assert [told in record.getMessage() for record in caplog.records] == [True]
    assert any(told in note for note in ModelFile.open(tmp_path / "again.gguf").provenance["notes"])
    assert relative(logits_of(tmp_path / "again.gguf"), expected) < 0.2


def test_an_imported_file_is_compared_with_its_source_by_name(tmp_path, gptq, monkeypatch):
    monkeypatch.chdir(tmp_path)
    import_model(gptq, tmp_path / "model.gguf")
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 10)
    given = ["eval", "model.gguf", "-f", "text.txt", "-c", "32", "--chunks", "2", "--json"]
    found = CliRunner().invoke(app, [*given, "--reference", str(gptq)])
    assert found.exit_code == 0, found.output
    assert found.stderr.splitlines() == [
        f"{gptq}: its weights have 4 bits already (gptq): it is taken as what they stand for"
    ]
    assert 0 <= json.loads(found.stdout)["kl"] < 1e-3


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("..", "org"),
        (".", "name-GPTQ"),
        ("split-00001-of-00002.gguf", "split"),
        ("UPPER.GGUF", "UPPER"),
        ("v1.5-Q4_0.gguf", "v1.5-Q4_0"),
        ("org/name:Q4_0-00001-of-00003.gguf", "Q4_0"),
    ],
)
def test_the_file_is_named_after_the_folder_or_the_file_without_its_part(given, named, tmp_path, monkeypatch):
    here = tmp_path / "org" / "name-GPTQ"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    named_file = here / f"{named}.elutq.gguf"
    named_file.touch()
    refused = CliRunner().invoke(app, ["import", given, "--dry-run"])
    assert f"{named_file.name} exists" in str(refused.exception), "what is there is not replaced"


def test_the_command_names_the_file_after_the_model_and_plans_it_with_dry_run(tmp_path, gptq, monkeypatch):
    monkeypatch.chdir(tmp_path)
    planned = CliRunner().invoke(app, ["import", str(gptq), "--dry-run"])
    assert planned.exit_code == 0, planned.output
    assert re.search(
        r"^blk\.1\.ffn_down\.weight +128 x 256 +4 bits, groups of 64, even16c$", planned.stdout, re.MULTILINE
    )
    assert not list(tmp_path.iterdir())
    made = CliRunner().invoke(app, ["import", str(gptq)])
    assert made.exit_code == 0, made.output
    assert made.stdout.startswith("name-GPTQ.elutq.gguf: ")
    assert [path.name for path in tmp_path.iterdir()] == ["name-GPTQ.elutq.gguf"]
    info = CliRunner().invoke(app, ["info", "name-GPTQ.elutq.gguf", "--no-measure"])
    assert "4 g64 even16c" in info.stdout


LAST = "model.layers.1.mlp.down_proj"


@pytest.mark.parametrize(
    ("part", "damage", "message"),
    [
        ("scales", lambda old: old * np.float16(np.nan), f"{LAST}: its scales holds a scale that is not finite"),
        ("scales", lambda old: old.astype(np.float32) * 1e9, f"{LAST} cannot be imported: a scale of"),
        ("g_idx", lambda old: np.roll(old, 1), f"{LAST} cannot be imported: columns of a group do not lie side"),
        ("g_idx", lambda old: old + 1, f"{LAST}: its g_idx names a group that is none of its 4"),
    ],
)
def test_nothing_stays_of_an_import_that_the_last_matrix_ends(tmp_path, part, damage, message):
    write_gptq(tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    with np.errstate(invalid="ignore"):
        tensors[f"{LAST}.{part}"] = damage(tensors[f"{LAST}.{part}"])
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    with pytest.raises(ElutqError, match=message):
        import_model(tmp_path / "model", tmp_path / "model.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 3}, "an imported checkpoint keeps its levels: it takes no bits"),
        ({"rotate": True}, "it takes no rotate"),
        ({"target_bpw": 3.0}, "a target of bits per weight needs method allocate, not import"),
        ({"tensor_types": ("ffn=3",)}, "it takes no tensor types"),
    ],
)
def test_what_would_need_stages_is_refused(options, message):
    with pytest.raises(ElutqError, match=message):
        Recipe(method=IMPORT, **options).resolved(False)
    with pytest.raises(ElutqError, match="it takes no text to calibrate on"):
        Recipe(method=IMPORT).resolved(True)


def test_a_checkpoint_that_is_not_quantized_has_nothing_to_import(tmp_path, make_model):
    with pytest.raises(ElutqError, match=r"novels-6m has no levels to keep: .*q_proj\.weight \(BF16\) are neither"):
        make_model(method=IMPORT)
