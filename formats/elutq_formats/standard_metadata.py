"""What GGUF tools and the hub's viewer look for in a file: the model's name, size, origin and vocabulary.

Nothing here is read back: the runtime has keys of its own for all that it needs.

Source: ggml's docs/gguf.md, for the keys; llama.cpp's convert_hf_to_gguf.py, for what it writes into them.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from elutq_formats.gguf import ValueType
from elutq_formats.gguf_vocabulary import BYTE_LEVEL, SENTENCEPIECE, UNIGRAM, TokenType
from elutq_formats.metadata import MetadataEntry
from elutq_formats.model_file import VOCABULARY_PREFIX
from elutq_formats.origin import Origin
from elutq_formats.pre_tokenizers import name_of_rule

QUANTIZATION_VERSION = 2
"""Of GGML's own types, of which F16 and F32 occur."""

NO_FILE_TYPE = 1024
"""GGML's file type for files that do not say: none of its types is ours."""

OTHER_TOKENIZER = "huggingface"

_SIZE = re.compile(r"\d+([._]\d+)?[KMBT]|[KMBT]\d+", re.IGNORECASE)
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def describe_model(origin: Origin, n_weights: int) -> Iterator[MetadataEntry]:
    """Yield what a file says of its model.

    Args:
        origin: of the weights.
        n_weights: of the model.
    """
    values: dict[str, str | int | None] = {
        "general.type": "model",
        "general.name": origin.name,
        "general.basename": origin.basename or basename(origin.name),
        "general.size_label": origin.size_label or size_label(n_weights),
        "general.license": origin.license,
        "general.quantized_by": "elutq",
        "general.quantization_version": QUANTIZATION_VERSION,
        "general.file_type": NO_FILE_TYPE,
    }
    if origin.base_models:
        values["general.base_model.count"] = len(origin.base_models)
    for number, model in enumerate(origin.base_models):
        prefix = f"general.base_model.{number}"
        values |= {f"{prefix}.name": model.name, f"{prefix}.organization": model.organization}
        values[f"{prefix}.repo_url"] = model.repo_url
    for key, value in values.items():
        if value is not None:
            yield key, value, ValueType.STRING if isinstance(value, str) else ValueType.UINT32


def basename(name: str) -> str:
    """Return what comes before a model's size in its name: ``Qwen2.5-Coder`` of ``Qwen2.5-Coder-0.5B-Instruct``."""
    parts = re.split(r"[- ]", name)
    sizes = (at for at, part in enumerate(parts) if at > 0 and _SIZE.fullmatch(part))
    return name[: len("-".join(parts[: next(sizes, len(parts))]))]


def size_label(n_weights: int) -> str:
    """Return a number of weights as names of models have it: two digits or more, such as 1.5B, 135M or 8.0B."""
    units = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K"))
    unit, letter = next((entry for entry in units if n_weights >= entry[0]), units[-1])
    scaled = n_weights / unit
    return f"{scaled:.{0 if scaled >= 9.95 else 1}f}{letter}"


def describe_vocabulary(
    tokenizer_json: str | None, n_tokens: int, special_tokens: Mapping[str, str] | None
) -> Iterator[MetadataEntry]:
    """Yield the vocabulary of a ``tokenizer.json``, where it is of a kind that GGUF has.

    Args:
        tokenizer_json: its contents.
        n_tokens: rows of the embedding; what the tokenizer has not is filled up.
        special_tokens: how special tokens are spelled, by name.
    """
    settings = json.loads(tokenizer_json or "{}")
    model = settings.get("model") or {}
    kind = _kind(settings, model)
    yield f"{VOCABULARY_PREFIX}model", kind or OTHER_TOKENIZER, ValueType.STRING
    if kind is None:
        return
    tokens = _tokens(settings, model, n_tokens)
    if kind == BYTE_LEVEL and (name := name_of_rule(settings)) is not None:
        yield f"{VOCABULARY_PREFIX}pre", name, ValueType.STRING
    yield f"{VOCABULARY_PREFIX}tokens", tokens, ValueType.STRING
    yield f"{VOCABULARY_PREFIX}token_type", _types(settings, model, tokens), ValueType.INT32
    merges = [_pair(merge) for merge in model.get("merges", ())]
    if kind == BYTE_LEVEL:
        yield f"{VOCABULARY_PREFIX}merges", [" ".join(merge) for merge in merges], ValueType.STRING
    else:
        scores = dict(model["vocab"]) if kind == UNIGRAM else _scores_of_merges(merges)
        yield f"{VOCABULARY_PREFIX}scores", [float(scores.get(token, 0.0)) for token in tokens], ValueType.FLOAT32
    ids = {token: at for at, token in enumerate(tokens)}
    for key, role in (("unknown_token_id", "unk_token"), ("padding_token_id", "pad_token")):
        if (spelling := (special_tokens or {}).get(role)) in ids:
            yield VOCABULARY_PREFIX + key, ids[str(spelling)], ValueType.UINT32


def _kind(settings: Mapping[str, Any], model: Mapping[str, Any]) -> str | None:
    """Return GGUF's name for a kind of tokenizer, if it has one."""
    if model.get("type") == "Unigram":
        return UNIGRAM
    if model.get("type") != "BPE":
        return None
    cutter = settings.get("pre_tokenizer") or {}
    if any(step.get("type") == "ByteLevel" for step in (cutter, *cutter.get("pretokenizers", ()))):
        return BYTE_LEVEL
    return SENTENCEPIECE if model.get("byte_fallback") else None


def _tokens(settings: Mapping[str, Any], model: Mapping[str, Any], n_tokens: int) -> list[str]:
    """Return the tokens by id; rows of the embedding that no text uses are called so."""
    vocab = model["vocab"]
    ids = vocab if isinstance(vocab, dict) else {token: at for at, (token, _) in enumerate(vocab)}
    found = [f"[PAD{at}]" for at in range(n_tokens)]
    for token, at in (*ids.items(), *((added["content"], added["id"]) for added in settings.get("added_tokens", ()))):
        if at < n_tokens:
            found[at] = token
    return found


def _types(settings: Mapping[str, Any], model: Mapping[str, Any], tokens: Sequence[str]) -> list[int]:
    vocab = model["vocab"]
    known = vocab if isinstance(vocab, dict) else dict(vocab)
    types = {token: TokenType.BYTE for token in known if model.get("byte_fallback") and _BYTE.fullmatch(token)}
    for added in settings.get("added_tokens", ()):
        types[added["content"]] = TokenType.CONTROL if added.get("special") else TokenType.USER_DEFINED
    unknown = tokens[model["unk_id"]] if model.get("unk_id") is not None else model.get("unk_token")
    if unknown is not None:
        types[unknown] = TokenType.UNKNOWN
    return [int(types.get(token, TokenType.NORMAL if token in known else TokenType.UNUSED)) for token in tokens]


def _pair(merge: str | Sequence[str]) -> Sequence[str]:
    """Return the two tokens of a merge, however it is written."""
    return merge.split(" ", 1) if isinstance(merge, str) else merge


def _scores_of_merges(merges: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return SentencePiece's scores: of the tokens that merges make, the first merged is the highest."""
    scores: dict[str, float] = {}
    for merge in merges:
        scores.setdefault("".join(merge), -1.0 - len(scores))
    return scores
