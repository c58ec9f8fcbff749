"""Vocabularies that contradict themselves: each is refused in one line that says what is wrong."""

import struct

import pytest
from test_gguf_hostile import ARRAY, STRING, container, entry, text
from test_gguf_tokenizer import SOME_PIECES, SOME_TOKENS, UNIGRAM
from vocabularies import CHARSMAP, read_vocabulary

from elutq_formats.errors import ElutqError, FormatError, UnsupportedModelError
from elutq_formats.gguf_reader import GGUFReader
from elutq_formats.pre_tokenizers import NAMES


def charsmap(units=(), texts=b"\0", n_units=256, size=None):
    """A table of this many units, the first of them as given, and texts."""
    trie = struct.pack(f"<{n_units}I", *units, *[0] * (n_units - len(units)))
    return list(struct.pack("<I", len(trie) if size is None else size) + trie + texts)


FAR, LEAF, VALUE = 256 << 10, 1 << 8, 1 << 31
WRONG = {
    "no kind": (SOME_TOKENS | {"model": None}, "it has no tokenizer.ggml.model"),
    "a kind that is a number": (SOME_TOKENS | {"model": 3}, "tokenizer.ggml.model is not of type STRING"),
    "an unknown kind": (SOME_TOKENS | {"model": "bert"}, "only gpt2 (byte-level BPE), llama (SentencePiece) and t5"),
    "an unknown pre-tokenizer": (SOME_TOKENS | {"pre": "klingon"}, "an unknown pre-tokenizer, 'klingon': known are "),
    "a pre-tokenizer that is a number": (SOME_TOKENS | {"pre": 1}, "tokenizer.ggml.pre is not of type STRING"),
    "no tokens": (SOME_TOKENS | {"tokens": None}, "it has no tokenizer.ggml.tokens"),
    "tokens that are numbers": (SOME_TOKENS | {"tokens": [1, 2]}, "tokenizer.ggml.tokens is not an ARRAY of STRING"),
    "tokens that are one": (SOME_TOKENS | {"tokens": "a"}, "tokenizer.ggml.tokens is not an ARRAY of STRING"),
    "a token twice": (
        {"model": "gpt2", "tokens": ["a", "b", "c", "b"], "merges": ["a b"]},
        "tokens 1 and 3 are both 'b'",
    ),
    "a token without end": (
        SOME_TOKENS | {"tokens": ["a", "b" * 5000, "ab"]},
        "token 1 has 5000 characters, more than 4096",
    ),
    "too few types": (SOME_TOKENS | {"token_type": [1, 1]}, "it has 9 tokens, but 2 types of tokens"),
    "too many types": (SOME_TOKENS | {"token_type": [1] * 10}, "it has 9 tokens, but 10 types of tokens"),
    "an unknown type": (SOME_TOKENS | {"token_type": [1] * 8 + [7]}, "token 8 is of unknown type 7"),
    "a negative type": (SOME_TOKENS | {"token_type": [-1] * 9}, "token 0 is of unknown type -1"),
    "types that are text": (SOME_TOKENS | {"token_type": ["1"]}, "tokenizer.ggml.token_type is not an ARRAY of INT32"),
    "no merges": (SOME_TOKENS | {"merges": None}, "it has no tokenizer.ggml.merges"),
    "merges that are numbers": (SOME_TOKENS | {"merges": [1]}, "tokenizer.ggml.merges is not an ARRAY of STRING"),
    "a merge of one": (SOME_TOKENS | {"merges": ["a b", "ab"]}, "merge 1 is 'ab', not two tokens with a space"),
    "a merge of three": (SOME_TOKENS | {"merges": ["a b ab"]}, "merge 0 is 'a b ab', not two tokens with a space"),
    "a merge of nothing": (SOME_TOKENS | {"merges": [" a"]}, "merge 0 is ' a', not two tokens with a space"),
    "a merge of no token": (SOME_TOKENS | {"merges": ["a x"]}, "merge 0 ('a x') names 'x', which is no token"),
    "a merge into no token": (SOME_TOKENS | {"merges": ["b a"]}, "merge 0 ('b a') names 'ba', which is no token"),
    "no scores": (SOME_PIECES | {"scores": None}, "it has no tokenizer.ggml.scores"),
    "too few scores": (SOME_PIECES | {"scores": [1.0]}, "it has 10 tokens, but 1 scores"),
    "a score that is no number": (SOME_PIECES | {"scores": [float("nan")] * 10}, "token 0 has the score nan"),
    "a score without bounds": (SOME_PIECES | {"scores": [0.0] * 9 + [float("inf")]}, "token 9 has the score inf"),
    "scores that are integers": (SOME_PIECES | {"scores": [1] * 10}, "scores is not an ARRAY of FLOAT32"),
    "an end outside": (
        SOME_TOKENS | {"eos_token_id": 9},
        "tokenizer.ggml.eos_token_id is 9, but the vocabulary ends at 9",
    ),
    "a beginning far outside": (
        SOME_TOKENS | {"bos_token_id": 2**32 - 1},
        "tokenizer.ggml.bos_token_id is 4294967295, but the vocabulary ends at 9",
    ),
    "an id that is text": (SOME_TOKENS | {"eom_token_id": "5"}, "eom_token_id is not of type UINT32"),
    "a beginning that is not there": (SOME_TOKENS | {"add_bos_token": True}, "no token is called bos_token"),
    "an end that is not there": (SOME_TOKENS | {"add_eos_token": True}, "no token is called eos_token"),
    "a flag that is a number": (SOME_TOKENS | {"add_bos_token": 1}, "tokenizer.ggml.add_bos_token is not of type BOOL"),
    "a prefix that is a number": (SOME_PIECES | {"add_space_prefix": 1}, "add_space_prefix is not of type BOOL"),
    "a template that is a number": (
        SOME_TOKENS | {"tokenizer.chat_template": 1},
        "tokenizer.chat_template is not of type STRING",
    ),
    "a template that is announced": (
        SOME_TOKENS | {"tokenizer.chat_templates": ["rag"]},
        "lists 'rag', but there is no tokenizer.chat_template.rag",
    ),
    "a table without a trie": (SOME_PIECES | {CHARSMAP: [1, 2]}, "has 2 bytes, but calls for a trie of 513"),
    "a table that is cut": (
        SOME_PIECES | {CHARSMAP: charsmap(size=2048)},
        "has 1029 bytes, but calls for a trie of 2048",
    ),
    "a table of half a block": (SOME_PIECES | {CHARSMAP: charsmap(n_units=100)}, "but calls for a trie of 400"),
    "a trie that leads out": (SOME_PIECES | {CHARSMAP: charsmap([FAR])}, "has a trie that leads out of itself"),
    "a text without an end": (SOME_PIECES | {CHARSMAP: charsmap(texts=b"a")}, "has a trie that leads out of its texts"),
    "a text outside": (
        SOME_PIECES | {CHARSMAP: charsmap([LEAF | 1 << 10, VALUE | 9])},
        "has a trie that leads out of its texts",
    ),
    "half a character": (
        SOME_PIECES | {CHARSMAP: charsmap([LEAF | 1 << 10, VALUE | 1], "é\0".encode())},
        "has texts that are not UTF-8",
    ),
    "bytes that are no text": (SOME_PIECES | {CHARSMAP: charsmap(texts=b"\xff\0")}, "has texts that are not UTF-8"),
}


