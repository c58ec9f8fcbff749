"""Tokenizers made of a GGUF file's own tokens: the ids are those of llama.cpp, of sentencepiece and of the original."""

import json
import unicodedata
from dataclasses import replace

import pytest
import tokenizers
from samples import DATA
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers
from vocabularies import encode, golden, read_vocabulary

from elutq_formats.checkpoint import Checkpoint
from elutq_formats.pre_tokenizers import NAMES
from elutq_formats.tokenizer import Tokenizer

BYTE_LEVEL = golden("gpt2")
PIECES, UNIGRAM = golden("llama"), golden("t5")

COMBINING = "M"  # Unicode's category of marks, and of decimal digits
DIGITS = "Nd"
LLAMA_CPP_DEPARTS = {"tekken": COMBINING, "gpt-4o": COMBINING, "llama4": COMBINING, "deepseek-llm": DIGITS}
"""Characters that llama.cpp cuts otherwise than the original: it writes the expressions with less."""

SOME_TOKENS = {
    "model": "gpt2",
    "pre": "gpt-2",
    "tokens": ["a", "b", "ab", "Ġ", "<|bos|>", "<|im_end|>", "</s>", "<tool>", "[PAD8]"],
    "token_type": [1, 1, 1, 1, 3, 3, 1, 4, 5],
    "merges": ["a b"],
}
SOME_PIECES = {
    "model": "llama",
    "tokens": ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a", "ab", "<tool>", "<end_of_turn>"],
    "scores": [0.0, 0.0, 0.0, -3.0, -4.0, -5.0, -1.0, -2.0, 0.0, 0.0],
    "token_type": [2, 3, 3, 1, 1, 1, 1, 1, 4, 3],
}


def has_category(text, category):
    return any(unicodedata.category(character).startswith(category) for character in text)


def test_every_pre_tokenizer_has_golden_tokens():
    assert sorted(name for entry in BYTE_LEVEL["golden"] for name in entry["names"]) == sorted(NAMES)


@pytest.mark.parametrize(("architecture", "strips"), [("phi3", True), ("llama", False)])
def test_white_space_after_special_tokens_of_phi_3_is_part_of_them(architecture, strips, tmp_path):
    made = read_vocabulary(tmp_path / "model.gguf", SOME_PIECES | {"general.architecture": architecture})
    flags = {token["content"]: token["rstrip"] for token in json.loads(made.tokenizer_json)["added_tokens"]}
    assert flags == {"<unk>": False, "<s>": False, "</s>": strips, "<tool>": strips, "<end_of_turn>": strips}
    assert encode(made, "<end_of_turn>\n a") == encode(made, "<end_of_turn>" + ("" if strips else "\n ") + "a")


@pytest.mark.parametrize("name", NAMES)
def test_every_pre_tokenizer_cuts_words_as_llama_cpp_does(tmp_path, name):
    (ids,) = [entry["ids"] for entry in BYTE_LEVEL["golden"] if name in entry["names"]]
    made = read_vocabulary(tmp_path / "model.gguf", BYTE_LEVEL["metadata"] | {"pre": name})
    backend = tokenizers.Tokenizer.from_str(made.tokenizer_json)
    departs = LLAMA_CPP_DEPARTS.get(name)
    compared = 0
    for text, expected in zip(BYTE_LEVEL["texts"], ids, strict=True):
        if departs is None or not has_category(text, departs):
            assert backend.encode(text, add_special_tokens=False).ids == expected, text
            compared += 1
    assert compared >= 5


LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NEMO = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PUBLISHED = {
    "llama-bpe": [pre_tokenizers.Split(Regex(LLAMA_3), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)],
    "qwen2": [
        pre_tokenizers.Split(Regex(LLAMA_3.replace("{1,3}", "")), "isolated"),
        pre_tokenizers.ByteLevel(False, use_regex=False),
    ],
    "tekken": [pre_tokenizers.Split(Regex(NEMO), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)],
    "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)],
    "gpt-2": [pre_tokenizers.ByteLevel(False)],
}
"""Pre-tokenizers as the models' makers published them: Llama 3, Qwen2, Mistral Nemo, SmolLM, GPT-2."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_tokens_are_those_of_the_published_tokenizer(tmp_path, name):
    metadata = {key.removeprefix("tokenizer.ggml."): value for key, value in BYTE_LEVEL["metadata"].items()}
    tokens = metadata["tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["merges"]]
    ignore_merges = name in ("llama-bpe", "tekken")
    vocabulary = {token: at for at, token in enumerate(tokens)}
    published = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=ignore_merges))
    published.pre_tokenizer = pre_tokenizers.Sequence(PUBLISHED[name])
    if name == "qwen2":
        published.normalizer = normalizers.NFC()
    published.add_special_tokens(tokens[-3:-1])
    published.add_tokens([AddedToken(tokens[-1], normalized=False)])
    made = read_vocabulary(tmp_path / "model.gguf", metadata | {"pre": name})
    for text in [*BYTE_LEVEL["texts"], "cafe\u0301 \u2126 cafe\u0301s", "x =  12345", "नमस्ते दुनिया", "fooBAR'S 1234567"]:
        assert encode(made, text) == published.encode(text, add_special_tokens=False).ids


def test_qwen2_composes_characters_and_llama_3_does_not(tmp_path):
    accents = {"tokens": ["e", "Ì", "ģ", "Ã", "©", "Ã©"], "token_type": None, "merges": ["Ã ©"]}
    for name, expected in {"qwen2": [5], "llama-bpe": [0, 1, 2]}.items():
        made = read_vocabulary(tmp_path / f"{name}.gguf", SOME_TOKENS | accents | {"pre": name})
        assert encode(made, "e\u0301") == expected


def test_a_word_that_is_a_token_is_taken_whole_where_the_name_says_so(tmp_path):
    whole = {"tokens": ["a", "b", "ab", "ba"], "token_type": None, "merges": ["b a"]}
    for name, expected in {"llama-bpe": [2], "smaug-bpe": [0, 1]}.items():
        assert encode(read_vocabulary(tmp_path / f"{name}.gguf", SOME_TOKENS | whole | {"pre": name}), "ab") == expected


@pytest.mark.parametrize("pieces", [PIECES, UNIGRAM], ids=["bpe", "unigram"])
def test_tokens_are_those_of_sentencepiece(tmp_path, pieces):
    made = read_vocabulary(tmp_path / "model.gguf", pieces["metadata"])
    for text, expected in zip(pieces["texts"], pieces["ids"], strict=True):
        assert encode(made, text) == expected, text


@pytest.mark.parametrize("pieces", [PIECES, UNIGRAM], ids=["bpe", "unigram"])
def test_text_survives_sentencepiece(tmp_path, pieces):
    made = read_vocabulary(tmp_path / "model.gguf", pieces["metadata"])
    backend = tokenizers.Tokenizer.from_str(made.tokenizer_json)
    for text in ["naïve café, 你好 🎉", "a\tb\n\nc"]:
        assert backend.decode(backend.encode(text).ids) == text


def test_a_space_is_put_before_a_text_unless_the_file_says_otherwise(tmp_path):
    for value, expected in {None: [6], True: [6], False: [4]}.items():
        made = read_vocabulary(tmp_path / f"{value}.gguf", SOME_PIECES | {"add_space_prefix": value})
        assert encode(made, "a") == expected
        assert tokenizers.Tokenizer.from_str(made.tokenizer_json).decode(encode(made, "ab")) == "ab"


def test_the_token_with_the_best_score_is_merged_first(tmp_path):
    made = read_vocabulary(tmp_path / "model.gguf", SOME_PIECES | {"add_space_prefix": False})
    assert encode(made, " ab") == [6, 5]  # "▁a" (-1) before "ab" (-2)
    scores = [*SOME_PIECES["scores"][:6], -2.0, -1.0, 0.0, 0.0]
    made = read_vocabulary(tmp_path / "other.gguf", SOME_PIECES | {"scores": scores, "add_space_prefix": False})
    assert encode(made, " ab") == [3, 7]


def test_a_run_of_spaces_is_longest_at_its_beginning(tmp_path):
    runs = {"tokens": ["<unk>", "▁", "▁▁", "▁▁▁"], "scores": [0.0, -3.0, -1.0, -2.0], "token_type": [2, 1, 1, 1]}
    made = read_vocabulary(tmp_path / "model.gguf", SOME_PIECES | runs | {"add_space_prefix": False})
    assert encode(made, " " * 5) == [2, 3]  # as sentencepiece has it


def test_extra_spaces_are_removed_where_the_file_says_so(tmp_path):
    made = read_vocabulary(tmp_path / "model.gguf", SOME_PIECES | {"remove_extra_whitespaces": True})
    assert encode(made, "  a   a ") == encode(made, "a a") == [6, 6]
    assert encode(made, "a\n a") != encode(made, "a\na"), "a line's end is no end of the text"


@pytest.mark.parametrize(
    ("vocabulary", "flags", "expected"),
    [
        (SOME_PIECES, {}, [1, 6]),
        (SOME_PIECES, {"add_bos_token": False}, [6]),
        (SOME_PIECES, {"add_eos_token": True}, [1, 6, 2]),
        (SOME_TOKENS, {"bos_token_id": 4}, [0]),
        (SOME_TOKENS, {"bos_token_id": 4, "add_bos_token": True}, [4, 0]),
        (SOME_TOKENS, {"bos_token_id": 4, "pre": "llama-bpe"}, [4, 0]),
        (SOME_TOKENS, {"bos_token_id": 4, "pre": "llama-bpe", "add_bos_token": False}, [0]),
        (SOME_TOKENS, {"pre": "llama-bpe"}, [0]),
        (SOME_TOKENS, {"eos_token_id": 5, "add_eos_token": True}, [0, 5]),
        (SOME_PIECES | {"model": "t5"}, {"eos_token_id": 2, "unknown_token_id": 0}, [6, 2]),
    ],
)
def test_what_stands_around_a_text_is_what_the_file_or_its_kind_says(tmp_path, vocabulary, flags, expected):
    made = read_vocabulary(tmp_path / "model.gguf", vocabulary | flags)
    assert encode(made, "a", add_special_tokens=True) == expected


def test_special_tokens_have_the_names_of_the_file(tmp_path):
    ids = {"bos_token_id": 4, "eos_token_id": 5, "padding_token_id": 8, "seperator_token_id": 7, "eot_token_id": 5}
    made = read_vocabulary(tmp_path / "model.gguf", SOME_TOKENS | ids)
    assert made.special_tokens == {
        "bos_token": "<|bos|>",
        "eos_token": "<|im_end|>",
        "eot_token": "<|im_end|>",
        "sep_token": "<tool>",
        "pad_token": "[PAD8]",
    }
    assert made.bos_token_id == 4
    made = read_vocabulary(tmp_path / "pieces.gguf", SOME_PIECES)
    assert made.special_tokens == {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}, "Llama's, unsaid"


def test_a_text_ends_at_every_token_that_llama_cpp_has_end_it(tmp_path):
    made = read_vocabulary(tmp_path / "model.gguf", SOME_PIECES | {"eos_token_id": 8, "eot_token_id": 1})
    assert made.eos_token_ids == (8, 1, 2, 9)
    fill_in = {"fim_pad_token_id": 0, "fim_sep_token_id": 3}
    assert read_vocabulary(tmp_path / "fill.gguf", SOME_PIECES | fill_in).eos_token_ids == (2, 0, 3, 9)
    tokens = ["<|end|>", "<|return|>", "<|call|>", *SOME_TOKENS["tokens"][:3]]
    harmony = {"tokens": tokens, "token_type": [3] * 3 + [1] * 3}
    assert read_vocabulary(tmp_path / "harmony.gguf", SOME_TOKENS | harmony).eos_token_ids == (1, 2)
    tokens[1] = "c"
    assert read_vocabulary(tmp_path / "other.gguf", SOME_TOKENS | harmony).eos_token_ids == (0, 2)


@pytest.mark.parametrize("at", [10, 2**32 - 1])
@pytest.mark.parametrize("name", ["padding", "seperator", "cls", "mask", "unknown", "eot", "eom", "fim_pad"])
def test_a_special_token_outside_the_vocabulary_is_left_out_with_a_note(tmp_path, name, at):
    usual = read_vocabulary(tmp_path / "usual.gguf", SOME_PIECES)
    made = read_vocabulary(tmp_path / "model.gguf", SOME_PIECES | {f"{name}_token_id": at})
    note = f"tokenizer.ggml.{name}_token_id is {at}, but the vocabulary ends at 10: it is left out"
    assert made == replace(usual, notes=(note,)), "as in llama.cpp, which warns"


def test_an_end_that_merges_make_is_text(tmp_path):
    html = {"tokens": ["</", "s>", "</s>", "s></"], "token_type": None}
    made = read_vocabulary(tmp_path / "text.gguf", SOME_TOKENS | html | {"merges": ["</ s>"]})
    assert made.eos_token_ids == ()
    made = read_vocabulary(tmp_path / "end.gguf", SOME_TOKENS | html | {"merges": ["s> </"]})
    assert made.eos_token_ids == (2,)
    assert encode(made, "</s>") == [2], "a file that calls it normal does not say what it is"


def test_control_tokens_are_found_in_texts_and_hidden_and_words_of_the_user_are_shown(tmp_path):
    made = read_vocabulary(tmp_path / "model.gguf", SOME_TOKENS)
    backend = tokenizers.Tokenizer.from_str(made.tokenizer_json)
    ids = backend.encode("a<|bos|>b<tool>ab").ids
    assert ids == [0, 4, 1, 7, 2]
    assert backend.decode(ids) == "ab<tool>ab"


@pytest.mark.parametrize("vocabulary", [SOME_TOKENS, PIECES["metadata"]], ids=["byte level", "sentencepiece"])
def test_padding_of_the_vocabulary_stands_for_no_text(tmp_path, vocabulary):
    plain = {key.removeprefix("tokenizer.ggml."): value for key, value in vocabulary.items()}
    tokens, types = [*plain["tokens"], "[PAD999]"], [*plain["token_type"], 5]
    padded = plain | {"tokens": tokens, "token_type": types, "scores": [*plain.get("scores", [0.0] * 9), -1000.0]}
    backend = tokenizers.Tokenizer.from_str(read_vocabulary(tmp_path / "model.gguf", padded).tokenizer_json)
    assert backend.id_to_token(len(tokens) - 1) is None
    assert backend.id_to_token(0) == tokens[0]


def test_spelling_a_byte_is_not_that_byte(tmp_path):
    for name, pieces in {"bpe": PIECES, "unigram": UNIGRAM}.items():
        made = read_vocabulary(tmp_path / f"{name}.gguf", pieces["metadata"])
        newline = pieces["metadata"]["tokenizer.ggml.tokens"].index("<0x0A>")
        assert newline in encode(made, "\n")
        assert newline not in encode(made, "<0x0A>")


def test_chat_templates_are_read_by_name(tmp_path):
    template, prefix = {"tokenizer.chat_template": "{{ messages }}"}, "tokenizer.chat_template."
    named = {f"{prefix}tool_use": "{{ tools }}", "tokenizer.chat_templates": ["tool_use", "default"]}
    made = read_vocabulary(tmp_path / "model.gguf", SOME_TOKENS | template | named)
    assert made.chat_template == "{{ messages }}"
    assert made.chat_templates == {"tool_use": "{{ tools }}"}
    made = read_vocabulary(tmp_path / "named.gguf", SOME_TOKENS | {f"{prefix}default": "{{ one }}"})
    assert made.chat_template == "{{ one }}"
    assert read_vocabulary(tmp_path / "none.gguf", SOME_TOKENS).chat_template is None


@pytest.mark.parametrize("name", [None, "default"])
def test_a_file_without_a_pre_tokenizer_says_so(tmp_path, name):
    made = read_vocabulary(tmp_path / "model.gguf", SOME_TOKENS | {"pre": name})
    assert made.notes == ("the file names no pre-tokenizer: llama.cpp's default one cuts texts into words",)
    assert read_vocabulary(tmp_path / "named.gguf", SOME_TOKENS).notes == ()


@pytest.mark.parametrize("vocabulary", [SOME_TOKENS | {"pre": "llama-bpe", "bos_token_id": 4}, PIECES["metadata"]])
def test_our_tokenizer_takes_it(tmp_path, vocabulary):
    with Checkpoint.open(DATA / "novels-6m") as checkpoint:
        config = checkpoint.config
    made = read_vocabulary(tmp_path / "model.gguf", vocabulary)
    config = replace(config, bos_token_id=made.bos_token_id, eos_token_ids=made.eos_token_ids)
    tokenizer = Tokenizer.from_json(made.tokenizer_json, config, made.special_tokens)
    assert tokenizer.prefix == (made.bos_token_id,)
    assert tokenizer.special_tokens == made.special_tokens
    assert tokenizer.decode(tokenizer.encode("ab a", add_special_tokens=True)) == "ab a"
    assert json.loads(made.tokenizer_json)["model"]["type"] == "BPE"
