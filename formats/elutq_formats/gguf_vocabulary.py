"""The vocabulary in a GGUF file's metadata: tokens, their types and scores, merges. All is checked, nothing built."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from elutq_formats.errors import UnsupportedModelError
from elutq_formats.gguf import ValueType
from elutq_formats.metadata import Metadata

BYTE_LEVEL, SENTENCEPIECE, UNIGRAM = "gpt2", "llama", "t5"
"""Values of ``tokenizer.ggml.model``: byte-level BPE; SentencePiece's BPE; SentencePiece's unigram model."""

_MODEL = "tokenizer.ggml.model"
_PRE = "tokenizer.ggml.pre"
_TOKENS = "tokenizer.ggml.tokens"
_TYPES = "tokenizer.ggml.token_type"
_SCORES = "tokenizer.ggml.scores"
_MERGES = "tokenizer.ggml.merges"


_LONGEST = 4096
"""Characters of a token, many more than any has: cutting one in two everywhere takes their number squared."""


class TokenType(IntEnum):
    """What a token is for, with GGUF's number for it."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """A vocabulary; an id is a place in the lists.

    Attributes:
        model: one of the three.
        pre_tokenizer: its name; None: the file names none.
        tokens: as they are spelled, each once.
        ids: by spelling.
        types: one a token.
        scores: one a token; none of byte-level BPE.
        merges: pairs of tokens that make a third, the first to be merged first; none of SentencePiece.
    """

    model: str
    pre_tokenizer: str | None
    tokens: Sequence[str]
    ids: dict[str, int]
    types: Sequence[TokenType]
    scores: Sequence[float]
    merges: Sequence[tuple[str, str]]

    def of_type(self, *types: TokenType) -> dict[str, int]:
        """Return the ids of the tokens of these types, by spelling."""
        return {
            token: at for at, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True)) if kind in types
        }


def read_vocabulary(metadata: Metadata, n_embeddings: int | None = None) -> Vocabulary:
    """Read the vocabulary of a GGUF file.

    Args:
        metadata: of the file.
        n_embeddings: rows of the model's embedding, when they are to be one a token.

    Raises:
        UnsupportedModelError: it is of a kind that is not implemented.
        FormatError: it is missing or contradicts itself.
    """
    model = metadata.string(_MODEL)
    if model not in (BYTE_LEVEL, SENTENCEPIECE, UNIGRAM):
        raise UnsupportedModelError(
            f"{_MODEL} is {model!r:.60}: only gpt2 (byte-level BPE), llama (SentencePiece) and t5 (unigram) are read"
        )
    tokens = metadata.array(_TOKENS, ValueType.STRING)
    if not tokens:
        metadata.refuse("it has no tokens")
    if n_embeddings is not None and len(tokens) != n_embeddings:
        metadata.refuse(f"it has {len(tokens)} tokens, but the embedding has {n_embeddings} rows")
    if len(longest := max(tokens, key=len)) > _LONGEST:
        metadata.refuse(f"token {tokens.index(longest)} has {len(longest)} characters, more than {_LONGEST}")
    ids = {token: at for at, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        first = next(at for at, token in enumerate(tokens) if ids[token] != at)
        metadata.refuse(f"tokens {first} and {ids[tokens[first]]} are both {tokens[first]!r:.60}")
    return Vocabulary(
        model=model,
        pre_tokenizer=metadata.string(_PRE) if _PRE in metadata else None,
        tokens=tokens,
        ids=ids,
        types=_read_types(metadata, len(tokens)),
        scores=[] if model == BYTE_LEVEL else _read_scores(metadata, len(tokens)),
        merges=_read_merges(metadata, ids) if model == BYTE_LEVEL else [],
    )


def _read_types(metadata: Metadata, n_tokens: int) -> list[TokenType]:
    """Read the tokens' types; a file that does not say has normal tokens only."""
    if _TYPES not in metadata:
        return [TokenType.NORMAL] * n_tokens
    numbers = metadata.array(_TYPES, ValueType.INT32)
    if len(numbers) != n_tokens:
        metadata.refuse(f"it has {n_tokens} tokens, but {len(numbers)} types of tokens")
    known = {int(kind): kind for kind in TokenType}
    if unknown := set(numbers) - known.keys():
        at = next(at for at, number in enumerate(numbers) if number in unknown)
        metadata.refuse(f"token {at} is of unknown type {numbers[at]}")
    return [known[number] for number in numbers]


def _read_scores(metadata: Metadata, n_tokens: int) -> list[float]:
    scores = metadata.array(_SCORES, ValueType.FLOAT32)
    if len(scores) != n_tokens:
        metadata.refuse(f"it has {n_tokens} tokens, but {len(scores)} scores")
    for at, score in enumerate(scores):
        if not math.isfinite(score):
            metadata.refuse(f"token {at} has the score {score}")
    return scores


def _read_merges(metadata: Metadata, ids: dict[str, int]) -> list[tuple[str, str]]:
    """Read merges: two tokens with a space between them, for in this alphabet no token has one."""
    merges = []
    for at, merge in enumerate(metadata.array(_MERGES, ValueType.STRING)):
        left, _, right = merge.partition(" ")
        if not (left and right) or " " in right:
            metadata.refuse(f"merge {at} is {merge!r:.60}, not two tokens with a space between them")
        for token in (left, right, left + right):
            if token not in ids:
                metadata.refuse(f"merge {at} ({merge!r:.60}) names {token!r:.60}, which is no token")
        merges.append((left, right))
    return merges
