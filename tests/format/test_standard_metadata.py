"""What GGUF tools look for in our files, read with gguf-py: the model's name, size and origin, and its vocabulary."""

import json

import gguf
import pytest
from conftest import GOLDEN, NOVELS
from foreign_gguf import describe
from samples import write_random_model
from test_gguf_tokenizer import SOME_PIECES, SOME_TOKENS
from vocabularies import golden, read_vocabulary

from elutq_cli.pipeline.compute.backend import native_backend
from elutq_cli.pipeline.recipe import Recipe
from elutq_cli.pipeline.run.provenance import printable_origin
from elutq_cli.pipeline.run.quantize import quantize
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.errors import FormatError
from elutq_formats.gguf_reader import GGUFReader
from elutq_formats.gguf_start import START_BYTES, is_ours
from elutq_formats.model_file import ModelFile
from elutq_formats.open_source import open_source
from elutq_formats.origin import BaseModel
from elutq_formats.standard_metadata import basename, describe_vocabulary, size_label
from elutq_formats.tokenizer import Tokenizer


def peer(path):
    """Every value that gguf-py reads, by key."""
    return {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}


def made(source, path, **options):
    with source, native_backend(1) as backend:
        quantize(source, path, Recipe(group_size=32, **options), None, backend)
    return peer(path)


def test_a_model_file_has_the_keys_of_ggml(novels_2bit):
    found = peer(novels_2bit)
    vocabulary = json.loads((NOVELS / "tokenizer.json").read_text())
    assert {key: found[key] for key in found if key.startswith("general.") and "sampling" not in key} == {
        "general.alignment": 64,
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "novels-6m",
        "general.basename": "novels",
        "general.size_label": size_label(
            sum(record.n_weights for record in ModelFile.open(novels_2bit).tensors.values())
        ),
        "general.quantized_by": "elutq",
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        "general.file_type": gguf.LlamaFileType.GUESSED,
    }
    assert found["general.size_label"].endswith("M")
    tokens = found["tokenizer.ggml.tokens"]
    assert (found["tokenizer.ggml.model"], found["tokenizer.ggml.pre"]) == ("gpt2", "llama-bpe")
    assert {token: at for at, token in enumerate(tokens)} == vocabulary["model"]["vocab"]
    assert found["tokenizer.ggml.merges"] == [" ".join(merge) for merge in vocabulary["model"]["merges"]]
    assert found["tokenizer.ggml.token_type"] == [3, 3] + [1] * (len(tokens) - 2)
    assert tokens[found["tokenizer.ggml.bos_token_id"]] == "<|begin_of_text|>"
    assert tokens[found["tokenizer.ggml.eos_token_id"]] == "<|end_of_text|>"


def test_our_own_readers_pass_a_vocabulary_over(novels_2bit):
    assert is_ours(novels_2bit.read_bytes()[:START_BYTES])
    without = GGUFReader(novels_2bit, without="tokenizer.ggml.")
    assert without.metadata["tokenizer.ggml.tokens"] == without.metadata["tokenizer.ggml.merges"] == []
    whole = GGUFReader(novels_2bit)
    assert len(whole.metadata["tokenizer.ggml.tokens"]) == 4096
    assert without.tensors == whole.tensors
    assert without.metadata["tokenizer.huggingface.json"] == whole.metadata["tokenizer.huggingface.json"]


@pytest.mark.parametrize("n_bytes", [2**40, 2**64 - 8, 30_000_000])
def test_a_vocabulary_that_leads_out_of_the_file_is_refused(n_bytes, novels_2bit, tmp_path):
    data = bytearray(novels_2bit.read_bytes())
    first = data.index(b"tokenizer.ggml.tokens") + len(b"tokenizer.ggml.tokens") + 4 + 4 + 8
    data[first : first + 8] = n_bytes.to_bytes(8, "little")
    (tmp_path / "model.gguf").write_bytes(data)
    with pytest.raises(FormatError, match="is truncated: it ends inside the header"):
        ModelFile.open(tmp_path / "model.gguf")


