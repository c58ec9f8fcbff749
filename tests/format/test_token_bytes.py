"""The bytes of tokens one by one, against what the tokenizers package makes of whole sequences."""

import random

import pytest
from conftest import SENTENCEPIECES, sentencepiece_decoder, sentencepiece_tokenizer
from samples import DATA
from tokenizers import decoders, normalizers, pre_tokenizers

from elutq_formats.checkpoint import Checkpoint
from elutq_formats.tokenizer import TextStream, Tokenizer

DECODERS = {
    "llama": sentencepiece_decoder(),
    "gemma": decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
    "metaspace": decoders.Metaspace(),
    "metaspace, never": decoders.Metaspace(prepend_scheme="never"),
    "metaspace, first, and bytes": decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first"), decoders.Fuse()]
    ),
    "byte level": decoders.ByteLevel(),
    "word pieces": decoders.WordPiece(cleanup=True),
    "fuse": decoders.Fuse(),
    "none": None,
}


@pytest.fixture(scope="module")
def config():
    with Checkpoint.open(DATA / "novels-6m") as opened:
        return opened.config


def streamed(tokenizer, ids, continues=False):
    text = TextStream(tokenizer, continues)
    return "".join([*map(text.put, ids), text.finish()])


@pytest.mark.parametrize("kind", DECODERS)
def test_streamed_text_is_what_the_whole_sequence_decodes_to(config, kind):
    tokenizer = sentencepiece_tokenizer(config, DECODERS[kind])
    choices = [[tokenizer.token_id(piece)] for piece in [*SENTENCEPIECES, "<s>", "<tool▁call>"]] + [[10**6]]
    if kind not in ("none", "word pieces"):  # which would put spaces into a character
        choices += [[tokenizer.token_id(f"<0x{byte:02X}>") for byte in text.encode()] for text in ("é", "日", " ", "x")]
    source = random.Random(7)
    for _ in range(300):
        ids = [token for _ in range(source.randrange(12)) for token in source.choice(choices)]
        assert streamed(tokenizer, ids) == tokenizer.decode(ids), ids
        anchor = tokenizer.token_id("a")
        assert streamed(tokenizer, ids, continues=True) == tokenizer.decode([anchor, *ids])[1:], ids


@pytest.mark.parametrize("name", sorted(path.name for path in (DATA / "golden").iterdir() if path.is_dir()))
def test_every_token_of_the_golden_tokenizers_has_the_bytes_that_it_adds_to_a_text(name):
    with Checkpoint.open(DATA / "golden" / name) as opened:
        tokenizer = Tokenizer.from_json(opened.tokenizer_json, opened.config)
        n_tokens = opened.config.vocab_size
    anchor = next(token for token in range(n_tokens) if tokenizer.decode([token]).isalpha())
    before = len(tokenizer.decode([anchor]))
    for token in range(n_tokens):
        if not tokenizer.is_hidden(token):
            assert tokenizer.token_bytes(token).decode() == tokenizer.decode([anchor, token])[before:]


def test_bytes_of_byte_level_tokens_make_up_the_text(config):
    with Checkpoint.open(DATA / "novels-6m") as opened:
        tokenizer = Tokenizer.from_json(opened.tokenizer_json, config)
    text = "naïve 日本, \N{PARTY POPPER}\n" + "".join(map(chr, range(0x21, 0x180)))
    ids = tokenizer.encode(text)
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
    assert max(ids.count(token) for token in ids if tokenizer.token_bytes(token)[0] >= 0x80) > 1
    every = {tokenizer.token_bytes(token) for token in range(config.vocab_size)}
    assert {bytes([byte]) for byte in range(256)} <= every


def test_a_byte_piece_is_its_byte_and_is_spelled_in_hexadecimal(config):
    tokenizer = sentencepiece_tokenizer(config, DECODERS["llama"])
    piece = tokenizer.token_id("<0xE2>")
    assert tokenizer.token_bytes(piece) == b"\xe2"
    assert tokenizer.spell(piece) == r"\xe2"
    assert tokenizer.token_bytes(tokenizer.token_id("▁suppose")) == b" suppose"
    assert tokenizer.token_bytes(tokenizer.token_id("<0x0A>")) == b"\n"
    assert tokenizer.spell(tokenizer.token_id("</s>")) == "</s>"
    assert tokenizer.token_bytes(10**6) == b""


def test_without_a_decoder_of_bytes_such_a_piece_is_text(config):
    tokenizer = sentencepiece_tokenizer(config, DECODERS["metaspace"])
    assert tokenizer.token_bytes(tokenizer.token_id("<0xE2>")) == b"<0xE2>"


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer"),
    [
        (normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None),  # Llama 2
        (None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),  # since legacy=False
        (None, pre_tokenizers.Metaspace(prepend_scheme="always", split=False)),
    ],
)
def test_a_continuation_keeps_its_first_space_and_the_start_of_a_text_has_none(config, normalizer, pre_tokenizer):
    tokenizer = sentencepiece_tokenizer(config, DECODERS["llama"], normalizer=normalizer, pre_tokenizer=pre_tokenizer)
    ids = tokenizer.encode("said, I suppose")
    cut = ids.index(tokenizer.token_id("▁I"))
    assert streamed(tokenizer, ids) == "said, I suppose"
    assert streamed(tokenizer, ids[cut:], continues=True) == " I suppose"
    assert streamed(tokenizer, ids[cut:]) == "I suppose"
    assert [tokenizer.spell(token) for token in ids[cut:]] == [" I", " suppose"]


def test_one_space_is_dropped_at_the_start_and_special_tokens_are_no_start(config):
    tokenizer = sentencepiece_tokenizer(config, DECODERS["llama"])
    ids = [tokenizer.token_id(piece) for piece in ("<s>", "▁", "▁I", "<s>", "▁suppose")]
    assert streamed(tokenizer, ids) == " I suppose"
    assert streamed(tokenizer, [tokenizer.token_id("<0x20>"), *ids[1:]]) == "  I suppose"


def test_a_byte_that_is_no_character_does_not_spoil_its_neighbours(config):
    tokenizer = sentencepiece_tokenizer(config, DECODERS["llama"])
    ids = [tokenizer.token_id(f"<0x{byte:02X}>") for byte in "日".encode() + b"\xe4\xbd"]
    assert (
        streamed(tokenizer, [*ids, tokenizer.token_id("▁I")])
        == "日\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER} I"
    )
