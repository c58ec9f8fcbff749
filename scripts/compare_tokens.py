"""Compare the tokens of GGUF files' own tokenizers with those of transformers and of llama.cpp, on 1 MB of mixed text.

usage: compare_tokens.py [--bytes N] [--text FILE]... FILE.gguf...

For each file: texts of every kind (see mixed_text.py), with the file's special tokens spelled in them, and pieces of
the text files. transformers reads the same GGUF file, and llama.cpp through llama-cpp-python; a peer that is not
installed is left out, and the script says so. Prints the number of texts that differ by kind.

Both peers part from the model's original tokenizer here and there (docs/families.md). Where texts differ they are
compared once more without that: with the original's pre-tokenizer and normalizer in transformers, and with texts
that llama.cpp treats as the original does: composed ones, that do not spell what it alone has end a text, and without
bytes that are not in the vocabulary, beside which it does not merge. Exits 1 if any differs then.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import tokenizers
from mixed_text import mixed_text
from tokenizers.normalizers import NFC

from elutq_formats.gguf_reader import GGUFReader
from elutq_formats.gguf_tokenizer import GGUFTokenizer, read_gguf_tokenizer
from elutq_formats.metadata import Metadata

Encode = Callable[[str], list[int]]
Texts = Sequence[tuple[str, str]]


def transformers_encoders(path: Path, original: tokenizers.Tokenizer) -> tuple[Encode, Encode]:
    """Return what makes token ids of a text with transformers: as it reads the file, and with the original's parts."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    mended = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    mended.backend_tokenizer.pre_tokenizer = original.pre_tokenizer
    mended.backend_tokenizer.normalizer = original.normalizer
    return (
        lambda text: tokenizer.encode(text, add_special_tokens=False),
        lambda text: mended.encode(text, add_special_tokens=False),
    )


def llama_cpp_encoders(path: Path, _: tokenizers.Tokenizer) -> tuple[Encode, Encode]:
    """Return what makes token ids of a text with llama.cpp, twice."""
    from llama_cpp import Llama

    model = Llama(str(path), vocab_only=True, n_ctx=8, verbose=False)

    def encode(text: str) -> list[int]:
        return model.tokenize(text.encode(), add_bos=False, special=True)

    return encode, encode


PEERS = {"transformers": transformers_encoders, "llama_cpp": llama_cpp_encoders}


def treated_alike(tokenizer: tokenizers.Tokenizer, texts: Texts) -> Texts:
    """Return texts without what llama.cpp treats otherwise than the original tokenizer."""
    composes = json.loads(tokenizer.to_str())["normalizer"] == {"type": "NFC"}
    if "</s>" not in {token.content for token in tokenizer.get_added_tokens_decoder().values()}:
        texts = [(kind, text.replace("</s>", "")) for kind, text in texts]
    if composes:
        texts = [(kind, NFC().normalize_str(text)) for kind, text in texts]
    characters = {character for _, text in texts for character in text}
    unknown = {ord(character): None for character in characters if not tokenizer.encode(character).ids}
    return [(kind, text.translate(unknown)) for kind, text in texts]


def differing(ours: Encode, theirs: Encode, texts: Texts) -> Counter[str]:
    """Return the number of texts of each kind whose tokens differ."""
    return Counter(kind for kind, text in texts if ours(text) != theirs(text))


def own_tokenizer(made: GGUFTokenizer) -> tuple[tokenizers.Tokenizer, Encode]:
    """Return the tokenizer under test, and what makes token ids of a text with it."""
    tokenizer = tokenizers.Tokenizer.from_str(made.tokenizer_json)
    return tokenizer, lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def compare(path: Path, n_bytes: int, own_texts: Texts) -> bool:
    """Compare a file's tokens with those of each peer, and print what is found; return whether all is explained."""
    reader = GGUFReader(path)
    tokenizer, ours = own_tokenizer(read_gguf_tokenizer(Metadata(reader.metadata, reader.value_types, path)))
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    texts = [*mixed_text(n_bytes, added), *own_texts]
    n_tokens, n_bytes = sum(len(ours(text)) for _, text in texts), sum(len(text.encode()) for _, text in texts)
    print(f"{path.name}: {len(texts)} texts, {n_bytes} bytes, {n_tokens} tokens")
    explained = True
    for peer, encoders in PEERS.items():
        if importlib.util.find_spec(peer) is None:
            print(f"  {peer}: not installed")
            continue
        theirs, mended = encoders(path, tokenizer)
        line = "the same tokens"
        if different := differing(ours, theirs, texts):
            line = "other tokens in " + ", ".join(f"{n} of {kind}" for kind, n in different.items())
            left = differing(ours, mended, treated_alike(tokenizer, texts) if peer == "llama_cpp" else texts)
            explained &= not left
            line += f"; without the known departures in {dict(left) or 'none'}"
        print(f"  {peer}: {line}", flush=True)
    return explained


def main() -> None:
    """Compare every file named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--bytes", type=int, default=1_000_000, help="how much text there is to be")
    parser.add_argument("--text", action="append", type=Path, default=[], help="a text file, cut into pieces of 2,000")
    options = parser.parse_args()
    own_texts = []
    for path in options.text:
        text = path.read_text(encoding="utf-8")
        own_texts += [(path.name, text[at : at + 2000]) for at in range(0, len(text), 2000)]
    explained = [compare(path, options.bytes, own_texts) for path in options.files]
    sys.exit(not all(explained))


if __name__ == "__main__":
    main()