def test_a_tokenizer_of_another_kind_is_named_so(tmp_path):
    write_random_model(tmp_path / "model.gguf", GOLDEN / "qwen2")
    found = peer(tmp_path / "model.gguf")
    assert found["tokenizer.ggml.model"] == "huggingface"
    assert "tokenizer.ggml.tokens" not in found


# ---- vocabularies


def vocabulary_of(metadata, path, n_more=0):
    """Make a tokenizer of a GGUF vocabulary, and describe it. Returns both, without the keys' prefix, and the ends."""
    there = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
    tokenizer = read_vocabulary(path, metadata)
    n_tokens = len(there["tokens"]) + n_more
    entries = describe_vocabulary(tokenizer.tokenizer_json, n_tokens, dict(tokenizer.special_tokens))
    named = {there["tokens"].index(token) for token in tokenizer.special_tokens.values()}
    return (
        there,
        {key.removeprefix("tokenizer.ggml."): value for key, value, _ in entries},
        named | {*tokenizer.eos_token_ids},
    )


def types_but_for(ids, types):
    return [kind for at, kind in enumerate(types) if at not in ids]


@pytest.mark.parametrize(
    "metadata", [golden("gpt2")["metadata"] | {"pre": "smollm"}, SOME_TOKENS], ids=["golden", "some"]
)
def test_a_byte_level_vocabulary_comes_out_as_it_went_in(metadata, tmp_path):
    there, found, special = vocabulary_of(metadata, tmp_path / "model.gguf")
    assert {key: found[key] for key in ("model", "pre", "tokens", "merges")} == {
        key: there[key] for key in ("model", "pre", "tokens", "merges")
    }
    assert types_but_for(special, found["token_type"]) == types_but_for(special, there["token_type"])
    assert {found["token_type"][at] for at in special} <= {3}


@pytest.mark.parametrize("metadata", [SOME_PIECES, golden("llama")["metadata"]], ids=["some", "golden"])
def test_pieces_come_out_with_scores_in_the_same_order(metadata, tmp_path):
    there, found, special = vocabulary_of(metadata, tmp_path / "model.gguf", n_more=2)
    n_tokens = len(there["tokens"])
    assert found["model"] == "llama"
    assert found["tokens"] == [*there["tokens"], f"[PAD{n_tokens}]", f"[PAD{n_tokens + 1}]"]
    assert found["token_type"][n_tokens:] == [5, 5]
    assert types_but_for(special, found["token_type"][:n_tokens]) == types_but_for(special, there["token_type"])
    merged = [at for at, score in enumerate(found["scores"]) if score < 0]
    assert len(merged) >= 2
    best_first = sorted(merged, key=lambda at: -found["scores"][at])
    assert [there["scores"][at] for at in best_first] == sorted((there["scores"][at] for at in merged), reverse=True)


def test_unigram_pieces_come_out_with_their_scores(tmp_path):
    there, found, special = vocabulary_of(golden("t5")["metadata"], tmp_path / "model.gguf")
    assert (found["model"], found["tokens"]) == ("t5", there["tokens"])
    letters = [at for at, kind in enumerate(there["token_type"]) if kind == 1 and at not in special]
    assert [found["scores"][at] for at in letters] == [there["scores"][at] for at in letters]
    assert found["unknown_token_id"] == there["unknown_token_id"]
    assert found["token_type"][there["unknown_token_id"]] == 2