@pytest.mark.parametrize(("metadata", "message"), WRONG.values(), ids=WRONG)
def test_a_vocabulary_that_contradicts_itself_is_one_line(tmp_path, metadata, message):
    with pytest.raises(ElutqError) as caught:
        read_vocabulary(tmp_path / "model.gguf", metadata)
    line = str(caught.value)
    assert message in line
    assert "\n" not in line
    if not isinstance(caught.value, UnsupportedModelError):
        assert isinstance(caught.value, FormatError)
        assert line.startswith(f"{tmp_path / 'model.gguf'} is damaged: ")


def test_an_unknown_pre_tokenizer_is_told_which_are_known(tmp_path):
    with pytest.raises(UnsupportedModelError, match=", ".join(NAMES)):
        read_vocabulary(tmp_path / "model.gguf", SOME_TOKENS | {"pre": "klingon"})


@pytest.mark.parametrize("n_embeddings", [8, 10])
def test_a_vocabulary_is_as_long_as_the_embedding(tmp_path, n_embeddings):
    with pytest.raises(FormatError, match=f"it has 9 tokens, but the embedding has {n_embeddings} rows"):
        read_vocabulary(tmp_path / "model.gguf", SOME_TOKENS, n_embeddings=n_embeddings)
    assert read_vocabulary(tmp_path / "sound.gguf", SOME_TOKENS, n_embeddings=9)


def test_a_token_that_is_not_utf_8_is_one_line(tmp_path):
    tokens = struct.pack("<IQ", STRING, 2) + text("a") + text(b"\xff")
    path = tmp_path / "model.gguf"
    path.write_bytes(container(entries=[entry("tokenizer.ggml.tokens", ARRAY, tokens)]))
    with pytest.raises(FormatError, match=r"damaged: the value of tokenizer\.ggml\.tokens is not UTF-8"):
        GGUFReader(path)


def test_a_sound_table_of_characters_is_taken(tmp_path):
    key = f"tokenizer.ggml.{CHARSMAP}"
    assert read_vocabulary(tmp_path / "model.gguf", SOME_PIECES | {CHARSMAP: UNIGRAM["metadata"][key]})
    assert read_vocabulary(tmp_path / "none.gguf", SOME_PIECES | {CHARSMAP: charsmap()})
