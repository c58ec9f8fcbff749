"""The small files of a checkpoint folder: byte order marks, and the normalizer that a tokenizer asks for."""

import json
import shutil

import pytest
from samples import DATA

from elutq_formats.checkpoint import Checkpoint
from elutq_formats.folder_texts import read_tokenizer

COMPOSED, DECOMPOSED = "caf\u00e9 \u1e69", "cafe\u0301 s\u0323\u0307"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(DATA / "novels-6m", tmp_path / "checkpoint")


def change(path, **fields):
    settings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(settings | fields), encoding="utf-8")


def encode(folder, text):
    with Checkpoint.open(folder) as checkpoint:
        return checkpoint.tokenizer().encode(text)


def test_a_byte_order_mark_is_no_part_of_a_checkpoints_files(folder):
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    expected = encode(folder, "Hello")
    for name in ("config.json", "tokenizer.json", "generation_config.json", "chat_template.jinja"):
        (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
    with Checkpoint.open(folder) as checkpoint:
        assert checkpoint.chat_template == "{{ messages[0].content }}"
    assert encode(folder, "Hello") == expected


@pytest.mark.parametrize(
    "normalizer", [{"type": "NFC"}, {"type": "Sequence", "normalizers": [{"type": "NFC"}]}], ids=["NFC", "sequence"]
)
def test_text_is_composed_where_the_tokenizer_asks_for_it(folder, normalizer):
    assert encode(folder, DECOMPOSED) != encode(folder, COMPOSED)
    change(folder / "tokenizer.json", normalizer=normalizer)
    assert encode(folder, DECOMPOSED) == encode(folder, COMPOSED)
    # Beside special tokens and in the middle of a longer text too.
    end = "<|end_of_text|>"
    assert encode(folder, f"{end}{DECOMPOSED}{end} and {DECOMPOSED}") == encode(
        folder, f"{end}{COMPOSED}{end} and {COMPOSED}"
    )


@pytest.mark.parametrize("kind", ["Qwen2Tokenizer", "Qwen2TokenizerFast"])
def test_a_tokenizer_whose_class_composes_text_does_so_when_its_file_lost_that(folder, kind):
    change(folder / "tokenizer_config.json", tokenizer_class=kind)
    assert encode(folder, DECOMPOSED) == encode(folder, COMPOSED)
    before = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert json.loads(read_tokenizer(folder)) == before | {"normalizer": {"type": "NFC"}}


def test_a_tokenizer_is_otherwise_as_its_file_has_it(folder):
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    for kind in ("PreTrainedTokenizerFast", "LlamaTokenizer", ["Qwen2Tokenizer"], None):
        change(folder / "tokenizer_config.json", tokenizer_class=kind)
        assert read_tokenizer(folder) == text
    change(folder / "tokenizer_config.json", tokenizer_class="Qwen2Tokenizer")
    change(folder / "tokenizer.json", normalizer={"type": "Lowercase"})
    assert read_tokenizer(folder) == (folder / "tokenizer.json").read_text(encoding="utf-8")
