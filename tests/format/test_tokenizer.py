"""The tokenizer inside a file, and text that streams without breaking characters."""

import json
import sys
import threading

import pytest
import tokenizers
from samples import DATA
from tokenizers import decoders, models, processors

from elutq_formats.checkpoint import Checkpoint
from elutq_formats.config import ModelConfig
from elutq_formats.errors import ElutqError, FormatError
from elutq_formats.tokenizer import TextStream, Tokenizer

TEXTS = [
    "The quick brown fox.",
    "naïve café, 你好世界, 🎉🎊 and 👩‍👩‍👧",
    "  leading and trailing  \n\n",
    "\N{REPLACEMENT CHARACTER} is a character too",
    "",
]


@pytest.fixture(scope="module")
def checkpoint():
    with Checkpoint.open(DATA / "novels-6m") as opened:
        yield opened


@pytest.fixture(scope="module")
def byte_level(checkpoint):
    return Tokenizer.from_json(checkpoint.tokenizer_json, checkpoint.config)


@pytest.fixture(scope="module")
def sentencepiece(checkpoint):
    """Pieces that mark a space with U+2581 and fall back to bytes, as Llama 2's do."""
    pieces = ["<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁the", "▁cat", "s"]
    backend = tokenizers.Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True))
    backend.add_special_tokens(["<s>", "</s>"])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Tokenizer(backend, checkpoint.config)


def stream(tokenizer, ids):
    text = TextStream(tokenizer)
    return [*(text.put(token) for token in ids), text.finish()]


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_and_streams(byte_level, text):
    ids = byte_level.encode(text)
    assert byte_level.decode(ids) == text
    assert "".join(stream(byte_level, ids)) == text


@pytest.mark.parametrize("text", TEXTS[1:2])
def test_no_piece_of_a_stream_breaks_a_character(byte_level, text):
    ids = byte_level.encode(text)
    pieces = stream(byte_level, ids)
    assert len(ids) > len(text)
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert pieces[-1] == ""


def test_ids_are_those_of_the_tokenizers_package(byte_level):
    backend = tokenizers.Tokenizer.from_file(str(DATA / "novels-6m" / "tokenizer.json"))
    for text in TEXTS:
        assert byte_level.encode(text) == backend.encode(text, add_special_tokens=False).ids
        assert byte_level.encode(text, add_special_tokens=True) == backend.encode(text).ids


def test_spaces_of_sentencepiece_survive_streaming(sentencepiece):
    ids = [sentencepiece.token_id(piece) for piece in ("<s>", "▁the", "▁cat", "s", "▁the")]
    assert stream(sentencepiece, ids) == ["", "the", " cat", "s", " the", ""]


def test_bytes_of_sentencepiece_join_to_characters(sentencepiece):
    ids = [sentencepiece.token_id(f"<0x{byte:02X}>") for byte in "é你".encode()]
    assert stream(sentencepiece, [*ids, sentencepiece.token_id("▁cat")]) == ["", "é", "", "", "你", " cat", ""]


def test_bytes_that_are_no_character_are_shown_in_the_end(sentencepiece):
    half = [sentencepiece.token_id(f"<0x{byte:02X}>") for byte in "你".encode()[:2]]
    assert stream(sentencepiece, half) == ["", "", "\N{REPLACEMENT CHARACTER}" * 2]
    assert "cat" in "".join(stream(sentencepiece, [*half, sentencepiece.token_id("▁cat")]))
    endless = stream(sentencepiece, half[:1] * 100)
    assert "".join(endless) == "\N{REPLACEMENT CHARACTER}" * 100
    assert max(map(len, endless)) <= 16


def test_exactly_one_bos(byte_level):
    bos = byte_level.bos_token_id
    assert byte_level.encode("Hello", add_special_tokens=True)[:1] == [bos]
    assert byte_level.encode("<|begin_of_text|>Hello", add_special_tokens=True).count(bos) == 1
    assert bos not in byte_level.encode("Hello")


def test_the_post_processor_says_what_a_text_begins_with(checkpoint):
    settings = json.loads(checkpoint.tokenizer_json)
    cases = {"<|begin_of_text|> $A": (0,), "<|end_of_text|> $A <|end_of_text|>": (1,), "$A <|end_of_text|>": ()}
    for form, prefix in cases.items():
        backend = tokenizers.Tokenizer.from_str(json.dumps(settings))
        tokens = [("<|begin_of_text|>", 0), ("<|end_of_text|>", 1)]
        backend.post_processor = processors.TemplateProcessing(single=form, special_tokens=tokens)
        tokenizer = Tokenizer(backend, checkpoint.config)
        assert tokenizer.prefix == prefix
        assert tokenizer.encode("Hi", add_special_tokens=True) == backend.encode("Hi").ids
    assert Tokenizer.from_json(json.dumps({**settings, "post_processor": None}), checkpoint.config).prefix == ()


