"""elutq import of ternary and binary models: what the runtime makes of the files, against what transformers does."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from ternary_folders import Q1_0, TERNARY, read_stored, write_floats, write_gguf
from test_import import TOKENS, import_model, logits_of, relative
from typer.testing import CliRunner

from elutq_cli.app import app
from elutq_cli.reference import Transformer
from elutq_formats.errors import ElutqError
from elutq_formats.model_file import ModelFile
from elutq_formats.open_source import open_source

TQ1_0, TQ2_0, Q4_0 = GGMLQuantizationType.TQ1_0, GGMLQuantizationType.TQ2_0, GGMLQuantizationType.Q4_0
SECOND = "model.layers.0.mlp.up_proj.weight"


def linear_records(path):
    records = ModelFile.open(path).tensors.values()
    return [record for record in records if record.name.startswith("blk.") and record.columns > 1]


@pytest.mark.parametrize("folder", sorted(path.name for path in TERNARY.iterdir()))
def test_the_runtime_computes_what_transformers_does_of_the_dequantized_weights(folder, tmp_path):
    summary = import_model(TERNARY / folder, tmp_path / "model.gguf")
    assert max(summary.errors.values()) < 2.0**-11
    golden = np.load(TERNARY / folder / "expected.npz")
    found = logits_of(tmp_path / "model.gguf", golden["tokens"])
    assert relative(found, golden["logits"]) < 0.01
    assert relative(found, golden["as_published"]) < 0.02  # which rounds inputs to 8 bits in its own way
    records = linear_records(tmp_path / "model.gguf")
    assert {(record.bits, record.kind.name) for record in records} == {(1 if folder == "binary" else 2, "even16")}


@pytest.mark.parametrize(
    ("kind", "ours", "theirs"),
    [(TQ2_0, 2.0625, 2.0625), (TQ1_0, 2.0625, 1.6875), (Q1_0, 1.125, 1.125), (Q4_0, 4.75, 4.5)],
)
def test_a_gguf_file_keeps_its_levels_and_of_tq2_0_and_q1_0_its_size(kind, ours, theirs, rng, tmp_path):
    write_gguf(tmp_path / "model.gguf", rng, kind)
    summary = import_model(tmp_path / "model.gguf", tmp_path / "ours.gguf")
    assert set(summary.errors.values()) == {0.0}
    with open_source(tmp_path / "model.gguf") as source:
        expected = Transformer(source).logits(TOKENS)
        stored = sum(
            piece.size for name in source.names if "_proj" in name for piece in source.quantized(name).pieces()
        )
    assert relative(logits_of(tmp_path / "ours.gguf", TOKENS), expected) < 0.01
    records = linear_records(tmp_path / "ours.gguf")
    n_weights = sum(record.n_weights for record in records)
    assert 8 * stored / n_weights == theirs
    assert 8 * sum(record.n_bytes for record in records) / n_weights == ours


def test_q4_1_keeps_its_levels_but_for_what_half_precision_rounds_of_centers(rng, tmp_path, caplog):
    """Its smallest levels are free, so its blocks are of kind free16."""
    write_gguf(tmp_path / "model.gguf", rng, Q4_0, others={"attn": "Q4_1", "ffn": "Q4_1"})
    summary = import_model(tmp_path / "model.gguf", tmp_path / "ours.gguf")
    assert 0 < max(summary.errors.values()) < 2.0**-11
    records = linear_records(tmp_path / "ours.gguf")
    assert {(record.bits, record.group_size, record.kind.name) for record in records} == {(4, 32, "free16")}
    assert 8 * sum(record.n_bytes for record in records) / sum(record.n_weights for record in records) == 6.5
    with open_source(tmp_path / "model.gguf") as source:
        expected = Transformer(source).logits(TOKENS)
    assert relative(Transformer(ModelFile.open(tmp_path / "ours.gguf")).logits(TOKENS), expected) < 1e-3
    assert relative(logits_of(tmp_path / "ours.gguf", TOKENS), expected) < 0.02
    assert "blk" not in caplog.text


@pytest.mark.parametrize("kind", ["Q5_0", "Q5_1", "Q8_0", "Q6_K", "F16", "BF16"])
def test_matrices_without_levels_to_keep_are_named_with_their_type_and_size(kind, rng, tmp_path, caplog, monkeypatch):
    write_gguf(tmp_path / "model.gguf", rng, Q4_0, others={"ffn_down": kind, "attn_v": kind})
    import_model(tmp_path / "model.gguf", tmp_path / "ours.gguf", output_bits=4)
    told = [record.getMessage() for record in caplog.records]
    named = f"token_embd (F32), blk.*.attn_v (1 of {kind}), blk.*.ffn_down (1 of {kind})"
    assert told[0] == f"float16 in the file, 0.26 MB, levels not kept: {named}"
    assert told[1].startswith("quantized anew, levels not kept: output (F32); --embedding-bits and")
    records = linear_records(tmp_path / "ours.gguf")
    assert {record.name for record in records if record.bits == 16} == {"blk.0.attn_v.weight", "blk.0.ffn_down.weight"}
    monkeypatch.chdir(tmp_path)
    planned = CliRunner().invoke(app, ["import", "model.gguf", "--dry-run", "--embedding-bits", "16"])
    assert planned.stderr.splitlines() == told


def test_a_gguf_file_none_of_whose_linears_has_levels_to_keep_is_refused_by_their_type(rng, tmp_path):
    others = {"attn": "Q8_0", "ffn": "Q8_0", "token_embd": "Q4_0"}
    write_gguf(tmp_path / "model.gguf", rng, Q4_0, others=others)
    with pytest.raises(ElutqError, match=r"has no levels to keep: weights of .*q_proj.weight \(Q8_0\) are neither"):
        import_model(tmp_path / "model.gguf", tmp_path / "ours.gguf")


def test_the_command_imports_floats_on_levels_and_info_names_their_kind(rng, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_floats(tmp_path / "bonsai", rng)
    made = CliRunner().invoke(app, ["import", "bonsai"])
    assert made.exit_code == 0, made.output
    (line,) = made.stderr.splitlines()
    assert line.startswith("quantized anew, levels not kept: token_embd (F16), output (F16); --embedding-bits")
    info = CliRunner().invoke(app, ["info", "bonsai.elutq.gguf", "--no-measure"])
    assert info.stdout.count("2 g256 even16") == 7


def test_an_embedding_on_levels_is_kept_too_and_another_is_quantized(rng, tmp_path):
    embedding = np.where(rng.random((128, 256)) < 0.5, np.float16(-0.25), np.float16(0.25))
    write_floats(tmp_path / "model", rng, changes={"model.embed_tokens.weight": embedding})
    import_model(tmp_path / "model", tmp_path / "model.gguf", output_bits=4)
    tensors = ModelFile.open(tmp_path / "model.gguf").tensors
    assert [(tensors[name].bits, tensors[name].kind.name) for name in ("token_embd.weight", "output.weight")] == [
        (1, "even16"),
        (4, "free8"),
    ]
    assert tensors["token_embd.weight"].error == 0


@pytest.mark.parametrize("at", [(0, 0), (255, 255)])
def test_the_matrix_that_is_on_no_levels_is_named(at, rng, tmp_path):
    folder = tmp_path / "model"
    weights = write_floats(folder, rng)
    weights[SECOND][at] = 0.7
    write_floats(tmp_path / "other", rng, changes={SECOND: weights[SECOND]})
    with pytest.raises(ElutqError, match=f"other has no levels to keep: weights of {SECOND} .F16. are neither"):
        import_model(tmp_path / "other", tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


def test_weights_of_bitnet_are_a_source_like_any_other():
    stored = read_stored(TERNARY / "bitnet")
    golden = np.load(TERNARY / "bitnet" / "expected.npz")
    with open_source(TERNARY / "bitnet") as source:
        assert relative(Transformer(source).logits(golden["tokens"]), golden["logits"]) < 1e-4
        (told,) = source.notes_on(keeps_levels=False)
    assert "its weights have 2 bits already (bitnet)" in told
    assert stored[SECOND].dtype == np.uint8
