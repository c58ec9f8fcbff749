"""Make the golden tokens of tests/data/tokens: small vocabularies, texts, and the ids that others give them.

usage: make_token_golden.py FOLDER

Needs sentencepiece, llama-cpp-python and gguf. Of byte-level BPE llama.cpp's ids, for every pre-tokenizer that it
knows by our names; the merges are learned without words, so that each word cut elsewhere shows in the ids. Of
SentencePiece's BPE and unigram models sentencepiece's ids, and where special tokens are spelled in a text llama.cpp's;
prints the texts for which llama.cpp has other ids than sentencepiece, but for those of unigram models in which a byte
would have to stand for itself, which it does not do there.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
from gguf import GGUFWriter
from llama_cpp import Llama
from mixed_text import mixed_text
from sentencepiece import sentencepiece_model_pb2
from tokenizers.normalizers import NFC

from elutq_formats.pre_tokenizers import NAMES

CHARSMAP = "tokenizer.ggml.precompiled_charsmap"
SPECIAL_TOKENS = ["<|start|>", "<|end|>", "<tool_call>"]
LEARNED = ("English", "numbers", "code", "Arabic", "emoji", "other scripts", "control characters", "spaces")
SPECIAL_TEXTS = ["<s>Hello</s> you", "  <s> <s>", "a</s>b </s> <unk>c"]
WORDS = [
    " 's IT'S 12 345\n\n  x1",
    " fooBar HTTPServer's kMaxSize 0x1F />\n//\n >>\n ++",
    "!= != while ...?\n\n;\n# %  ://  (7)",
    "",
]
"""What some of the pre-tokenizers cut otherwise than others."""
REPLACEMENTS = "\ufb01\tfi\n\u00a0\t \n\u2460\t1\n\u200b\t\n"
"""A ligature, two signs and a space that is none, and what SentencePiece is to make of each."""


def golden_texts() -> list[str]:
    """Return a short text of each kind, composed."""
    texts = dict(mixed_text(40_000, [], seed=3))
    return [NFC().normalize_str(text[:80]) for text in texts.values()]


def corpus() -> list[str]:
    """Return lines to learn a vocabulary from; SentencePiece takes no zero."""
    texts = [text for kind, text in mixed_text(300_000, [], seed=4) if kind in LEARNED]
    return [line for text in texts for line in text.replace("\0", "").splitlines() if line.strip()]


def llama_cpp_ids(metadata: dict[str, Any], texts: list[str]) -> list[list[int]]:
    """Return llama.cpp's ids of texts with a vocabulary."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.gguf"
        writer = GGUFWriter(path, "llama")
        for key, value in metadata.items():
            if isinstance(value, bool):
                writer.add_bool(key, value)
            elif isinstance(value, int):
                writer.add_uint32(key, value)
            elif isinstance(value, str):
                writer.add_string(key, value)
            else:
                writer.add_array(key, bytes(value) if key == CHARSMAP else value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        model = Llama(str(path), vocab_only=True, n_ctx=8, verbose=False)
        return [model.tokenize(text.encode(), add_bos=False, special=True) for text in texts]


def byte_level() -> dict[str, Any]:
    """Return a vocabulary of byte-level BPE, and llama.cpp's ids by the name of the pre-tokenizer."""
    learned = tokenizers.Tokenizer(tokenizers.models.BPE())
    learned.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, max_token_length=8)
    learned.train_from_iterator((text for kind, text in mixed_text(300_000, [], seed=4) if kind in LEARNED), trainer)
    model = json.loads(learned.to_str())["model"]
    tokens = [*sorted(model["vocab"], key=model["vocab"].get), *SPECIAL_TOKENS]
    first = len(model["vocab"])
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * first + [3, 3, 4],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.bos_token_id": first,
        "tokenizer.ggml.eos_token_id": first + 1,
    }
    texts = [*golden_texts(), "<|start|>say\n<tool_call> 12345 </tool_call><|end|>", *WORDS]
    names: dict[str, list[str]] = {}
    for name in NAMES:
        ids = llama_cpp_ids(metadata | {"tokenizer.ggml.pre": name}, texts)
        names.setdefault(json.dumps(ids), []).append(name)
    return {
        "metadata": metadata,
        "texts": texts,
        "golden": [{"names": same, "ids": json.loads(ids)} for ids, same in names.items()],
    }


def sentencepieces(kind: str, model: str, **options: str | bool) -> dict[str, Any]:
    """Return a vocabulary of SentencePiece's, and its ids."""
    trained = io.BytesIO()
    with tempfile.NamedTemporaryFile("w", suffix=".tsv", encoding="utf-8") as rules:
        for rule in REPLACEMENTS.splitlines():
            source, target = rule.split("\t")
            codes = (" ".join(f"{ord(character):X}" for character in part) for part in (source, target))
            rules.write("\t".join(codes) + "\n")
        rules.flush()
        if options.pop("normalizes", False):
            options["normalization_rule_tsv"] = rules.name
        else:
            options["normalization_rule_name"] = "identity"
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus()),
            model_writer=trained,
            model_type=kind,
            vocab_size=900,
            hard_vocab_limit=False,
            byte_fallback=True,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            minloglevel=2,
            **options,
        )
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(trained.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    metadata = {
        "tokenizer.ggml.model": model,
        "tokenizer.ggml.tokens": [piece.piece for piece in proto.pieces],
        "tokenizer.ggml.scores": [piece.score for piece in proto.pieces],
        "tokenizer.ggml.token_type": [piece.type for piece in proto.pieces],
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_space_prefix": proto.normalizer_spec.add_dummy_prefix,
        "tokenizer.ggml.remove_extra_whitespaces": proto.normalizer_spec.remove_extra_whitespaces,
    }
    if proto.normalizer_spec.precompiled_charsmap:
        metadata[CHARSMAP] = list(proto.normalizer_spec.precompiled_charsmap)
    texts = [text.replace("</s>", "").replace("<s>", "").replace("<unk>", "") for text in golden_texts()]
    texts += [" a space first", "   ", "two  spaces ", "<0x0A> \ufb01ve\u2460\u00a0\u200b", ""]
    ids = [processor.encode(text) for text in texts]
    theirs = llama_cpp_ids(metadata, texts + SPECIAL_TEXTS)
    for text, own, other in zip(texts, ids, theirs, strict=False):
        if own != other and not (model == "t5" and 0 in other):
            print(f"{model}: llama.cpp has other ids for {text!r:.60}")
    return {"metadata": metadata, "texts": texts + SPECIAL_TEXTS, "ids": ids + theirs[len(texts) :]}


def main() -> None:
    """Write the files."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, contents in {
        "gpt2": byte_level(),
        "llama": sentencepieces("bpe", "llama", remove_extra_whitespaces=False),
        "t5": sentencepieces("unigram", "t5", remove_extra_whitespaces=True, normalizes=True),
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(contents, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