def test_special_tokens_are_not_text(byte_level):
    ids = [byte_level.bos_token_id, *byte_level.encode("Hi"), *byte_level.eos_token_ids]
    assert byte_level.decode(ids) == "Hi"
    assert byte_level.decode(ids, skip_special_tokens=False) == "<|begin_of_text|>Hi<|end_of_text|>"
    assert "".join(stream(byte_level, ids)) == "Hi"


def test_tokens_by_name(byte_level):
    assert byte_level.token(1) == "<|end_of_text|>"
    assert byte_level.token_id("<|end_of_text|>") == 1
    assert byte_level.token(10**6) is None
    assert byte_level.token_id("no such token") is None


def test_ids_of_a_padded_vocabulary_decode_to_nothing(byte_level):
    assert byte_level.decode([4095 + 1000]) == ""


def test_leftover_truncation_and_padding_are_ignored(checkpoint):
    settings = json.loads(checkpoint.tokenizer_json)
    settings["truncation"] = {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    settings["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<|begin_of_text|>",
    }
    tokenizer = Tokenizer.from_json(json.dumps(settings), checkpoint.config)
    assert tokenizer.decode(tokenizer.encode(TEXTS[0])) == TEXTS[0]


def test_a_token_without_embedding_is_refused(checkpoint):
    fields = {**vars(checkpoint.config), "vocab_size": 100, "eos_token_ids": ()}
    tokenizer = Tokenizer.from_json(checkpoint.tokenizer_json, ModelConfig(**fields))
    with pytest.raises(ElutqError, match="but the model's vocabulary ends at 100"):
        tokenizer.encode("The quick brown fox")


@pytest.mark.parametrize("text", ["", "{", "{}", '{"version": "9.9"}', "null"])
def test_a_damaged_tokenizer_is_one_line(checkpoint, text):
    with pytest.raises(FormatError, match="the tokenizer cannot be read by tokenizers") as refusal:
        Tokenizer.from_json(text, checkpoint.config)
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize(
    "changed",
    [
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "YWJj"}},  # which makes the package panic
        {"model": {"type": "Unigram", "vocab": [["a", 0.0]]}, "added_tokens": []},
    ],
    ids=["a panic", "no unknown token"],
)
def test_whatever_the_package_raises_is_one_line(checkpoint, changed):
    text = json.dumps(json.loads(checkpoint.tokenizer_json) | changed)
    with pytest.raises(ElutqError, match="the tokenizer cannot") as refusal:
        Tokenizer.from_json(text, checkpoint.config).encode("Ünknown")
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("text", ["a \ud800 b", "\udfff", "\udcff from a file system"])
def test_half_a_surrogate_pair_is_refused(byte_level, text):
    with pytest.raises(ElutqError, match=r"U\+D[8-F].., half of a surrogate pair"):
        byte_level.encode(text)


def test_other_threads_run_while_a_text_is_encoded(byte_level):
    encoding, ended, seen = threading.Event(), threading.Event(), []
    thread = threading.Thread(target=lambda: encoding.wait() and seen.append(ended.is_set()))
    interval = sys.getswitchinterval()
    thread.start()
    try:
        sys.setswitchinterval(1000)  # nobody is made to let others run
        encoding.set()
        byte_level.encode("It was a dark night. " * 50_000)
        ended.set()
    finally:
        sys.setswitchinterval(interval)
    thread.join()
    assert seen == [False]


@pytest.mark.parametrize("text", ["It was a dark night. ", "-", "é", " ", "\n"])
@pytest.mark.parametrize(("limit", "found"), [(1, True), (700, True), (100_000, False)])
def test_a_lower_bound_of_tokens_is_one(byte_level, text, limit, found):
    long = text * (400_000 // len(text))
    least = byte_level.least_tokens(long, limit)
    assert least <= len(byte_level.encode(long))
    assert (least > limit) == found


def test_short_texts_need_no_lower_bound(byte_level):
    assert byte_level.least_tokens("a" * 1000, 1) == 0


def test_of_a_text_far_too_long_little_more_is_encoded_than_it_takes(byte_level, monkeypatch):
    lengths = []
    encode = byte_level._encode
    monkeypatch.setattr(byte_level, "_encode", lambda text, special: lengths.append(len(text)) or encode(text, special))
    least = byte_level.least_tokens("-" * 4_000_000, 50_000)
    assert least > 50_000
    assert sum(lengths) < 40 * least  # a token of this text has four characters, and half of them are believed in