def test_a_vocabulary_and_its_merges_are_those_of_the_source(tmp_path):
    source = describe(GOLDEN / "llama2-gqa-sharded")
    source.metadata |= {
        "general.basename": "Tiny",
        "general.size_label": "7B",
        "general.base_model.count": 2,
        "general.base_model.0.name": "Tiny Base",
        "general.base_model.0.organization": "Someone",
        "general.base_model.0.repo_url": "https://huggingface.co/someone/tiny",
        "general.base_model.1.name": "Other",
    }
    found = made(open_source(source.write(tmp_path / "source.gguf")), tmp_path / "out.gguf")
    carried = ("general.name", "general.license", "general.basename", "general.size_label", "tokenizer.ggml.pre")
    carried += (
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.merges",
        "tokenizer.ggml.token_type",
        "tokenizer.ggml.bos_token_id",
    )
    carried += tuple(key for key in source.metadata if key.startswith("general.base_model"))
    assert {key: found[key] for key in carried} == {key: source.metadata[key] for key in carried}
    assert Tokenizer.from_json(found["tokenizer.huggingface.json"], ModelFile.open(tmp_path / "out.gguf").config)


# ---- where a checkpoint comes from


def test_a_repository_is_the_base_of_what_is_made_of_it(tmp_path):
    snapshot = tmp_path / "models--some-one--Qwen2.5-Coder-0.5B-Instruct" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for path in (GOLDEN / "qwen2").iterdir():
        (snapshot / path.name).write_bytes(path.read_bytes())
    (snapshot / "README.md").write_text("---\nlicense: mit\nbase_model: other/base\n---\n")
    found = made(Checkpoint.open(snapshot), tmp_path / "out.gguf")
    assert found["general.name"] == "Qwen2.5-Coder-0.5B-Instruct"
    assert found["general.basename"] == "Qwen2.5-Coder"
    assert found["general.license"] == found["elutq.license"] == "mit"
    assert found["general.base_model.count"] == 1
    assert found["general.base_model.0.name"] == "Qwen2.5-Coder-0.5B-Instruct"
    assert found["general.base_model.0.organization"] == "some-one"
    assert found["general.base_model.0.repo_url"] == "https://huggingface.co/some-one/Qwen2.5-Coder-0.5B-Instruct"
    assert (found["elutq.source"], found["elutq.source_revision"]) == ("some-one/Qwen2.5-Coder-0.5B-Instruct", "0123")


@pytest.mark.parametrize(
    ("card", "bases"),
    [
        ("base_model: org/base", [BaseModel("base", "org", "https://huggingface.co/org/base")]),
        (
            "base_model:\n- org/a\n- b",
            [BaseModel("a", "org", "https://huggingface.co/org/a"), BaseModel("b", None, "https://huggingface.co/b")],
        ),
        ("base_model: 7", []),
        ("base_model:", []),
        ("license: mit", []),
    ],
)
def test_a_folder_is_made_of_what_its_card_says(card, bases, tmp_path):
    for path in (GOLDEN / "qwen2").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "README.md").write_text(f"---\n{card}\n---\n# A model\n")
    with Checkpoint.open(tmp_path) as checkpoint:
        assert list(printable_origin(checkpoint).base_models) == bases


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("Qwen2.5-Coder-0.5B-Instruct", "Qwen2.5-Coder"),
        ("SmolLM2-135M-Instruct", "SmolLM2"),
        ("Llama-3.1-8B", "Llama-3.1"),
        ("Llama 3.1 8B Instruct", "Llama 3.1"),
        ("novels-6m", "novels"),
        ("bloom-7b1", "bloom-7b1"),
        ("mistral", "mistral"),
        ("7B", "7B"),
    ],
)
def test_a_base_name_is_what_comes_before_the_size(name, found):
    assert basename(name) == found


@pytest.mark.parametrize(
    ("n_weights", "label"),
    [
        (12, "0.0K"),
        (950_000, "950K"),
        (6_300_000, "6.3M"),
        (134_515_008, "135M"),
        (1_543_714_304, "1.5B"),
        (8_030_261_248, "8.0B"),
        (9_960_000_000, "10B"),
        (70_553_706_496, "71B"),
        (1_040_000_000_000, "1.0T"),
    ],
)
def test_a_size_has_two_digits(n_weights, label):
    assert size_label(n_weights) == label
