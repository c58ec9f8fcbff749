"""A tokenizer made of the vocabulary in a GGUF file's metadata: the model's ``tokenizer.json``.

Byte-level BPE is its tokens and merges, with the pre-tokenizer that the file names. SentencePiece's BPE merges by
scores, highest first: its merges are every way to make a token of two, in that order. Its unigram model is its
pieces with their scores.

Where transformers' reader of GGUF and llama.cpp part, the tokens are those of the model's original tokenizer;
docs/families.md lists the places.

Source: SentencePiece's src/bpe_model.cc, unigram_model.cc and normalizer.cc; transformers' conversion of them to
``tokenizer.json``, in the form that Llama 2's has.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from elutq_formats.gguf_special_tokens import SpecialTokens, read_chat_templates, read_special_tokens
from elutq_formats.gguf_vocabulary import BYTE_LEVEL, SENTENCEPIECE, UNIGRAM, TokenType, Vocabulary, read_vocabulary
from elutq_formats.metadata import Metadata
from elutq_formats.model_metadata import ARCHITECTURE
from elutq_formats.pre_tokenizers import UNNAMED, PreTokenizer, find_pre_tokenizer
from elutq_formats.precompiled_charsmap import read_charsmap
from elutq_formats.special_tokens import BOS_NAME

KEPT_APART = ("<unk>", "<s>", "<|endoftext|>")
"""Phi 3's special tokens to which no white space belongs."""

_SPACE = "\u2581"
"""What SentencePiece writes for a space."""

_LETTERS = (TokenType.NORMAL, TokenType.UNDEFINED, TokenType.UNUSED)
"""Types of the pieces that are found in a text; the others are special, or stand for a byte."""


@dataclass(frozen=True)
class GGUFTokenizer:
    """What a GGUF file says about its tokenizer.

    Attributes:
        tokenizer_json: contents of a ``tokenizer.json``.
        special_tokens: how special tokens are spelled, by name.
        bos_token_id: first token of a text, if the model has one; the ``tokenizer_json`` says whether it is put there.
        eos_token_ids: every token that ends a text.
        chat_template: the Jinja source of its chat template, if it has one.
        chat_templates: those that have a name.
        notes: what its user may not expect, each in one line.
    """

    tokenizer_json: str
    special_tokens: Mapping[str, str]
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    chat_template: str | None
    chat_templates: Mapping[str, str]
    notes: tuple[str, ...]


def read_gguf_tokenizer(metadata: Metadata, n_embeddings: int | None = None) -> GGUFTokenizer:
    """Make a tokenizer of a GGUF file's metadata.

    Args:
        metadata: of the file.
        n_embeddings: rows of the model's embedding, when they are to be one a token.

    Raises:
        UnsupportedModelError: it is of a kind, or names a pre-tokenizer, that is not implemented.
        FormatError: it is missing or contradicts itself.
    """
    vocabulary = read_vocabulary(metadata, n_embeddings)
    special = read_special_tokens(metadata, vocabulary)
    notes = [*special.notes]
    if vocabulary.model == BYTE_LEVEL:
        name = vocabulary.pre_tokenizer or UNNAMED
        if name == UNNAMED:
            notes.append("the file names no pre-tokenizer: llama.cpp's default one cuts texts into words")
        rule = find_pre_tokenizer(name)
        parts = _byte_level(vocabulary, rule, special)
        adds_bos = rule.adds_bos
    else:
        parts = _sentencepiece(metadata, vocabulary, special)
        adds_bos = vocabulary.model == SENTENCEPIECE
    settings = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(vocabulary, special, _strips_after(metadata, vocabulary)),
        "normalizer": parts["normalizer"],
        "pre_tokenizer": parts["pre_tokenizer"],
        "post_processor": _post_processor(metadata, vocabulary, special, adds_bos),
        "decoder": parts["decoder"],
        "model": parts["model"],
    }
    template, templates = read_chat_templates(metadata)
    return GGUFTokenizer(
        tokenizer_json=json.dumps(settings, ensure_ascii=False),
        special_tokens={name: vocabulary.tokens[at] for name, at in special.ids.items()},
        bos_token_id=special.ids.get(BOS_NAME),
        eos_token_ids=special.ends,
        chat_template=template,
        chat_templates=templates,
        notes=tuple(notes),
    )


def _byte_level(vocabulary: Vocabulary, rule: PreTokenizer, special: SpecialTokens) -> dict[str, Any]:
    return {
        "normalizer": rule.normalizer(),
        "pre_tokenizer": rule.to_json(),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _bpe(vocabulary, vocabulary.merges, special, ignore_merges=rule.ignore_merges),
    }


def _sentencepiece(metadata: Metadata, vocabulary: Vocabulary, special: SpecialTokens) -> dict[str, Any]:
    adds_space = metadata.boolean("tokenizer.ggml.add_space_prefix", default=True)
    normalizers = [charsmap] if (charsmap := read_charsmap(metadata)) is not None else []
    if metadata.boolean("tokenizer.ggml.remove_extra_whitespaces", default=False):
        normalizers += [_replace({"Regex": r"\A +| +\z"}, ""), _replace({"Regex": " {2,}"}, " ")]
    if adds_space:
        normalizers.append({"type": "Prepend", "prepend": _SPACE})
    normalizers.append(_replace({"String": " "}, _SPACE))
    decoders = [_replace({"String": _SPACE}, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    if adds_space:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    if vocabulary.model == UNIGRAM:
        model = _unigram(vocabulary, special)
    else:
        unknown = special.ids.get("unk_token")
        unk_token = None if unknown is None else vocabulary.tokens[unknown]
        model = _bpe(vocabulary, merges_by_score(vocabulary), special, unk_token, byte_fallback=True, fuse_unk=True)
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def merges_by_score(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Return the merges that make SentencePiece's BPE of a vocabulary: every pair that makes a token, best first.

    Of pairs that make the same token that with the longer left one comes first: SentencePiece takes the leftmost in the
    text, so that of a run of equal characters, such as spaces, the rest is at its end.
    """
    pieces = vocabulary.of_type(*_LETTERS)
    ranked = []
    for piece, at in pieces.items():
        for cut in range(1, len(piece)):
            if piece[:cut] in pieces and piece[cut:] in pieces:
                ranked.append((-vocabulary.scores[at], -cut, piece))
    ranked.sort(key=lambda entry: entry[:2])
    return [(piece[:-cut], piece[-cut:]) for _, cut, piece in ranked]


def _bpe(
    vocabulary: Vocabulary,
    merges: Sequence[tuple[str, str]],
    special: SpecialTokens,
    unk_token: str | None = None,
    **options: bool,
) -> dict[str, Any]:
    """Return a BPE model; tokens that only fill up the embedding are left out, so that they stand for no text."""
    unused = set(vocabulary.of_type(TokenType.UNUSED))
    if unused:
        made = {token for left, right in merges for token in (left, right, left + right)}
        named = {vocabulary.tokens[at] for at in (*special.ids.values(), *special.ends)}
        unused -= made | named
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unk_token,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        **{"fuse_unk": False, "byte_fallback": False, "ignore_merges": False, **options},
        "vocab": {token: at for token, at in vocabulary.ids.items() if token not in unused},
        "merges": merges,
    }


def _unigram(vocabulary: Vocabulary, special: SpecialTokens) -> dict[str, Any]:
    """Return a unigram model; pieces that no text has get a score so low that no text spelled like them is one."""
    letters = set(vocabulary.of_type(TokenType.NORMAL, TokenType.UNDEFINED).values())
    lowest = min((vocabulary.scores[at] for at in letters), default=0.0)
    longest = max(map(len, vocabulary.tokens))
    never = (min(lowest, 0.0) - 1.0) * longest
    return {
        "type": "Unigram",
        "unk_id": special.ids.get("unk_token"),
        "vocab": [
            [token, vocabulary.scores[at] if at in letters else never] for at, token in enumerate(vocabulary.tokens)
        ],
        "byte_fallback": bool(vocabulary.of_type(TokenType.BYTE)),
    }


def _strips_after(metadata: Metadata, vocabulary: Vocabulary) -> bool:
    """Whether white space after a special token belongs to it: Phi 3's tokenizer.json says so, and files do not."""
    return metadata.string(ARCHITECTURE) == "phi3" and vocabulary.model == SENTENCEPIECE


def _added_tokens(vocabulary: Vocabulary, special: SpecialTokens, strips_after: bool) -> list[dict[str, Any]]:
    """Return the tokens that are found in a text before all else: control tokens, and words of the user's own."""
    hidden = {*special.ids.values(), *special.ends, *vocabulary.of_type(TokenType.CONTROL, TokenType.UNKNOWN).values()}
    whole = hidden | set(vocabulary.of_type(TokenType.USER_DEFINED).values())
    flags = {"single_word": False, "lstrip": False, "normalized": False}
    contents = {at: vocabulary.tokens[at] for at in sorted(whole) if vocabulary.tokens[at]}
    return [
        {"id": at, "content": content, **flags, "rstrip": strips_after and content not in KEPT_APART}
        | {"special": at in hidden}
        for at, content in contents.items()
    ]


def _post_processor(
    metadata: Metadata, vocabulary: Vocabulary, special: SpecialTokens, adds_bos: bool
) -> dict[str, Any]:
    """Return what stands around a text: BOS, EOS, both or neither."""
    around = []
    for name, key, default in (
        (BOS_NAME, "add_bos_token", adds_bos),
        ("eos_token", "add_eos_token", vocabulary.model == UNIGRAM),
    ):
        key = f"tokenizer.ggml.{key}"
        is_added = metadata.boolean(key, default)
        if is_added and name not in special.ids and key in metadata:
            metadata.refuse(f"{key} is true, but no token is called {name}")
        around.append(vocabulary.tokens[special.ids[name]] if is_added and name in special.ids else None)

    def with_ends(parts: list[tuple[str, int]]) -> list[dict[str, Any]]:
        bos, eos = around
        pieces: list[dict[str, Any]] = []
        for part, type_id in parts:
            pieces += [{"SpecialToken": {"id": bos, "type_id": type_id}}] if bos is not None else []
            pieces.append({"Sequence": {"id": part, "type_id": type_id}})
            pieces += [{"SpecialToken": {"id": eos, "type_id": type_id}}] if eos is not None else []
        return pieces

    tokens = {token: vocabulary.ids[token] for token in around if token is not None}
    return {
        "type": "TemplateProcessing",
        "single": with_ends([("A", 0)]),
        "pair": with_ends([("A", 0), ("B", 1)]),
        "special_tokens": {token: {"id": token, "ids": [at], "tokens": [token]} for token, at in tokens.items()},
    }
